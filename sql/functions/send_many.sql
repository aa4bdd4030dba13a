-- Stores many broadcasts with one statement; subscribers get them, in the order of the
-- arrays, when the caller's transaction commits.
--
-- payloads   any JSON values; each object gets its message's id as "id" if it has none
-- events     one for each payload, or a single one for all
-- topics     one for each payload, or a single one for all
-- private    as in realtime.send, for all of them
-- returns    how many were stored
-- effects    as realtime.send; with realtime.on_send_error = 'warn' an error loses all
--            of this call's messages and 0 is returned
-- errors     as realtime.send · 2202E the arrays are of different lengths
create or replace function realtime.send_many(
    payloads jsonb[],
    events text[],
    topics text[],
    private boolean default true
)
returns bigint
language plpgsql
volatile
as $$
declare
    wanted integer := pg_catalog.cardinality(payloads);
    sent bigint;
begin
    if pg_catalog.current_setting('realtime.on_send_error', true)
        operator(pg_catalog.=) 'warn' then
        begin
            perform pg_catalog.set_config('realtime.on_send_error', 'raise', true);
            sent := realtime.send_many(payloads, events, topics, private);
            perform pg_catalog.set_config('realtime.on_send_error', 'warn', true);
            return sent;
        exception when others then
            perform realtime.warn_send_error(sqlstate, sqlerrm);
            return 0;
        end;
    end if;

    if wanted is not null and pg_catalog.cardinality(events) operator(pg_catalog.=) 1
    then
        events := pg_catalog.array_fill(events[1], array[wanted]);
    end if;
    if wanted is not null and pg_catalog.cardinality(topics) operator(pg_catalog.=) 1
    then
        topics := pg_catalog.array_fill(topics[1], array[wanted]);
    end if;
    if wanted is null
        or pg_catalog.cardinality(events) is distinct from wanted
        or pg_catalog.cardinality(topics) is distinct from wanted then
        raise exception 'send_many got % payloads, % events and % topics',
            wanted, pg_catalog.cardinality(events), pg_catalog.cardinality(topics)
        using errcode = '2202E', hint =
            'Give an event and a topic for each payload, or a single one for all.';
    end if;
    -- Explains the first message that cannot be sent; none of them is null otherwise.
    perform realtime.explain_refusal(m.topic, m.event, m.payload is null)
    from rows from (
        pg_catalog.unnest(payloads),
        pg_catalog.unnest(events),
        pg_catalog.unnest(topics)
    ) with ordinality as m (payload, event, topic, number)
    where m.topic is null or m.event is null or m.payload is null
        or m.number operator(pg_catalog.=) 1;

    insert into realtime.messages (id, payload, event, topic, private, extension)
    select
        m.id,
        case
            when pg_catalog.jsonb_typeof(m.payload) operator(pg_catalog.=) 'object'
                and not m.payload operator(pg_catalog.?) 'id'
                then m.payload operator(pg_catalog.||)
                    pg_catalog.jsonb_build_object('id', m.id)
            else m.payload
        end,
        m.event,
        -- Returns the topic, and tells it to the policies that check this row.
        pg_catalog.set_config('realtime.topic', m.topic, true),
        coalesce(send_many.private, true),
        'broadcast'
    from (
        select
            pg_catalog.gen_random_uuid() as id,
            u.payload,
            u.event,
            u.topic
        from rows from (
            pg_catalog.unnest(payloads),
            pg_catalog.unnest(events),
            pg_catalog.unnest(topics)
        ) as u (payload, event, topic)
        offset 0 -- or each use of the id would be an id of its own
    ) as m;
    get diagnostics sent = row_count;
    return sent;
end;
$$;

comment on function realtime.send_many(jsonb[], text[], text[], boolean) is
'Stores many broadcasts with one statement; returns how many.';
