-- Broadcasts one changed row.
-- Security definer: who may write the table need not be let write messages.
create function __function__()
returns trigger
language plpgsql
volatile
security definer
__settings__
as __quote__
declare
    topic text;
begin
    __body__
    return null;
end;
__quote__;
