-- Why a token may not name this role: only what the server's login was granted may be
-- named, and nothing that stands above the policies. service_role, which a policy lets
-- do all or which has BYPASSRLS, is within them.
--
-- returns   null if the role may be asked, else a sentence for a log
create or replace function realtime.role_refusal(role_name text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted record;
begin
    if role_name is null then
        return 'the token names no role';
    end if;
    select
        r.oid,
        r.rolsuper,
        c.relowner,
        s.rolsuper as login_is_superuser,
        pg_has_role(
            session_user,
            r.oid,
            case
                when current_setting('server_version_num')::integer >= 160000 then 'set'
                else 'member'
            end
        ) as granted
    into wanted
    from pg_roles as r
    inner join pg_roles as s on s.rolname = session_user
    inner join pg_class as c on c.oid = 'realtime.messages'::regclass
    where r.rolname = role_name;

    -- That goes for `none` too, with which `set role` would lead back to the login.
    if not found then
        return format('role "%s" does not exist', left(role_name, 63));
    elsif wanted.rolsuper then
        return format('role "%s" is a superuser', role_name);
    elsif role_name in (session_user, current_user) then
        return format('role "%s" is the server''s own', role_name);
    elsif pg_has_role(wanted.oid, wanted.relowner, 'usage') then
        return format('role "%s" has the rights of the owner of messages', role_name);
    elsif wanted.login_is_superuser then
        -- It may `set role` to all; what it was granted says what it is meant to.
        if role_name in ('anon', 'authenticated', 'service_role') or exists (
            with recursive granted (role_oid) as (
                select m.roleid
                from pg_auth_members as m
                where m.member = session_user::regrole
                union
                select m.roleid
                from pg_auth_members as m
                inner join granted as g on m.member = g.role_oid
            )

            select from granted as g where g.role_oid = wanted.oid
        ) then
            return null;
        end if;
    elsif wanted.granted then
        return null;
    end if;
    return format('role "%s" was not granted to "%s"', role_name, session_user);
end;
$$;

comment on function realtime.role_refusal(text) is
'Why a token may not name this role; null if it may.';

revoke execute on function realtime.role_refusal(text) from public;
