-- Warns that a row-level trigger built a null topic for a deleted row.
--
-- context   the call stack, whose last PL/pgSQL line is the trigger function
create or replace function realtime.warn_null_topic(
    table_schema text,
    table_name text,
    context text
)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    callers text[];
    trigger_names text;
begin
    select array_agg(m.match[1]) into callers
    from regexp_matches(context, 'PL/pgSQL function (\S+)\(\)', 'g') as m (match);
    select string_agg(quote_ident(t.tgname), ', ' order by t.tgname) into trigger_names
    from pg_trigger as t
    inner join pg_proc as p on t.tgfoid = p.oid
    inner join pg_namespace as n on p.pronamespace = n.oid
    where t.tgrelid = to_regclass(format('%I.%I', table_schema, table_name))
        and (
            format('%I.%I', n.nspname, p.proname) = any (callers)
            or quote_ident(p.proname) = any (callers)
        );
    raise warning 'trigger % on %.% sent nothing for a deleted row: its topic is null',
        coalesce(trigger_names, '(unknown)'), table_schema, table_name
    using errcode = 'RT002', hint =
        'On DELETE new is null. Build the topic with coalesce(new.id, old.id).';
end;
$$;

comment on function realtime.warn_null_topic(text, text, text) is
'Warns that a row-level trigger built a null topic for a deleted row.';
