-- Messages, one partition per UTC day. The first nine columns are those of Supabase
-- Realtime, so that policies and code written for it work here.
create sequence if not exists realtime.messages_position as bigint cache 32;

create table if not exists realtime.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    -- The clock, not the start of the transaction: a row's time is never earlier
    -- than the moment its transaction got its id, and a resume relies on that.
    updated_at timestamp not null default (clock_timestamp() at time zone 'utc'),
    inserted_at timestamp not null default (clock_timestamp() at time zone 'utc'),
    id uuid not null default gen_random_uuid(),
    binary_payload bytea,
    transaction_id xid8 not null default pg_current_xact_id(),
    position bigint not null default nextval('realtime.messages_position'),
    expires_at timestamp,
    -- Topic first: a replay reads one topic. Nothing random: few pages change, so
    -- little WAL is written. No other index, for every insert would pay for it.
    primary key (topic, inserted_at, position),
    constraint messages_fit check (
        realtime.message_fits(topic, event, payload, binary_payload)
    )
) partition by range (inserted_at);

-- What `create table` cannot say, or a hand has undone. Looked at first, for each of
-- these makes senders wait, and setup() runs beside them.
do $$
declare
    column_name text;
begin
    if not exists (
        select from pg_depend
        where objid = 'realtime.messages_position'::regclass and deptype = 'a'
    ) then
        alter sequence realtime.messages_position owned by realtime.messages.position;
    end if;
    if not (
        select c.relrowsecurity from pg_class as c
        where c.oid = 'realtime.messages'::regclass
    ) then
        alter table realtime.messages enable row level security;
    end if;
    if not exists (
        select from pg_constraint
        where conrelid = 'realtime.messages'::regclass and conname = 'messages_fit'
    ) then
        alter table realtime.messages add constraint messages_fit check (
            realtime.message_fits(topic, event, payload, binary_payload)
        );
    end if;
    if not exists (
        select from pg_attribute
        where attrelid = 'realtime.messages'::regclass
            and attname = 'expires_at'
            and not attisdropped
    ) then
        -- Without a default, nothing is rewritten.
        alter table realtime.messages add column expires_at timestamp;
    end if;
    if exists (
        select from pg_settings
        where name = 'default_toast_compression' and 'lz4' = any (enumvals)
    ) then
        for column_name in
            select attname from pg_attribute
            where attrelid = 'realtime.messages'::regclass
                and attname in ('payload', 'binary_payload')
                and attcompression <> 'l'
        loop
            execute format(
                'alter table realtime.messages alter column %I set compression lz4',
                column_name
            );
        end loop;
    end if;
end;
$$;

comment on sequence realtime.messages_position is
'Numbers messages within their transaction.';
comment on table realtime.messages is
'Messages to broadcast. A row reaches its subscribers when its transaction commits.';
comment on column realtime.messages.topic is
'What clients subscribe to, without the prefix realtime: that they put on the wire.';
comment on column realtime.messages.extension is
'broadcast; rows of any other extension are not sent.';
comment on column realtime.messages.payload is
'The message: any JSON value. Null when binary_payload is set.';
comment on column realtime.messages.event is
'The name that clients listen for.';
comment on column realtime.messages.private is
'True: only for subscribers whom the policies on this table let read the topic.';
comment on column realtime.messages.updated_at is
'UTC. Kept for compatibility; messages are not updated.';
comment on column realtime.messages.inserted_at is
'UTC, whatever the TimeZone of the session. Decides the partition.';
comment on column realtime.messages.id is
'The message''s id, which clients see as meta.id.';
comment on column realtime.messages.binary_payload is
'The message as bytes. Null when payload is set.';
comment on column realtime.messages.transaction_id is
'The transaction that wrote the row; a resume asks for what it has not seen by it.';
comment on column realtime.messages.position is
'Grows from row to row within a transaction: the order of insertion.';
comment on column realtime.messages.expires_at is
'UTC. From then on the row is not replayed; null: until its partition is dropped.';

-- Partitions that were there before a column have no comment on it.
do $$
declare
    partition_name text;
begin
    for partition_name in
        select p.partition_name from realtime.partitions() as p
        where p.attached and not exists (
            select from pg_description as d
            inner join pg_attribute as a
                on d.objoid = a.attrelid and d.objsubid = a.attnum
            where a.attrelid = to_regclass('realtime.' || p.partition_name)
                and a.attname = 'expires_at'
        )
    loop
        execute format(
            'comment on column realtime.%I.expires_at is %L',
            partition_name,
            (
                select col_description(a.attrelid, a.attnum) from pg_attribute as a
                where a.attrelid = 'realtime.messages'::regclass
                    and a.attname = 'expires_at'
            )
        );
    end loop;
end;
$$;
