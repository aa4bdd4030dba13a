-- What the policies on realtime.messages let a user do with a topic, asked as the user.
-- All that it does is rolled back before it returns: no row is stored or published, and
-- role and settings are what they were, after errors too.
--
-- claims            of the user's token: `role` is the role that is asked
-- headers           of the user's request, for policies that look at request.headers
-- write_extension   null: which of the two extensions may the user read? Else the one,
--                   broadcast or presence, that the user wants to write
-- returns           the rights on what was asked about, false where there is none. If
--                   an error said no, refusal and refusal_code are its text and
--                   SQLSTATE: 42501 if no policy lets the user write, 22023 if the
--                   token may not name its role, or whatever a policy raised
-- errors            RT003 no partition for today · 42501 the caller may not insert the
--                   rows that it asks about: it must own realtime.messages or have
--                   BYPASSRLS · 57014 canceled or timed out, and all else that says
--                   nothing about the user: 25006, 55P03, classes 40, 53, 57 and 58
--
-- No pinned search_path, and so every name is qualified: functions that policies call
-- must see the path that they see outside.
create or replace function realtime.authorize(
    topic text,
    claims jsonb,
    headers jsonb default '{}',
    write_extension text default null,
    out broadcast boolean,
    out presence boolean,
    out refusal text,
    out refusal_code text
)
language plpgsql
volatile
as $$
#variable_conflict use_variable
declare
    role_name text := claims operator(pg_catalog.->>) 'role';
    step text := 'insert as ourselves';
    -- As their defaults have them, but known to the query that looks for the rows.
    broadcast_id uuid := pg_catalog.gen_random_uuid();
    presence_id uuid := pg_catalog.gen_random_uuid();
    sent_at timestamp := pg_catalog.clock_timestamp() at time zone 'utc';
    error_table text;
    error_constraint text;
begin
    broadcast := false;
    presence := false;
    refusal := realtime.role_refusal(role_name);
    if refusal is not null then
        refusal_code := '22023';
        return;
    end if;

    begin
        if write_extension is null then
            insert into realtime.messages (id, topic, extension, inserted_at)
            values
            (broadcast_id, topic, 'broadcast', sent_at),
            (presence_id, topic, 'presence', sent_at);
        end if;

        step := 'become the user';
        -- Assignments, for `perform` would run a query each.
        topic := pg_catalog.set_config('realtime.topic', topic, true);
        error_table := pg_catalog.set_config(
            'request.jwt.claims', claims::pg_catalog.text, true
        );
        error_table := pg_catalog.set_config(
            'request.jwt.claim.sub',
            coalesce(claims operator(pg_catalog.->>) 'sub', ''),
            true
        );
        error_table := pg_catalog.set_config('request.jwt.claim.role', role_name, true);
        error_table := pg_catalog.set_config(
            'request.headers', coalesce(headers, '{}')::pg_catalog.text, true
        );
        error_table := pg_catalog.set_config('role', role_name, true);

        step := 'ask';
        if write_extension is null then
            select
                coalesce(
                    pg_catalog.bool_or(m.id operator(pg_catalog.=) broadcast_id), false
                ),
                coalesce(
                    pg_catalog.bool_or(m.id operator(pg_catalog.=) presence_id), false
                )
            into broadcast, presence
            from realtime.messages as m
            where m.topic operator(pg_catalog.=) authorize.topic
                and m.inserted_at operator(pg_catalog.=) sent_at
                and m.id operator(pg_catalog.=) any (array[broadcast_id, presence_id]);
        else
            insert into realtime.messages (topic, extension)
            values (topic, write_extension);
            broadcast := write_extension operator(pg_catalog.=) 'broadcast';
            presence := write_extension operator(pg_catalog.=) 'presence';
        end if;

        -- Undoes the rows, the settings and the role; variables keep their values.
        step := 'undo';
        raise exception 'undo';
    exception when others or assert_failure then
        if step operator(pg_catalog.=) 'undo' then
            return;
        end if;
        get stacked diagnostics
            refusal = message_text,
            error_table = table_name,
            error_constraint = constraint_name;
        refusal_code := sqlstate;
    end;

    if refusal_code operator(pg_catalog.=) '23514'
        and error_table operator(pg_catalog.=) 'messages'
        and error_constraint operator(pg_catalog.=) '' then
        raise exception '%', refusal
        using errcode = 'RT003', hint = 'Run `realtime-db maintain`.';
    end if;
    if refusal_code operator(pg_catalog.=) any (array['25006', '55P03'])
        or pg_catalog.left(refusal_code, 2) operator(pg_catalog.=)
        any (array['40', '53', '57', '58'])
        or (
            step operator(pg_catalog.=) 'insert as ourselves'
            and refusal_code operator(pg_catalog.=) '42501'
        ) then
        raise exception '%', refusal
        using errcode = refusal_code;
    end if;
end;
$$;

comment on function realtime.authorize(text, jsonb, jsonb, text) is
'What the policies let a user do with a topic, asked as that user; stores nothing.';

revoke execute on function realtime.authorize(text, jsonb, jsonb, text) from public;
