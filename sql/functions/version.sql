-- The release of realtime-db whose functions are installed.
create or replace function realtime.version()
returns text
language sql
immutable
as $$
    select '0.4.0'
$$;

comment on function realtime.version() is
'The release of realtime-db whose functions are installed.';
