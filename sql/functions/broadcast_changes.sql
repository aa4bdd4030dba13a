-- Broadcasts one changed row to private subscribers; called from a row-level trigger.
--
-- operation   INSERT, UPDATE or DELETE (TG_OP)
-- new, old    the row after and before; an insert has no old one, a delete no new one
-- level       TG_LEVEL, for those who pass it
-- effects     sends {"id", "operation", "schema", "table", "record", "old_record"}; no
--             subtransaction. On DELETE a null topic is a warning and nothing is sent:
--             the documented example builds its topic from new, which is null then
-- errors      P0001 unknown operation, or a statement-level trigger · those of send
create or replace function realtime.broadcast_changes(
    topic_name text,
    event_name text,
    operation text,
    table_name text,
    table_schema text,
    new record,
    old record,
    level text default 'ROW'
)
returns void
language plpgsql
volatile
as $$
declare
    context text;
begin
    if level operator(pg_catalog.=) 'STATEMENT' then
        raise exception '%',
            'Failed to process the row: function can only be triggered for each row, '
            'not for each statement'
        using hint = 'Declare the trigger `for each row`, or let '
            '`realtime-db trigger add` make a statement-level one.';
    end if;
    if operation operator(pg_catalog.=) any (array['INSERT', 'UPDATE', 'DELETE']) then
        null;
    else
        raise exception 'Failed to process the row: Unexpected operation type: %',
            operation
        using hint = 'Pass TG_OP: INSERT, UPDATE or DELETE.';
    end if;
    if topic_name is null and operation operator(pg_catalog.=) 'DELETE' then
        get diagnostics context = pg_context;
        perform realtime.warn_null_topic(table_schema, table_name, context);
        return;
    end if;
    perform realtime.send(
        pg_catalog.jsonb_build_object(
            'schema', table_schema,
            'table', table_name,
            'operation', operation,
            'record',
            case
                when operation operator(pg_catalog.<>) 'DELETE'
                    then pg_catalog.to_jsonb(new)
            end,
            'old_record',
            case
                when operation operator(pg_catalog.<>) 'INSERT'
                    then pg_catalog.to_jsonb(old)
            end
        ),
        event_name,
        topic_name
    );
end;
$$;

comment on function realtime.broadcast_changes(
    text, text, text, text, text, record, record, text
) is
'Broadcasts one changed row to private subscribers; called from a row-level trigger.';
