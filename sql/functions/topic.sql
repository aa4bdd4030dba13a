-- The topic that is being read or written; for policies on realtime.messages.
--
-- returns   the setting realtime.topic, or null if it is not set
create or replace function realtime.topic()
returns text
language sql
stable
as $$
    select nullif(pg_catalog.current_setting('realtime.topic', true), '')
$$;

comment on function realtime.topic() is
'The topic being read or written, for policies; null if there is none.';
