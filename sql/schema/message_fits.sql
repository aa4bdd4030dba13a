-- Whether a message fits into a frame: the check constraint of realtime.messages.
--
-- One call without a pinned search_path, and so every name is qualified: a check
-- constraint is planned anew by each insert, which costs 18 us if the comparisons stand
-- in the constraint itself and 4 us like this. Here and not in functions/, for the
-- table needs it: a member of the extension would keep `drop extension` from working.
--
-- returns   true
-- errors    those of explain_misfit
create or replace function realtime.message_fits(
    topic text,
    event text,
    payload jsonb,
    binary_payload bytea
)
returns boolean
language plpgsql
stable
as $$
begin
    -- 8 kB of binary JSON are less than the smallest limit, 64 kB, in text.
    if pg_catalog.octet_length(topic) operator(pg_catalog.>) 0
        and pg_catalog.octet_length(topic) operator(pg_catalog.<=) 246
        and (
            event is null
            or pg_catalog.octet_length(event) operator(pg_catalog.<=) 255
        )
        and (
            payload is null
            or (
                binary_payload is null
                and pg_catalog.pg_column_size(payload) operator(pg_catalog.<=) 8192
            )
        )
        and (
            binary_payload is null
            or pg_catalog.octet_length(binary_payload) operator(pg_catalog.<=) 8192
        ) then
        return true;
    end if;
    return realtime.explain_misfit(topic, event, payload, binary_payload);
end;
$$;

comment on function realtime.message_fits(text, text, jsonb, bytea) is
'Whether a message fits into a frame: true, or an error that says why not.';
