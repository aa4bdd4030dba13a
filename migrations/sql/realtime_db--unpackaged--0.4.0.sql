-- realtime_db: the adoption of 0.4.0. Frozen by `make release`; never edited.

do $$
declare
    installed text;
begin
    if exists (
        select from pg_proc
        where pronamespace = 'realtime'::regnamespace and proname = 'version' and pronargs = 0
    ) then
        installed := realtime.version();
    end if;
    if installed is null then
        raise exception 'there is nothing to adopt in schema realtime'
        using hint =
            'drop extension realtime_db; create extension realtime_db; '
            'select realtime.setup();';
    end if;
    if installed <> '0.4.0' then
        raise exception 'schema realtime has release %, not 0.4.0', installed
        using hint = format(
            'alter extension realtime_db update to %L; alter extension realtime_db update; '
            'select realtime.setup();',
            installed
        );
    end if;
end;
$$;

alter extension realtime_db add function realtime.authorize(text, jsonb, jsonb, text);
alter extension realtime_db add function realtime.broadcast_changes(text, text, text, text, text, record, record, text);
alter extension realtime_db add function realtime.create_partition(date);
alter extension realtime_db add function realtime.drop_partition(date);
alter extension realtime_db add function realtime.explain_refusal(text, text, boolean);
alter extension realtime_db add function realtime.maintain(date);
alter extension realtime_db add function realtime.partitions();
alter extension realtime_db add function realtime.revoke(text, text, text);
alter extension realtime_db add function realtime.role_refusal(text);
alter extension realtime_db add function realtime.send(jsonb, text, text, boolean);
alter extension realtime_db add function realtime.send_binary(bytea, text, text, boolean);
alter extension realtime_db add function realtime.send_many(jsonb[], text[], text[], boolean);
alter extension realtime_db add function realtime.setup();
alter extension realtime_db add function realtime.topic();
alter extension realtime_db add function realtime.version();
alter extension realtime_db add function realtime.warn_null_topic(text, text, text);
alter extension realtime_db add function realtime.warn_send_error(text, text);

-- From now on pg_extension says which release this is.
drop table if exists realtime.realtime_db_release;
