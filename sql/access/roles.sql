-- The roles that tokens name. Made only if missing and only by who may make roles;
-- the installer becomes a member, so that a server that logs in as it can `set role`.
do $$
declare
    role_name text;
begin
    foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
        if not exists (select from pg_roles where rolname = role_name) then
            if not (
                select r.rolsuper or r.rolcreaterole
                from pg_roles as r
                where r.rolname = current_user
            ) then
                raise warning 'role % is missing and % may not create roles; skipped',
                    role_name, current_user
                using hint = format(
                    'As an administrator: create role %I nologin noinherit; '
                    'grant %I to %I; and, when all are there, as %I: '
                    'select realtime.setup();',
                    role_name, role_name, current_user, current_user
                );
                continue;
            end if;
            execute format('create role %I nologin noinherit', role_name);
        end if;
        if not pg_has_role(current_user, role_name, 'member')
            or (
                current_setting('server_version_num')::integer >= 160000
                and not pg_has_role(current_user, role_name, 'set')
            ) then
            begin
                if current_setting('server_version_num')::integer >= 160000 then
                    execute format(
                        'grant %I to %I with set true, inherit false',
                        role_name, current_user
                    );
                else
                    execute format('grant %I to %I', role_name, current_user);
                end if;
            exception when insufficient_privilege then
                raise warning '% is not a member of role % and may not become one',
                    current_user, role_name
                using hint = format(
                    'As an administrator: grant %I to %I;', role_name, current_user
                );
            end;
        end if;
    end loop;
end;
$$;
