-- Turns an error of a send into a warning, for realtime.on_send_error = 'warn'.
create or replace function realtime.warn_send_error(sqlstate_code text, message text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    raise warning 'WarnSendingBroadcastMessage: %', message using errcode = sqlstate_code;
end;
$$;

comment on function realtime.warn_send_error(text, text) is
'Turns an error of a send into a warning.';
