-- Turns an error of a send into a warning, for realtime.on_send_error = 'warn', and
-- counts it in realtime.send_errors, where `realtime-db doctor` and the metrics look.
--
-- security definer: the writer whose message is lost has no right to that table
create or replace function realtime.warn_send_error(sqlstate_code text, message text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    raise warning 'WarnSendingBroadcastMessage: %', message
    using errcode = sqlstate_code;
    -- Missing between `alter extension … update` and `select realtime.setup()`.
    if to_regclass('realtime.send_errors') is not null then
        insert into realtime.send_errors (error_code, message)
        values (sqlstate_code, left(warn_send_error.message, 500));
    end if;
end;
$$;

comment on function realtime.warn_send_error(text, text) is
'Turns an error of a send into a warning and counts it in realtime.send_errors.';
