-- service_role may do all by policy, since BYPASSRLS can only be given by a superuser.
do $$
begin
    if exists (select from pg_roles where rolname = 'service_role')
        and not exists (
            select from pg_policy
            where polrelid = 'realtime.messages'::regclass
                and polname = 'service_role may do all'
        ) then
        create policy "service_role may do all" on realtime.messages
        to service_role using (true) with check (true);
    end if;
end;
$$;
