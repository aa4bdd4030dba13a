-- The peer: what Supabase Realtime documents of its SQL, written anew from that contract
-- into a schema of its own. A row trigger, functions with exception blocks, a dynamic
-- `set local`, a primary key that begins with a random uuid, and the index of its replay.
create schema peer;

create table peer.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    updated_at timestamp not null default now(),
    inserted_at timestamp not null default now(),
    id uuid not null default gen_random_uuid(),
    binary_payload bytea,
    primary key (id, inserted_at),
    constraint messages_payload_exclusive check (payload is null or binary_payload is null)
) partition by range (inserted_at);
alter table peer.messages enable row level security;
create index messages_inserted_at_topic_index
on peer.messages (inserted_at desc, topic)
where extension = 'broadcast' and private is true;

do $$
declare
    day date;
begin
    for i in -1..3 loop
        day := current_date + i;
        execute format(
            'create table peer.%I partition of peer.messages for values from (%L) to (%L)',
            'messages_' || to_char(day, 'YYYY_MM_DD'), day, day + 1
        );
    end loop;
end;
$$;

create function peer.send(payload jsonb, event text, topic text, private boolean default true)
returns void
language plpgsql
as $$
declare
    generated_id uuid;
    final_payload jsonb;
begin
    begin
        generated_id := gen_random_uuid();
        if payload ? 'id' then
            final_payload := payload;
        else
            final_payload := jsonb_set(payload, '{id}', to_jsonb(generated_id));
        end if;
        execute format('set local realtime.topic to %L', topic);
        insert into peer.messages (id, payload, event, topic, private, extension)
        values (generated_id, final_payload, event, topic, private, 'broadcast');
    exception when others then
        raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
    end;
end;
$$;

create function peer.broadcast_changes(
    topic_name text,
    event_name text,
    operation text,
    table_name text,
    table_schema text,
    new record,
    old record,
    level text default 'ROW'
)
returns void
language plpgsql
as $$
declare
    row_data jsonb := '{}'::jsonb;
begin
    if level = 'STATEMENT' then
        raise exception 'function can only be triggered for each row, not for each statement';
    end if;
    if operation = 'INSERT' or operation = 'UPDATE' or operation = 'DELETE' then
        row_data := jsonb_build_object(
            'old_record', old, 'record', new, 'operation', operation,
            'table', table_name, 'schema', table_schema
        );
        perform peer.send(row_data, event_name, topic_name);
    else
        raise exception 'Unexpected operation type: %', operation;
    end if;
exception when others then
    raise exception 'Failed to process the row: %', sqlerrm;
end;
$$;

-- The documented trigger function; `topic` is built from whichever row there is.
create function peer.broadcast_row()
returns trigger
language plpgsql
security definer
as $$
begin
    perform peer.broadcast_changes(
        'todo:' || coalesce(new.id, old.id)::text,
        tg_op,
        tg_op,
        tg_table_name,
        tg_table_schema,
        new,
        old
    );
    return null;
end;
$$;

create publication peer_messages for table peer.messages
with (publish = 'insert', publish_via_partition_root = true);
