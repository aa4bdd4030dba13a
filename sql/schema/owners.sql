-- Refuses to go on from what a stranger made beforehand: his triggers and defaults
-- would run as whoever calls setup(), and his functions he could change later. No
-- stranger is who installed these functions or calls this one or may act as him, the
-- owner of the database, or a superuser.
do $$
declare
    found_name text;
    found_owner name;
    all_powerful boolean := (
        select r.rolsuper from pg_roles as r where r.rolname = current_user
    );
begin
    select o.object_name, r.rolname into found_name, found_owner
    from (
        select 'table ' || c.oid::regclass, c.relowner
        from pg_class as c
        where c.relnamespace = 'realtime'::regnamespace
            and c.relname in ('settings', 'messages', 'send_errors', 'polls')
        union all
        select 'sequence ' || c.oid::regclass, c.relowner
        from pg_class as c
        where c.relnamespace = 'realtime'::regnamespace
            and c.relname = 'messages_position'
        union all
        select 'function ' || p.oid::regprocedure, p.proowner
        from pg_proc as p
        where p.pronamespace = 'realtime'::regnamespace
            and p.proname in ('explain_misfit', 'message_fits')
        union all
        -- The owner of a schema may drop what is in it and put his own there. Whoever is
        -- no superuser knows him, for he had to grant rights in it.
        select 'schema realtime', n.nspowner
        from pg_namespace as n
        where n.nspname = 'realtime' and all_powerful
    ) as o (object_name, object_owner)
    inner join pg_roles as r on o.object_owner = r.oid
    where not r.rolsuper
        and r.rolname <> 'pg_database_owner'
        and not (pg_has_role(r.oid, 'usage') and not all_powerful)
        and r.oid not in (
            select p.proowner from pg_proc as p
            where p.oid = 'realtime.setup()'::regprocedure
            union all
            select d.datdba from pg_database as d where d.datname = current_database()
        )
    limit 1;
    if found then
        raise exception '% was there before and is owned by %', found_name, found_owner
        using errcode = '42501', hint = format(
            'If that is whom all of realtime-db shall belong to: set role %I; '
            'select realtime.setup(); reset role; otherwise look at it, and drop it or '
            'alter its owner.',
            found_owner
        );
    end if;
end;
$$;
