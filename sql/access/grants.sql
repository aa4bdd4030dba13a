-- Rights of the roles that tokens name. Row level security on realtime.messages
-- decides which rows: without a policy of yours, none.
do $$
declare
    role_name text;
begin
    foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
        if exists (select from pg_roles where rolname = role_name) then
            execute format('grant usage on schema realtime to %I', role_name);
            execute format(
                'grant select, insert, update on realtime.messages to %I', role_name
            );
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant execute on function realtime.revoke(text, text, text) to service_role;
    end if;
end;
$$;

-- The check on message sizes and the default of `position` run as the writer, whoever
-- that is. Taking a number or reading a limit does no harm.
grant usage on sequence realtime.messages_position to public;
grant select on realtime.settings to public;
