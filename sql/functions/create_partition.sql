-- Makes the partition of realtime.messages for a UTC day, if it is missing. A table of
-- its name that was detached, or nearly so, is attached again.
--
-- returns   whether it was missing
-- effects   `like` and `attach` instead of `create … partition of`: they do not wait
--           for readers of the parent, and senders do not wait for them
-- errors    42501 not the owner of realtime.messages · 42P17 a partition that somebody
--           else made holds a part of that day · 42809 a table of that name is another
--           partition
create or replace function realtime.create_partition(day date)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
as $$
declare
    table_name text := 'messages_' || to_char(day, 'YYYY_MM_DD');
    owner_name name;
    found record;
begin
    if exists (
        select from realtime.partitions() as p
        where p.partition_name = table_name and p.attached
    ) then
        return false;
    end if;
    select r.rolname into owner_name
    from pg_class as c inner join pg_roles as r on c.relowner = r.oid
    where c.oid = 'realtime.messages'::regclass;

    if to_regclass('realtime.' || table_name) is null then
        execute format(
            'create table realtime.%I (like realtime.messages including all)',
            table_name
        );
        execute format('alter table realtime.%I owner to %I', table_name, owner_name);
        -- Nobody reads a partition by its own name: the policies are on the parent.
        execute format('alter table realtime.%I enable row level security', table_name);
        -- With it, attach has no rows to look at and no lock to hold meanwhile.
        execute format(
            'alter table realtime.%I add constraint day '
            'check (inserted_at is not null and inserted_at >= %L and inserted_at < %L)',
            table_name, day, day + 1
        );
    else
        select p.detaching, p.leaving into found
        from realtime.partitions() as p
        where p.partition_name = table_name;
        if found.detaching then
            execute format(
                'alter table realtime.messages detach partition realtime.%I finalize',
                table_name
            );
        end if;
        if found.leaving then
            execute format('comment on table realtime.%I is null', table_name);
        end if;
        -- It may have been detached before the column came, in 0.4.0.
        if not exists (
            select from pg_attribute
            where attrelid = to_regclass('realtime.' || table_name)
                and attname = 'expires_at'
                and not attisdropped
        ) then
            execute format(
                'alter table realtime.%I add column expires_at timestamp', table_name
            );
        end if;
    end if;
    execute format(
        'alter table realtime.messages attach partition realtime.%I '
        'for values from (%L) to (%L)',
        table_name, day, day + 1
    );
    execute format('alter table realtime.%I drop constraint if exists day', table_name);
    return true;
end;
$$;

comment on function realtime.create_partition(date) is
'Makes the partition of realtime.messages for a UTC day; returns if it was missing.';

revoke execute on function realtime.create_partition(date) from public;
