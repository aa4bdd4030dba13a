-- service_role may do all by policy, since BYPASSRLS can only be given by a superuser;
-- and what no policy of yours can allow.
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
    -- Whom a policy of yours lets insert anything cannot make servers busy with it, nor
    -- see who was revoked.
    if not exists (
        select from pg_policy
        where polrelid = 'realtime.messages'::regclass
            and polname = 'revocations by realtime.revoke only'
    ) then
        create policy "revocations by realtime.revoke only" on realtime.messages
        as restrictive to public using (
            extension operator(pg_catalog.<>) 'revocation'
            or pg_catalog.has_function_privilege(
                'realtime.revoke(text, text, text)', 'execute'
            )
        );
    end if;
end;
$$;
