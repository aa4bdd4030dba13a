-- What a server saw that cannot follow the WAL and asks the table: poll n brought what
-- its snapshot shows and that of poll n - 1 does not. So the order of a topic is fixed:
-- by the first poll that shows a message, then by transaction, then by position.
create table if not exists realtime.polls (
    id bigint primary key,
    seen pg_snapshot not null,
    taken_at timestamp not null default (clock_timestamp() at time zone 'utc')
);

comment on table realtime.polls is
'Which transactions each poll of a server saw that cannot follow the WAL.';
comment on column realtime.polls.id is
'The number of the poll; the next has the next.';
comment on column realtime.polls.seen is
'The transactions that had ended.';
comment on column realtime.polls.taken_at is
'When, in UTC; the server deletes polls that are older than the messages.';
