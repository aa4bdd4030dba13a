-- What record.py runs while it records: each block, up to an empty line, in a
-- transaction of its own. The recordings hold the frames in this order.

-- The payload's digits must survive: a float has room for none of these numbers.
insert into realtime.messages (topic, event, payload, private, id, inserted_at)
values (
    'room:1', 'message', '{"n": 9007199254740993, "d": 1.10000000000000000001, "s": "é"}',
    true, '00000000-0000-0000-0000-000000000001', '2026-08-01 12:34:56.789012'
);

-- One transaction of three, public, in insert order.
insert into realtime.messages (topic, event, payload, private, id, inserted_at)
select
    'room:' || i, 'many', to_jsonb(i), false,
    ('00000000-0000-0000-0000-00000000001' || i)::uuid, '2026-08-01 12:34:57'
from generate_series(1, 3) as i;

-- Binary.
insert into realtime.messages (topic, event, binary_payload, private, id, inserted_at)
values (
    'room:2', 'bytes', '\x00ff10',
    true, '00000000-0000-0000-0000-000000000002', '2026-08-01 12:34:58.5'
);

-- Rows that no client gets: no broadcast, no event, no private, no payload.
insert into realtime.messages (topic, extension, event, payload, private)
values
    ('room:3', 'presence', 'sync', '{}', true),
    ('room:3', 'broadcast', null, '{}', true),
    ('room:3', 'broadcast', 'e', '{}', null),
    ('room:3', 'broadcast', 'e', null, true);

-- A savepoint that is rolled back leaves nothing.
do $$
begin
    insert into realtime.messages (topic, event, payload, private, id, inserted_at)
    values (
        'room:4', 'kept', '[]', true,
        '00000000-0000-0000-0000-000000000004', '2026-08-01 12:34:59'
    );
    begin
        insert into realtime.messages (topic, event, payload, private)
        values ('room:4', 'undone', '[]', true);
        raise exception 'undo';
    exception when raise_exception then null;
    end;
end;
$$;

-- Changes that a publication of inserts does not publish, and one of another table.
update realtime.messages set event = 'changed' where topic = 'room:1';
delete from realtime.messages where topic = 'room:2';
truncate realtime.messages;

-- Heartbeats.
select pg_logical_emit_message(true, 'realtime', 'heartbeat');
select pg_logical_emit_message(false, 'realtime', 'outside');
