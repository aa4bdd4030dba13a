-- Stores one broadcast of bytes; subscribers get it when the transaction commits.
--
-- payload   any bytes, also none; at most realtime.settings.max_payload_bytes
-- event     the name that clients listen for
-- topic     without the prefix realtime: that clients put on the wire
-- private   false: for everybody; true (also null): for whom the policies let read
-- returns   the message's id, which clients see as meta.id
-- effects   as realtime.send
-- errors    as realtime.send
create or replace function realtime.send_binary(
    payload bytea,
    event text,
    topic text,
    private boolean default true
)
returns uuid
language plpgsql
volatile
as $$
declare
    message_id uuid := pg_catalog.gen_random_uuid();
begin
    if pg_catalog.current_setting('realtime.on_send_error', true)
        operator(pg_catalog.=) 'warn' then
        begin
            perform pg_catalog.set_config('realtime.on_send_error', 'raise', true);
            message_id := realtime.send_binary(payload, event, topic, private);
            perform pg_catalog.set_config('realtime.on_send_error', 'warn', true);
            return message_id;
        exception when others then
            perform realtime.warn_send_error(sqlstate, sqlerrm);
            return null;
        end;
    end if;

    if topic is null or event is null or payload is null
        or pg_catalog.row_security_active('realtime.messages'::pg_catalog.regclass)
        or (
            -- Looked for by the first send of a transaction: it costs a tenth of a send.
            nullif(pg_catalog.current_setting('realtime.topic', true), '') is null
            and pg_catalog.to_regclass(
                'realtime.messages_' operator(pg_catalog.||) pg_catalog.to_char(
                    pg_catalog.clock_timestamp() at time zone 'utc', 'YYYY_MM_DD'
                )
            ) is null
        ) then
        perform realtime.explain_refusal(topic, event, payload is null);
    end if;

    -- An assignment, for `perform` would run a query.
    topic := pg_catalog.set_config('realtime.topic', topic, true);
    insert into realtime.messages (id, binary_payload, event, topic, private, extension)
    values (
        message_id,
        payload,
        event,
        topic,
        coalesce(private, true),
        'broadcast'
    );
    return message_id;
end;
$$;

comment on function realtime.send_binary(bytea, text, text, boolean) is
'Stores one broadcast of bytes, sent at commit; returns the message''s id.';
