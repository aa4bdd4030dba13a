-- Broadcasts one changed row.
-- Security definer: who may write the table need not be let write messages.
create function __function__()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- __settings__
as $$
declare
    topic text;
begin
    __body__
    return null;
end;
$$;
