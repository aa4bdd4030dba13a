-- Raises the error that says why a message does not fit into a frame; message_fits()
-- calls it for every message that is not small.
--
-- returns   true, if it fits after all
-- errors    RT001 payload too large · RT002 topic missing · RT005 topic or event too
--           long · RT006 two payloads
create or replace function realtime.explain_misfit(
    topic text,
    event text,
    payload jsonb,
    binary_payload bytea
)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    payload_bytes integer := coalesce(
        octet_length(binary_payload), octet_length(payload::text), 0
    );
    max_bytes integer;
begin
    if payload is not null and binary_payload is not null then
        raise exception 'the message for topic % has a payload and a binary_payload',
            topic
        using errcode = 'RT006', hint = 'Set one of the two.';
    end if;
    if octet_length(topic) = 0 then
        raise exception 'the message has no topic: it is an empty string'
        using errcode = 'RT002', hint = 'Give the topic that clients subscribe to.';
    end if;
    if octet_length(topic) > 246 then
        raise exception 'the topic is % bytes long; at most 246 fit into a frame: %…',
            octet_length(topic), left(topic, 40)
        using errcode = 'RT005', hint = 'Use a shorter topic, such as a key or a hash.';
    end if;
    if octet_length(event) > 255 then
        raise exception 'the event is % bytes long; at most 255 fit into a frame: %…',
            octet_length(event), left(event, 40)
        using errcode = 'RT005', hint = 'Use a shorter event name.';
    end if;
    -- No row: a restore in progress, which must not refuse what was once accepted.
    select s.max_payload_bytes into max_bytes from realtime.settings as s;
    if payload_bytes > max_bytes then
        raise exception 'the payload for topic % is % bytes; at most % are allowed',
            topic, payload_bytes, max_bytes
        using errcode = 'RT001', hint =
            'Send the key and let clients fetch the rest, or: '
            'update realtime.settings set max_payload_bytes = …';
    end if;
    return true;
end;
$$;

comment on function realtime.explain_misfit(text, text, jsonb, bytea) is
'Raises the error that says why a message does not fit into a frame; true if it does.';
