-- Broadcasts the rows that a statement changed, with one insert for all of them.
-- Security definer: who may write the table need not be let write messages.
create function __function__()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- __settings__
as $$
-- new and old are rows of the statement here, not the variables of a row-level trigger.
#variable_conflict use_column
begin
    __body__
    return null;
end;
$$;
