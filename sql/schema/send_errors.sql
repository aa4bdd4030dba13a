-- What realtime.on_send_error = 'warn' swallowed. Rows are only added, so that no
-- writer waits for another; maintenance deletes those older than the messages.
create table if not exists realtime.send_errors (
    happened_at timestamptz not null default clock_timestamp(),
    error_code text not null,
    message text not null
);

comment on table realtime.send_errors is
'Messages that were not stored because realtime.on_send_error was warn.';
comment on column realtime.send_errors.happened_at is
'When the send failed.';
comment on column realtime.send_errors.error_code is
'The SQLSTATE of the error.';
comment on column realtime.send_errors.message is
'The text of the error, at most 500 characters.';
