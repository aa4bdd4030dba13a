-- PostgreSQL database dump

-- Name: realtime; Type: SCHEMA; Schema: -; Owner: -

CREATE SCHEMA realtime;

-- Name: authorize(text, jsonb, jsonb, text); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.authorize(topic text, claims jsonb, headers jsonb DEFAULT '{}'::jsonb, write_extension text DEFAULT NULL::text, OUT broadcast boolean, OUT presence boolean, OUT refusal text, OUT refusal_code text) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_variable
declare
    role_name text := claims operator(pg_catalog.->>) 'role';
    step text := 'insert as ourselves';
    -- As their defaults have them, but known to the query that looks for the rows.
    broadcast_id uuid := pg_catalog.gen_random_uuid();
    presence_id uuid := pg_catalog.gen_random_uuid();
    sent_at timestamp := pg_catalog.clock_timestamp() at time zone 'utc';
    error_table text;
    error_constraint text;
begin
    broadcast := false;
    presence := false;
    refusal := realtime.role_refusal(role_name);
    if refusal is not null then
        refusal_code := '22023';
        return;
    end if;

    begin
        if write_extension is null then
            insert into realtime.messages (id, topic, extension, inserted_at)
            values
            (broadcast_id, topic, 'broadcast', sent_at),
            (presence_id, topic, 'presence', sent_at);
        end if;

        step := 'become the user';
        -- Assignments, for `perform` would run a query each.
        topic := pg_catalog.set_config('realtime.topic', topic, true);
        error_table := pg_catalog.set_config(
            'request.jwt.claims', claims::pg_catalog.text, true
        );
        error_table := pg_catalog.set_config(
            'request.jwt.claim.sub',
            coalesce(claims operator(pg_catalog.->>) 'sub', ''),
            true
        );
        error_table := pg_catalog.set_config('request.jwt.claim.role', role_name, true);
        error_table := pg_catalog.set_config(
            'request.headers', coalesce(headers, '{}')::pg_catalog.text, true
        );
        error_table := pg_catalog.set_config('role', role_name, true);

        step := 'ask';
        if write_extension is null then
            select
                coalesce(
                    pg_catalog.bool_or(m.id operator(pg_catalog.=) broadcast_id), false
                ),
                coalesce(
                    pg_catalog.bool_or(m.id operator(pg_catalog.=) presence_id), false
                )
            into broadcast, presence
            from realtime.messages as m
            where m.topic operator(pg_catalog.=) authorize.topic
                and m.inserted_at operator(pg_catalog.=) sent_at
                and m.id operator(pg_catalog.=) any (array[broadcast_id, presence_id]);
        else
            insert into realtime.messages (topic, extension)
            values (topic, write_extension);
            broadcast := write_extension operator(pg_catalog.=) 'broadcast';
            presence := write_extension operator(pg_catalog.=) 'presence';
        end if;

        -- Undoes the rows, the settings and the role; variables keep their values.
        step := 'undo';
        raise exception 'undo';
    exception when others or assert_failure then
        if step operator(pg_catalog.=) 'undo' then
            return;
        end if;
        get stacked diagnostics
            refusal = message_text,
            error_table = table_name,
            error_constraint = constraint_name;
        refusal_code := sqlstate;
    end;

    if refusal_code operator(pg_catalog.=) '23514'
        and error_table operator(pg_catalog.=) 'messages'
        and error_constraint operator(pg_catalog.=) '' then
        raise exception '%', refusal
        using errcode = 'RT003', hint = 'Run `realtime-db maintain`.';
    end if;
    if refusal_code operator(pg_catalog.=) any (array['25006', '55P03'])
        or pg_catalog.left(refusal_code, 2) operator(pg_catalog.=)
        any (array['40', '53', '57', '58'])
        or (
            step operator(pg_catalog.=) 'insert as ourselves'
            and refusal_code operator(pg_catalog.=) '42501'
        ) then
        raise exception '%', refusal
        using errcode = refusal_code;
    end if;
end;
$$;

-- Name: FUNCTION authorize(topic text, claims jsonb, headers jsonb, write_extension text, OUT broadcast boolean, OUT presence boolean, OUT refusal text, OUT refusal_code text); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.authorize(topic text, claims jsonb, headers jsonb, write_extension text, OUT broadcast boolean, OUT presence boolean, OUT refusal text, OUT refusal_code text) IS 'What the policies let a user do with a topic, asked as that user; stores nothing.';

-- Name: broadcast_changes(text, text, text, text, text, record, record, text); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.broadcast_changes(topic_name text, event_name text, operation text, table_name text, table_schema text, new record, old record, level text DEFAULT 'ROW'::text) RETURNS void
    LANGUAGE plpgsql
    AS $$
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

-- Name: FUNCTION broadcast_changes(topic_name text, event_name text, operation text, table_name text, table_schema text, new record, old record, level text); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.broadcast_changes(topic_name text, event_name text, operation text, table_name text, table_schema text, new record, old record, level text) IS 'Broadcasts one changed row to private subscribers; called from a row-level trigger.';

-- Name: create_partition(date); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.create_partition(day date) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "DateStyle" TO 'ISO, YMD'
    AS $$
declare
    table_name text := 'messages_' || to_char(day, 'YYYY_MM_DD');
    owner_name name;
    found record;
begin
    if exists (
        select from realtime.partitions() as p
        where p.partition_name = table_name and p.attached
    ) then
        return false;
    end if;
    select r.rolname into owner_name
    from pg_class as c inner join pg_roles as r on c.relowner = r.oid
    where c.oid = 'realtime.messages'::regclass;

    if to_regclass('realtime.' || table_name) is null then
        execute format(
            'create table realtime.%I (like realtime.messages including all)',
            table_name
        );
        execute format('alter table realtime.%I owner to %I', table_name, owner_name);
        -- Nobody reads a partition by its own name: the policies are on the parent.
        execute format('alter table realtime.%I enable row level security', table_name);
        -- With it, attach has no rows to look at and no lock to hold meanwhile.
        execute format(
            'alter table realtime.%I add constraint day '
            'check (inserted_at is not null and inserted_at >= %L and inserted_at < %L)',
            table_name, day, day + 1
        );
    else
        select p.detaching, p.leaving into found
        from realtime.partitions() as p
        where p.partition_name = table_name;
        if found.detaching then
            execute format(
                'alter table realtime.messages detach partition realtime.%I finalize',
                table_name
            );
        end if;
        if found.leaving then
            execute format('comment on table realtime.%I is null', table_name);
        end if;
        -- It may have been detached before the column came, in 0.4.0.
        if not exists (
            select from pg_attribute
            where attrelid = to_regclass('realtime.' || table_name)
                and attname = 'expires_at'
                and not attisdropped
        ) then
            execute format(
                'alter table realtime.%I add column expires_at timestamp', table_name
            );
        end if;
    end if;
    execute format(
        'alter table realtime.messages attach partition realtime.%I '
        'for values from (%L) to (%L)',
        table_name, day, day + 1
    );
    execute format('alter table realtime.%I drop constraint if exists day', table_name);
    return true;
end;
$$;

-- Name: FUNCTION create_partition(day date); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.create_partition(day date) IS 'Makes the partition of realtime.messages for a UTC day; returns if it was missing.';

-- Name: drop_partition(date); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.drop_partition(day date) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '5ms'
    AS $$
declare
    table_name text;
begin
    select p.partition_name into table_name
    from realtime.partitions() as p
    where p.day = drop_partition.day and (p.attached or p.detaching or p.leaving);
    if table_name is null then
        return false;
    end if;
    execute format('drop table realtime.%I', table_name);
    return true;
end;
$$;

-- Name: FUNCTION drop_partition(day date); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.drop_partition(day date) IS 'Drops the partition of realtime.messages for a UTC day; returns if there was one.';

-- Name: explain_misfit(text, text, jsonb, bytea); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.explain_misfit(topic text, event text, payload jsonb, binary_payload bytea) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    declare
        payload_bytes integer := coalesce(
            octet_length(binary_payload), octet_length(payload::text), 0
        );
        max_bytes integer;
    begin
        if payload is not null and binary_payload is not null then
            raise exception 'the message for topic % has a payload and a binary_payload',
                topic
            using errcode = 'RT006', hint = 'Set one of the two.';
        end if;
        if octet_length(topic) = 0 then
            raise exception 'the message has no topic: it is an empty string'
            using errcode = 'RT002', hint = 'Give the topic that clients subscribe to.';
        end if;
        if octet_length(topic) > 246 then
            raise exception 'the topic is % bytes long; at most 246 fit into a frame: %…',
                octet_length(topic), left(topic, 40)
            using errcode = 'RT005', hint = 'Use a shorter topic, such as a key or a hash.';
        end if;
        if octet_length(event) > 255 then
            raise exception 'the event is % bytes long; at most 255 fit into a frame: %…',
                octet_length(event), left(event, 40)
            using errcode = 'RT005', hint = 'Use a shorter event name.';
        end if;
        -- No row: a restore in progress, which must not refuse what was once accepted.
        select s.max_payload_bytes into max_bytes from realtime.settings as s;
        if payload_bytes > max_bytes then
            raise exception 'the payload for topic % is % bytes; at most % are allowed',
                topic, payload_bytes, max_bytes
            using errcode = 'RT001', hint =
                'Send the key and let clients fetch the rest, or: '
                'update realtime.settings set max_payload_bytes = …';
        end if;
        return true;
    end;
    $$;

-- Name: FUNCTION explain_misfit(topic text, event text, payload jsonb, binary_payload bytea); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.explain_misfit(topic text, event text, payload jsonb, binary_payload bytea) IS 'Raises the error that says why a message does not fit into a frame; true if it does.';

-- Name: explain_refusal(text, text, boolean); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.explain_refusal(topic text, event text, payload_missing boolean) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    today text := to_char(clock_timestamp() at time zone 'utc', 'YYYY_MM_DD');
begin
    if topic is null or topic = '' then
        raise exception 'the message has no topic: it is %',
            case when topic is null then 'null' else 'an empty string' end
        using errcode = 'RT002', hint =
            'Give the topic that clients subscribe to. In a trigger for DELETE, new is '
            'null: build the topic with coalesce(new.id, old.id).';
    end if;
    if event is null or payload_missing then
        raise exception 'the message for topic % has no %: it is null',
            topic, case when event is null then 'event' else 'payload' end
        using errcode = 'RT004', hint =
            'Subscribers would never get it. The JSON value null is ''null''::jsonb.';
    end if;
    -- Unless a partition that somebody else made takes the row.
    if to_regclass('realtime.messages_' || today) is null
        and not exists (
            select from pg_inherits as i
            where i.inhparent = 'realtime.messages'::regclass
                and not i.inhdetachpending
                and i.inhrelid not in (
                    select to_regclass('realtime.' || p.partition_name)
                    from realtime.partitions() as p
                )
        ) then
        raise exception 'realtime.messages has no partition for today, messages_%',
            today
        using errcode = 'RT003', hint =
            'Run `realtime-db maintain`, or: select realtime.maintain(); and schedule '
            'it.';
    end if;
    -- Row level security applies to the caller. If no policy can let the row in, say so
    -- with the mend; a policy that is there and refuses speaks for itself.
    if not has_table_privilege('realtime.messages', 'insert') then
        raise exception '% may not insert into realtime.messages', current_user
        using errcode = '42501', hint = format(
            'Make the trigger function that sends security definer (with a pinned '
            'search_path), or: grant insert on realtime.messages to %I; and add a policy '
            'for insert.',
            current_user
        );
    end if;
    if row_security_active('realtime.messages'::regclass) and not exists (
        select from pg_policy as p
        where p.polrelid = 'realtime.messages'::regclass
            and p.polpermissive
            and p.polcmd in ('a', '*')
            and (
                p.polroles = array[0::oid]
                or exists (
                    select from unnest(p.polroles) as r (role_oid)
                    where pg_has_role(r.role_oid, 'usage')
                )
            )
    ) then
        raise exception 'no policy on realtime.messages lets % send to topic %',
            current_user, topic
        using errcode = '42501', hint = format(
            'Make the trigger function that sends security definer (with a pinned '
            'search_path), or add a policy: create policy "%s may send" on '
            'realtime.messages for insert to %I with check (realtime.topic() = %L);',
            current_user, current_user, topic
        );
    end if;
end;
$$;

-- Name: FUNCTION explain_refusal(topic text, event text, payload_missing boolean); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.explain_refusal(topic text, event text, payload_missing boolean) IS 'Raises the error that says why a message cannot be stored, and what to do about it.';

-- Name: maintain(date); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.maintain(today date DEFAULT ((clock_timestamp() AT TIME ZONE 'utc'::text))::date) RETURNS TABLE(action text, partition_name text, reason text)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '2s'
    AS $$
#variable_conflict use_column
declare
    settings record;
    wanted date;
    doomed date[];
    done integer := 0;
    held_since timestamptz;
begin
    if pg_is_in_recovery() then
        raise notice 'a standby: its primary is maintained, and it follows';
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended('realtime-db maintain', 0)) then
        raise notice 'another maintainer of realtime.messages is at work';
        return;
    end if;
    select s.retention_days, s.days_ahead into settings from realtime.settings as s;

    for wanted in
        select d.day
        from (
            select today + n from generate_series(0, settings.days_ahead) as n
            union all
            -- Retention may have been raised while they were on their way out.
            select p.day from realtime.partitions() as p
            where p.leaving
                and p.day < today
                and p.day >= today - settings.retention_days
        ) as d (day)
        where not exists (
            select from realtime.partitions() as p where p.day = d.day and p.attached
        )
        order by d.day < today, d.day
    loop
        partition_name := 'messages_' || to_char(wanted, 'YYYY_MM_DD');
        begin
            perform realtime.create_partition(wanted);
            action := 'created';
            reason := null;
        exception
            when insufficient_privilege then
                raise;
            when others then
                action := 'failed';
                reason := sqlerrm;
                raise warning 'no partition realtime.%: %', partition_name, sqlerrm;
        end;
        return next;
    end loop;

    -- Not worth a run that fails: partitions are what matters.
    begin
        delete from realtime.send_errors as e
        where e.happened_at < today - settings.retention_days;
    exception when others then
        raise warning 'old rows of realtime.send_errors stay: %', sqlerrm;
    end;

    doomed := array(
        select p.day
        from realtime.partitions() as p
        where p.day < today - settings.retention_days
            and (p.attached or p.detaching or p.leaving)
        order by p.day
    );
    if doomed = '{}' then
        return;
    end if;
    -- Senders wait for what follows, so that as much as can be is done before it: with
    -- this, which drops nothing, the function is compiled and its queries are planned.
    perform realtime.drop_partition(null);
    perform set_config('lock_timeout', '5ms', true);
    for attempt in 1..20 loop
        begin
            -- Only the table itself: its partitions are locked as they are dropped.
            lock table only realtime.messages in access exclusive mode;
            held_since := clock_timestamp();
            loop
                done := done + 1;
                partition_name := 'messages_' || to_char(doomed[done], 'YYYY_MM_DD');
                begin
                    perform realtime.drop_partition(doomed[done]);
                    action := 'dropped';
                    reason := null;
                exception
                    when insufficient_privilege then
                        raise;
                    when lock_not_available or deadlock_detected then
                        action := 'left';
                        reason := 'somebody uses it';
                    when others then
                        action := 'failed';
                        reason := sqlerrm;
                        raise warning 'cannot drop realtime.%: %',
                            partition_name, sqlerrm;
                end;
                return next;
                -- After the drop: on a busy machine 5 ms can pass before the first.
                exit when done = cardinality(doomed)
                    or clock_timestamp() > held_since + interval '5 ms';
            end loop;
            exit;
        exception when lock_not_available or deadlock_detected then
            -- The senders who queued up behind us pass in the meantime.
            perform pg_sleep(0.05 + random() * 0.1);
        end;
    end loop;

    action := 'left';
    reason := case
        when done = 0 then 'realtime.messages was in use all the time'
        else 'enough for one call'
    end;
    while done < cardinality(doomed) loop
        done := done + 1;
        partition_name := 'messages_' || to_char(doomed[done], 'YYYY_MM_DD');
        return next;
    end loop;
end;
$$;

-- Name: FUNCTION maintain(today date); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.maintain(today date) IS 'Makes the partitions of the days ahead and drops those past retention; for pg_cron.';

-- Name: message_fits(text, text, jsonb, bytea); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.message_fits(topic text, event text, payload jsonb, binary_payload bytea) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
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

-- Name: FUNCTION message_fits(topic text, event text, payload jsonb, binary_payload bytea); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.message_fits(topic text, event text, payload jsonb, binary_payload bytea) IS 'Whether a message fits into a frame: true, or an error that says why not.';

-- Name: partitions(); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.partitions() RETURNS TABLE(partition_name text, day date, attached boolean, detaching boolean, leaving boolean)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "DateStyle" TO 'ISO, YMD'
    AS $_$
    select
        c.relname::text,
        d.day,
        coalesce(not i.inhdetachpending, false),
        coalesce(i.inhdetachpending, false),
        -- The comment outlives a crash between the detach and the drop.
        coalesce(
            obj_description(c.oid, 'pg_class') = 'Being removed by realtime-db.', false
        )
    from pg_class as c
    left join pg_inherits as i
        on c.oid = i.inhrelid and i.inhparent = to_regclass('realtime.messages')
    cross join lateral (
        -- A sum, for make_date() fails on the 31st of February that a hand made.
        select case when c.relname ~ '^messages_[1-9]\d{3}_(0[1-9]|1[0-2])_\d\d$' then
            make_date(
                substr(c.relname, 10, 4)::integer, substr(c.relname, 15, 2)::integer, 1
            ) + substr(c.relname, 18, 2)::integer - 1
        end as day
    ) as d
    where c.relnamespace = to_regnamespace('realtime')
        and c.relkind = 'r'
        and c.relname = 'messages_' || to_char(d.day, 'YYYY_MM_DD')
        and case
            when i.inhrelid is null then not c.relispartition
            -- 0 for the table's oid, with which it would wait for a lock on the table.
            else pg_get_expr(c.relpartbound, 0) = format(
                'FOR VALUES FROM (%L) TO (%L)',
                to_char(d.day, 'YYYY-MM-DD HH24:MI:SS'),
                to_char(d.day + 1, 'YYYY-MM-DD HH24:MI:SS')
            )
        end
    order by d.day
$_$;

-- Name: FUNCTION partitions(); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.partitions() IS 'The daily partitions of realtime.messages that realtime-db made.';

-- Name: revoke(text, text, text); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.revoke(topic text DEFAULT NULL::text, role text DEFAULT NULL::text, sub text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform realtime.explain_refusal('realtime:revocations', '', false);
    -- All under one topic, so that a server that cannot read the WAL finds them.
    insert into realtime.messages (topic, extension, payload, private)
    values (
        'realtime:revocations',
        'revocation',
        jsonb_build_object('topic', topic, 'role', role, 'sub', sub),
        true
    );
end;
$$;

-- Name: FUNCTION revoke(topic text, role text, sub text); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.revoke(topic text, role text, sub text) IS 'Makes every server ask the policies again and close who may no longer read.';

-- Name: role_refusal(text); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.role_refusal(role_name text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    wanted record;
begin
    if role_name is null then
        return 'the token names no role';
    end if;
    select
        r.oid,
        r.rolsuper,
        c.relowner,
        s.rolsuper as login_is_superuser,
        pg_has_role(
            session_user,
            r.oid,
            case
                when current_setting('server_version_num')::integer >= 160000 then 'set'
                else 'member'
            end
        ) as granted
    into wanted
    from pg_roles as r
    inner join pg_roles as s on s.rolname = session_user
    inner join pg_class as c on c.oid = 'realtime.messages'::regclass
    where r.rolname = role_name;

    -- That goes for `none` too, with which `set role` would lead back to the login.
    if not found then
        return format('role "%s" does not exist', left(role_name, 63));
    elsif wanted.rolsuper then
        return format('role "%s" is a superuser', role_name);
    elsif role_name in (session_user, current_user) then
        return format('role "%s" is the server''s own', role_name);
    elsif pg_has_role(wanted.oid, wanted.relowner, 'usage') then
        return format('role "%s" has the rights of the owner of messages', role_name);
    elsif wanted.login_is_superuser then
        -- It may `set role` to all; what it was granted says what it is meant to.
        if role_name in ('anon', 'authenticated', 'service_role') or exists (
            with recursive granted (role_oid) as (
                select m.roleid
                from pg_auth_members as m
                where m.member = session_user::regrole
                union
                select m.roleid
                from pg_auth_members as m
                inner join granted as g on m.member = g.role_oid
            )

            select from granted as g where g.role_oid = wanted.oid
        ) then
            return null;
        end if;
    elsif wanted.granted then
        return null;
    end if;
    return format('role "%s" was not granted to "%s"', role_name, session_user);
end;
$$;

-- Name: FUNCTION role_refusal(role_name text); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.role_refusal(role_name text) IS 'Why a token may not name this role; null if it may.';

-- Name: send(jsonb, text, text, boolean); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.send(payload jsonb, event text, topic text, private boolean DEFAULT true) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
declare
    message_id uuid := pg_catalog.gen_random_uuid();
begin
    if pg_catalog.current_setting('realtime.on_send_error', true)
        operator(pg_catalog.=) 'warn' then
        begin
            perform pg_catalog.set_config('realtime.on_send_error', 'raise', true);
            message_id := realtime.send(payload, event, topic, private);
            perform pg_catalog.set_config('realtime.on_send_error', 'warn', true);
            return message_id;
        exception when others then
            perform realtime.warn_send_error(sqlstate, sqlerrm);
            return null;
        end;
    end if;

    if topic is null or event is null or payload is null
        or pg_catalog.row_security_active('realtime.messages'::pg_catalog.regclass)
        or (
            -- Looked for by the first send of a transaction: it costs a tenth of a send.
            nullif(pg_catalog.current_setting('realtime.topic', true), '') is null
            and pg_catalog.to_regclass(
                'realtime.messages_' operator(pg_catalog.||) pg_catalog.to_char(
                    pg_catalog.clock_timestamp() at time zone 'utc', 'YYYY_MM_DD'
                )
            ) is null
        ) then
        perform realtime.explain_refusal(topic, event, payload is null);
    end if;

    if pg_catalog.jsonb_typeof(payload) operator(pg_catalog.=) 'object'
        and not payload operator(pg_catalog.?) 'id' then
        payload := payload operator(pg_catalog.||)
            pg_catalog.jsonb_build_object('id', message_id);
    end if;
    -- An assignment, for `perform` would run a query.
    topic := pg_catalog.set_config('realtime.topic', topic, true);
    insert into realtime.messages (id, payload, event, topic, private, extension)
    values (
        message_id,
        payload,
        event,
        topic,
        coalesce(private, true),
        'broadcast'
    );
    return message_id;
end;
$$;

-- Name: FUNCTION send(payload jsonb, event text, topic text, private boolean); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.send(payload jsonb, event text, topic text, private boolean) IS 'Stores one broadcast, sent to subscribers at commit; returns the message''s id.';

-- Name: send_binary(bytea, text, text, boolean); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.send_binary(payload bytea, event text, topic text, private boolean DEFAULT true) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
declare
    message_id uuid := pg_catalog.gen_random_uuid();
begin
    if pg_catalog.current_setting('realtime.on_send_error', true)
        operator(pg_catalog.=) 'warn' then
        begin
            perform pg_catalog.set_config('realtime.on_send_error', 'raise', true);
            message_id := realtime.send_binary(payload, event, topic, private);
            perform pg_catalog.set_config('realtime.on_send_error', 'warn', true);
            return message_id;
        exception when others then
            perform realtime.warn_send_error(sqlstate, sqlerrm);
            return null;
        end;
    end if;

    if topic is null or event is null or payload is null
        or pg_catalog.row_security_active('realtime.messages'::pg_catalog.regclass)
        or (
            -- Looked for by the first send of a transaction: it costs a tenth of a send.
            nullif(pg_catalog.current_setting('realtime.topic', true), '') is null
            and pg_catalog.to_regclass(
                'realtime.messages_' operator(pg_catalog.||) pg_catalog.to_char(
                    pg_catalog.clock_timestamp() at time zone 'utc', 'YYYY_MM_DD'
                )
            ) is null
        ) then
        perform realtime.explain_refusal(topic, event, payload is null);
    end if;

    -- An assignment, for `perform` would run a query.
    topic := pg_catalog.set_config('realtime.topic', topic, true);
    insert into realtime.messages (id, binary_payload, event, topic, private, extension)
    values (
        message_id,
        payload,
        event,
        topic,
        coalesce(private, true),
        'broadcast'
    );
    return message_id;
end;
$$;

-- Name: FUNCTION send_binary(payload bytea, event text, topic text, private boolean); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.send_binary(payload bytea, event text, topic text, private boolean) IS 'Stores one broadcast of bytes, sent at commit; returns the message''s id.';

-- Name: send_many(jsonb[], text[], text[], boolean); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.send_many(payloads jsonb[], events text[], topics text[], private boolean DEFAULT true) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
declare
    wanted integer := pg_catalog.cardinality(payloads);
    sent bigint;
begin
    if pg_catalog.current_setting('realtime.on_send_error', true)
        operator(pg_catalog.=) 'warn' then
        begin
            perform pg_catalog.set_config('realtime.on_send_error', 'raise', true);
            sent := realtime.send_many(payloads, events, topics, private);
            perform pg_catalog.set_config('realtime.on_send_error', 'warn', true);
            return sent;
        exception when others then
            perform realtime.warn_send_error(sqlstate, sqlerrm);
            return 0;
        end;
    end if;

    if wanted is not null and pg_catalog.cardinality(events) operator(pg_catalog.=) 1
    then
        events := pg_catalog.array_fill(events[1], array[wanted]);
    end if;
    if wanted is not null and pg_catalog.cardinality(topics) operator(pg_catalog.=) 1
    then
        topics := pg_catalog.array_fill(topics[1], array[wanted]);
    end if;
    if wanted is null
        or pg_catalog.cardinality(events) is distinct from wanted
        or pg_catalog.cardinality(topics) is distinct from wanted then
        raise exception 'send_many got % payloads, % events and % topics',
            wanted, pg_catalog.cardinality(events), pg_catalog.cardinality(topics)
        using errcode = '2202E', hint =
            'Give an event and a topic for each payload, or a single one for all.';
    end if;
    -- Explains the first message that cannot be sent; none of them is null otherwise.
    perform realtime.explain_refusal(m.topic, m.event, m.payload is null)
    from rows from (
        pg_catalog.unnest(payloads),
        pg_catalog.unnest(events),
        pg_catalog.unnest(topics)
    ) with ordinality as m (payload, event, topic, number)
    where m.topic is null or m.event is null or m.payload is null
        or m.number operator(pg_catalog.=) 1;

    insert into realtime.messages (id, payload, event, topic, private, extension)
    select
        m.id,
        case
            when pg_catalog.jsonb_typeof(m.payload) operator(pg_catalog.=) 'object'
                and not m.payload operator(pg_catalog.?) 'id'
                then m.payload operator(pg_catalog.||)
                    pg_catalog.jsonb_build_object('id', m.id)
            else m.payload
        end,
        m.event,
        -- Returns the topic, and tells it to the policies that check this row.
        pg_catalog.set_config('realtime.topic', m.topic, true),
        coalesce(send_many.private, true),
        'broadcast'
    from (
        select
            pg_catalog.gen_random_uuid() as id,
            u.payload,
            u.event,
            u.topic
        from rows from (
            pg_catalog.unnest(payloads),
            pg_catalog.unnest(events),
            pg_catalog.unnest(topics)
        ) as u (payload, event, topic)
        offset 0 -- or each use of the id would be an id of its own
    ) as m;
    get diagnostics sent = row_count;
    return sent;
end;
$$;

-- Name: FUNCTION send_many(payloads jsonb[], events text[], topics text[], private boolean); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.send_many(payloads jsonb[], events text[], topics text[], private boolean) IS 'Stores many broadcasts with one statement; returns how many.';

-- Name: setup(); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.setup() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET client_min_messages TO 'warning'
    AS $_$
begin
    -- Refuses to go on from what a stranger made beforehand: his triggers and defaults
    -- would run as whoever calls setup(), and his functions he could change later. No
    -- stranger is who installed these functions or calls this one or may act as him, the
    -- owner of the database, or a superuser.
    do $$
    declare
        found_name text;
        found_owner name;
        all_powerful boolean := (
            select r.rolsuper from pg_roles as r where r.rolname = current_user
        );
    begin
        select o.object_name, r.rolname into found_name, found_owner
        from (
            select 'table ' || c.oid::regclass, c.relowner
            from pg_class as c
            where c.relnamespace = 'realtime'::regnamespace
                and c.relname in ('settings', 'messages', 'send_errors', 'polls')
            union all
            select 'sequence ' || c.oid::regclass, c.relowner
            from pg_class as c
            where c.relnamespace = 'realtime'::regnamespace
                and c.relname = 'messages_position'
            union all
            select 'function ' || p.oid::regprocedure, p.proowner
            from pg_proc as p
            where p.pronamespace = 'realtime'::regnamespace
                and p.proname in ('explain_misfit', 'message_fits')
            union all
            -- The owner of a schema may drop what is in it and put his own there. Whoever is
            -- no superuser knows him, for he had to grant rights in it.
            select 'schema realtime', n.nspowner
            from pg_namespace as n
            where n.nspname = 'realtime' and all_powerful
        ) as o (object_name, object_owner)
        inner join pg_roles as r on o.object_owner = r.oid
        where not r.rolsuper
            and r.rolname <> 'pg_database_owner'
            and not (pg_has_role(r.oid, 'usage') and not all_powerful)
            and r.oid not in (
                select p.proowner from pg_proc as p
                where p.oid = 'realtime.setup()'::regprocedure
                union all
                select d.datdba from pg_database as d where d.datname = current_database()
            )
        limit 1;
        if found then
            raise exception '% was there before and is owned by %', found_name, found_owner
            using errcode = '42501', hint = format(
                'If that is whom all of realtime-db shall belong to: set role %I; '
                'select realtime.setup(); reset role; otherwise look at it, and drop it or '
                'alter its owner.',
                found_owner
            );
        end if;
    end;
    $$;
    -- One row of settings. Change it with `update realtime.settings set …`.
    create table if not exists realtime.settings (
        only_row boolean primary key default true check (only_row),
        retention_days integer not null default 3 check (retention_days between 1 and 3650),
        days_ahead integer not null default 7 check (days_ahead between 1 and 366),
        max_payload_bytes integer not null default 3000500
        check (max_payload_bytes between 65536 and 268435456)
    );

    insert into realtime.settings default values on conflict do nothing;

    comment on table realtime.settings is
    'Settings of realtime-db: one row, changed with update.';
    comment on column realtime.settings.only_row is
    'Always true; keeps this table at one row.';
    comment on column realtime.settings.retention_days is
    'Whole days (UTC) that messages are kept before their partition is dropped.';
    comment on column realtime.settings.days_ahead is
    'Days for which partitions are made in advance.';
    comment on column realtime.settings.max_payload_bytes is
    'Largest payload, in bytes of its JSON text or of its binary form.';
    -- Raises the error that says why a message does not fit into a frame; message_fits()
    -- calls it for every message that is not small.
    --
    -- returns   true, if it fits after all
    -- errors    RT001 payload too large · RT002 topic missing · RT005 topic or event too
    --           long · RT006 two payloads
    create or replace function realtime.explain_misfit(
        topic text,
        event text,
        payload jsonb,
        binary_payload bytea
    )
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    as $$
    declare
        payload_bytes integer := coalesce(
            octet_length(binary_payload), octet_length(payload::text), 0
        );
        max_bytes integer;
    begin
        if payload is not null and binary_payload is not null then
            raise exception 'the message for topic % has a payload and a binary_payload',
                topic
            using errcode = 'RT006', hint = 'Set one of the two.';
        end if;
        if octet_length(topic) = 0 then
            raise exception 'the message has no topic: it is an empty string'
            using errcode = 'RT002', hint = 'Give the topic that clients subscribe to.';
        end if;
        if octet_length(topic) > 246 then
            raise exception 'the topic is % bytes long; at most 246 fit into a frame: %…',
                octet_length(topic), left(topic, 40)
            using errcode = 'RT005', hint = 'Use a shorter topic, such as a key or a hash.';
        end if;
        if octet_length(event) > 255 then
            raise exception 'the event is % bytes long; at most 255 fit into a frame: %…',
                octet_length(event), left(event, 40)
            using errcode = 'RT005', hint = 'Use a shorter event name.';
        end if;
        -- No row: a restore in progress, which must not refuse what was once accepted.
        select s.max_payload_bytes into max_bytes from realtime.settings as s;
        if payload_bytes > max_bytes then
            raise exception 'the payload for topic % is % bytes; at most % are allowed',
                topic, payload_bytes, max_bytes
            using errcode = 'RT001', hint =
                'Send the key and let clients fetch the rest, or: '
                'update realtime.settings set max_payload_bytes = …';
        end if;
        return true;
    end;
    $$;

    comment on function realtime.explain_misfit(text, text, jsonb, bytea) is
    'Raises the error that says why a message does not fit into a frame; true if it does.';
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
    -- Messages, one partition per UTC day. The first nine columns are those of Supabase
    -- Realtime, so that policies and code written for it work here.
    create sequence if not exists realtime.messages_position as bigint cache 32;

    create table if not exists realtime.messages (
        topic text not null,
        extension text not null,
        payload jsonb,
        event text,
        private boolean default false,
        -- The clock, not the start of the transaction: a row's time is never earlier
        -- than the moment its transaction got its id, and a resume relies on that.
        updated_at timestamp not null default (clock_timestamp() at time zone 'utc'),
        inserted_at timestamp not null default (clock_timestamp() at time zone 'utc'),
        id uuid not null default gen_random_uuid(),
        binary_payload bytea,
        transaction_id xid8 not null default pg_current_xact_id(),
        position bigint not null default nextval('realtime.messages_position'),
        expires_at timestamp,
        -- Topic first: a replay reads one topic. Nothing random: few pages change, so
        -- little WAL is written. No other index, for every insert would pay for it.
        primary key (topic, inserted_at, position),
        constraint messages_fit check (
            realtime.message_fits(topic, event, payload, binary_payload)
        )
    ) partition by range (inserted_at);

    -- What `create table` cannot say, or a hand has undone. Looked at first, for each of
    -- these makes senders wait, and setup() runs beside them.
    do $$
    declare
        column_name text;
    begin
        if not exists (
            select from pg_depend
            where objid = 'realtime.messages_position'::regclass and deptype = 'a'
        ) then
            alter sequence realtime.messages_position owned by realtime.messages.position;
        end if;
        if not (
            select c.relrowsecurity from pg_class as c
            where c.oid = 'realtime.messages'::regclass
        ) then
            alter table realtime.messages enable row level security;
        end if;
        if not exists (
            select from pg_constraint
            where conrelid = 'realtime.messages'::regclass and conname = 'messages_fit'
        ) then
            alter table realtime.messages add constraint messages_fit check (
                realtime.message_fits(topic, event, payload, binary_payload)
            );
        end if;
        if not exists (
            select from pg_attribute
            where attrelid = 'realtime.messages'::regclass
                and attname = 'expires_at'
                and not attisdropped
        ) then
            -- Without a default, nothing is rewritten.
            alter table realtime.messages add column expires_at timestamp;
        end if;
        if exists (
            select from pg_settings
            where name = 'default_toast_compression' and 'lz4' = any (enumvals)
        ) then
            for column_name in
                select attname from pg_attribute
                where attrelid = 'realtime.messages'::regclass
                    and attname in ('payload', 'binary_payload')
                    and attcompression <> 'l'
            loop
                execute format(
                    'alter table realtime.messages alter column %I set compression lz4',
                    column_name
                );
            end loop;
        end if;
    end;
    $$;

    comment on sequence realtime.messages_position is
    'Numbers messages within their transaction.';
    comment on table realtime.messages is
    'Messages to broadcast. A row reaches its subscribers when its transaction commits.';
    comment on column realtime.messages.topic is
    'What clients subscribe to, without the prefix realtime: that they put on the wire.';
    comment on column realtime.messages.extension is
    'broadcast; rows of any other extension are not sent.';
    comment on column realtime.messages.payload is
    'The message: any JSON value. Null when binary_payload is set.';
    comment on column realtime.messages.event is
    'The name that clients listen for.';
    comment on column realtime.messages.private is
    'True: only for subscribers whom the policies on this table let read the topic.';
    comment on column realtime.messages.updated_at is
    'UTC. Kept for compatibility; messages are not updated.';
    comment on column realtime.messages.inserted_at is
    'UTC, whatever the TimeZone of the session. Decides the partition.';
    comment on column realtime.messages.id is
    'The message''s id, which clients see as meta.id.';
    comment on column realtime.messages.binary_payload is
    'The message as bytes. Null when payload is set.';
    comment on column realtime.messages.transaction_id is
    'The transaction that wrote the row; a resume asks for what it has not seen by it.';
    comment on column realtime.messages.position is
    'Grows from row to row within a transaction: the order of insertion.';
    comment on column realtime.messages.expires_at is
    'UTC. From then on the row is not replayed; null: until its partition is dropped.';

    -- Partitions that were there before a column have no comment on it.
    do $$
    declare
        partition_name text;
    begin
        for partition_name in
            select p.partition_name from realtime.partitions() as p
            where p.attached and not exists (
                select from pg_description as d
                inner join pg_attribute as a
                    on d.objoid = a.attrelid and d.objsubid = a.attnum
                where a.attrelid = to_regclass('realtime.' || p.partition_name)
                    and a.attname = 'expires_at'
            )
        loop
            execute format(
                'comment on column realtime.%I.expires_at is %L',
                partition_name,
                (
                    select col_description(a.attrelid, a.attnum) from pg_attribute as a
                    where a.attrelid = 'realtime.messages'::regclass
                        and a.attname = 'expires_at'
                )
            );
        end loop;
    end;
    $$;
    -- What realtime.on_send_error = 'warn' swallowed. Rows are only added, so that no
    -- writer waits for another; maintenance deletes those older than the messages.
    create table if not exists realtime.send_errors (
        happened_at timestamptz not null default clock_timestamp(),
        error_code text not null,
        message text not null
    );

    comment on table realtime.send_errors is
    'Messages that were not stored because realtime.on_send_error was warn.';
    comment on column realtime.send_errors.happened_at is
    'When the send failed.';
    comment on column realtime.send_errors.error_code is
    'The SQLSTATE of the error.';
    comment on column realtime.send_errors.message is
    'The text of the error, at most 500 characters.';
    -- What a server saw that cannot follow the WAL and asks the table: poll n brought what
    -- its snapshot shows and that of poll n - 1 does not. So the order of a topic is fixed:
    -- by the first poll that shows a message, then by transaction, then by position.
    create table if not exists realtime.polls (
        id bigint primary key,
        seen pg_snapshot not null,
        taken_at timestamp not null default (clock_timestamp() at time zone 'utc')
    );

    comment on table realtime.polls is
    'Which transactions each poll of a server saw that cannot follow the WAL.';
    comment on column realtime.polls.id is
    'The number of the poll; the next has the next.';
    comment on column realtime.polls.seen is
    'The transactions that had ended.';
    comment on column realtime.polls.taken_at is
    'When, in UTC; the server deletes polls that are older than the messages.';
    -- What the WAL reader follows: inserts only, as if into one table, so that the reader
    -- sees one relation and never the name of a partition.
    do $$
    begin
        if not exists (select from pg_publication where pubname = 'realtime_messages') then
            create publication realtime_messages for table realtime.messages
            with (publish = 'insert', publish_via_partition_root = true);
        elsif not exists (
            -- A restore without the table leaves the publication empty.
            select from pg_publication_tables
            where pubname = 'realtime_messages' and schemaname = 'realtime'
        ) then
            alter publication realtime_messages add table realtime.messages;
        end if;
    end;
    $$;

    comment on publication realtime_messages is
    'Inserts into realtime.messages, for the readers of realtime-db.';
    -- The roles that tokens name. Made only if missing and only by who may make roles;
    -- the installer becomes a member, so that a server that logs in as it can `set role`.
    do $$
    declare
        role_name text;
    begin
        foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
            if not exists (select from pg_roles where rolname = role_name) then
                if not (
                    select r.rolsuper or r.rolcreaterole
                    from pg_roles as r
                    where r.rolname = current_user
                ) then
                    raise warning 'role % is missing and % may not create roles; skipped',
                        role_name, current_user
                    using hint = format(
                        'As an administrator: create role %I nologin noinherit; '
                        'grant %I to %I; and, when all are there, as %I: '
                        'select realtime.setup();',
                        role_name, role_name, current_user, current_user
                    );
                    continue;
                end if;
                execute format('create role %I nologin noinherit', role_name);
            end if;
            if not pg_has_role(current_user, role_name, 'member')
                or (
                    current_setting('server_version_num')::integer >= 160000
                    and not pg_has_role(current_user, role_name, 'set')
                ) then
                begin
                    if current_setting('server_version_num')::integer >= 160000 then
                        execute format(
                            'grant %I to %I with set true, inherit false',
                            role_name, current_user
                        );
                    else
                        execute format('grant %I to %I', role_name, current_user);
                    end if;
                exception when insufficient_privilege then
                    raise warning '% is not a member of role % and may not become one',
                        current_user, role_name
                    using hint = format(
                        'As an administrator: grant %I to %I;', role_name, current_user
                    );
                end;
            end if;
        end loop;
    end;
    $$;
    -- Rights of the roles that tokens name. Row level security on realtime.messages
    -- decides which rows: without a policy of yours, none.
    do $$
    declare
        role_name text;
    begin
        foreach role_name in array array['anon', 'authenticated', 'service_role'] loop
            if exists (select from pg_roles where rolname = role_name) then
                execute format('grant usage on schema realtime to %I', role_name);
                execute format(
                    'grant select, insert, update on realtime.messages to %I', role_name
                );
            end if;
        end loop;
        if exists (select from pg_roles where rolname = 'service_role') then
            grant execute on function realtime.revoke(text, text, text) to service_role;
        end if;
    end;
    $$;

    -- The check on message sizes and the default of `position` run as the writer, whoever
    -- that is. Taking a number or reading a limit does no harm.
    grant usage on sequence realtime.messages_position to public;
    grant select on realtime.settings to public;
    -- service_role may do all by policy, since BYPASSRLS can only be given by a superuser;
    -- and what no policy of yours can allow.
    do $$
    begin
        if exists (select from pg_roles where rolname = 'service_role')
            and not exists (
                select from pg_policy
                where polrelid = 'realtime.messages'::regclass
                    and polname = 'service_role may do all'
            ) then
            create policy "service_role may do all" on realtime.messages
            to service_role using (true) with check (true);
        end if;
        -- Whom a policy of yours lets insert anything cannot make servers busy with it, nor
        -- see who was revoked.
        if not exists (
            select from pg_policy
            where polrelid = 'realtime.messages'::regclass
                and polname = 'revocations by realtime.revoke only'
        ) then
            create policy "revocations by realtime.revoke only" on realtime.messages
            as restrictive to public using (
                extension operator(pg_catalog.<>) 'revocation'
                or pg_catalog.has_function_privilege(
                    'realtime.revoke(text, text, text)', 'execute'
                )
            );
        end if;
    end;
    $$;
    perform realtime.create_partition(d.day::date)
    from generate_series(
        (now() at time zone 'utc')::date - 1,
        (now() at time zone 'utc')::date + (select s.days_ahead from realtime.settings as s),
        interval '1 day'
    ) as d (day);
end;
$_$;

-- Name: FUNCTION setup(); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.setup() IS 'Makes the tables, partitions, publication, roles and rights; harmless to call again.';

-- Name: topic(); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.topic() RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select nullif(pg_catalog.current_setting('realtime.topic', true), '')
$$;

-- Name: FUNCTION topic(); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.topic() IS 'The topic being read or written, for policies; null if there is none.';

-- Name: version(); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.version() RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    select '0.4.0'
$$;

-- Name: FUNCTION version(); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.version() IS 'The release of realtime-db whose functions are installed.';

-- Name: warn_null_topic(text, text, text); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.warn_null_topic(table_schema text, table_name text, context text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

-- Name: FUNCTION warn_null_topic(table_schema text, table_name text, context text); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.warn_null_topic(table_schema text, table_name text, context text) IS 'Warns that a row-level trigger built a null topic for a deleted row.';

-- Name: warn_send_error(text, text); Type: FUNCTION; Schema: realtime; Owner: -

CREATE FUNCTION realtime.warn_send_error(sqlstate_code text, message text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    raise warning 'WarnSendingBroadcastMessage: %', message
    using errcode = sqlstate_code;
    -- Missing between `alter extension … update` and `select realtime.setup()`.
    if to_regclass('realtime.send_errors') is not null then
        insert into realtime.send_errors (error_code, message)
        values (sqlstate_code, left(warn_send_error.message, 500));
    end if;
end;
$$;

-- Name: FUNCTION warn_send_error(sqlstate_code text, message text); Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON FUNCTION realtime.warn_send_error(sqlstate_code text, message text) IS 'Turns an error of a send into a warning and counts it in realtime.send_errors.';

-- Name: messages; Type: TABLE; Schema: realtime; Owner: -

CREATE TABLE realtime.messages (
    topic text NOT NULL,
    extension text NOT NULL,
    payload jsonb,
    event text,
    private boolean DEFAULT false,
    updated_at timestamp without time zone DEFAULT (clock_timestamp() AT TIME ZONE 'utc'::text) NOT NULL,
    inserted_at timestamp without time zone DEFAULT (clock_timestamp() AT TIME ZONE 'utc'::text) NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    binary_payload bytea,
    transaction_id xid8 DEFAULT pg_current_xact_id() NOT NULL,
    "position" bigint NOT NULL,
    expires_at timestamp without time zone,
    CONSTRAINT messages_fit CHECK (realtime.message_fits(topic, event, payload, binary_payload))
)
PARTITION BY RANGE (inserted_at);

-- Name: TABLE messages; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON TABLE realtime.messages IS 'Messages to broadcast. A row reaches its subscribers when its transaction commits.';

-- Name: COLUMN messages.topic; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.topic IS 'What clients subscribe to, without the prefix realtime: that they put on the wire.';

-- Name: COLUMN messages.extension; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.extension IS 'broadcast; rows of any other extension are not sent.';

-- Name: COLUMN messages.payload; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.payload IS 'The message: any JSON value. Null when binary_payload is set.';

-- Name: COLUMN messages.event; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.event IS 'The name that clients listen for.';

-- Name: COLUMN messages.private; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.private IS 'True: only for subscribers whom the policies on this table let read the topic.';

-- Name: COLUMN messages.updated_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.updated_at IS 'UTC. Kept for compatibility; messages are not updated.';

-- Name: COLUMN messages.inserted_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.inserted_at IS 'UTC, whatever the TimeZone of the session. Decides the partition.';

-- Name: COLUMN messages.id; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.id IS 'The message''s id, which clients see as meta.id.';

-- Name: COLUMN messages.binary_payload; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.binary_payload IS 'The message as bytes. Null when payload is set.';

-- Name: COLUMN messages.transaction_id; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.transaction_id IS 'The transaction that wrote the row; a resume asks for what it has not seen by it.';

-- Name: COLUMN messages."position"; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages."position" IS 'Grows from row to row within a transaction: the order of insertion.';

-- Name: COLUMN messages.expires_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages.expires_at IS 'UTC. From then on the row is not replayed; null: until its partition is dropped.';

-- Name: messages_position; Type: SEQUENCE; Schema: realtime; Owner: -

CREATE SEQUENCE realtime.messages_position
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 32;

-- Name: messages_position; Type: SEQUENCE OWNED BY; Schema: realtime; Owner: -

ALTER SEQUENCE realtime.messages_position OWNED BY realtime.messages."position";

-- Name: SEQUENCE messages_position; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON SEQUENCE realtime.messages_position IS 'Numbers messages within their transaction.';

-- Name: messages_DAY; Type: TABLE; Schema: realtime; Owner: -

CREATE TABLE realtime.messages_DAY (
    topic text CONSTRAINT messages_topic_not_null NOT NULL,
    extension text CONSTRAINT messages_extension_not_null NOT NULL,
    payload jsonb,
    event text,
    private boolean DEFAULT false,
    updated_at timestamp without time zone DEFAULT (clock_timestamp() AT TIME ZONE 'utc'::text) CONSTRAINT messages_updated_at_not_null NOT NULL,
    inserted_at timestamp without time zone DEFAULT (clock_timestamp() AT TIME ZONE 'utc'::text) CONSTRAINT messages_inserted_at_not_null NOT NULL,
    id uuid DEFAULT gen_random_uuid() CONSTRAINT messages_id_not_null NOT NULL,
    binary_payload bytea,
    transaction_id xid8 DEFAULT pg_current_xact_id() CONSTRAINT messages_transaction_id_not_null NOT NULL,
    "position" bigint DEFAULT nextval('realtime.messages_position'::regclass) CONSTRAINT messages_position_not_null NOT NULL,
    expires_at timestamp without time zone,
    CONSTRAINT messages_fit CHECK (realtime.message_fits(topic, event, payload, binary_payload))
);

-- Name: COLUMN messages_DAY.topic; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.topic IS 'What clients subscribe to, without the prefix realtime: that they put on the wire.';

-- Name: COLUMN messages_DAY.extension; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.extension IS 'broadcast; rows of any other extension are not sent.';

-- Name: COLUMN messages_DAY.payload; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.payload IS 'The message: any JSON value. Null when binary_payload is set.';

-- Name: COLUMN messages_DAY.event; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.event IS 'The name that clients listen for.';

-- Name: COLUMN messages_DAY.private; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.private IS 'True: only for subscribers whom the policies on this table let read the topic.';

-- Name: COLUMN messages_DAY.updated_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.updated_at IS 'UTC. Kept for compatibility; messages are not updated.';

-- Name: COLUMN messages_DAY.inserted_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.inserted_at IS 'UTC, whatever the TimeZone of the session. Decides the partition.';

-- Name: COLUMN messages_DAY.id; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.id IS 'The message''s id, which clients see as meta.id.';

-- Name: COLUMN messages_DAY.binary_payload; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.binary_payload IS 'The message as bytes. Null when payload is set.';

-- Name: COLUMN messages_DAY.transaction_id; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.transaction_id IS 'The transaction that wrote the row; a resume asks for what it has not seen by it.';

-- Name: COLUMN messages_DAY."position"; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY."position" IS 'Grows from row to row within a transaction: the order of insertion.';

-- Name: COLUMN messages_DAY.expires_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.messages_DAY.expires_at IS 'UTC. From then on the row is not replayed; null: until its partition is dropped.';

-- Name: polls; Type: TABLE; Schema: realtime; Owner: -

CREATE TABLE realtime.polls (
    id bigint NOT NULL,
    seen pg_snapshot NOT NULL,
    taken_at timestamp without time zone DEFAULT (clock_timestamp() AT TIME ZONE 'utc'::text) NOT NULL
);

-- Name: TABLE polls; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON TABLE realtime.polls IS 'Which transactions each poll of a server saw that cannot follow the WAL.';

-- Name: COLUMN polls.id; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.polls.id IS 'The number of the poll; the next has the next.';

-- Name: COLUMN polls.seen; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.polls.seen IS 'The transactions that had ended.';

-- Name: COLUMN polls.taken_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.polls.taken_at IS 'When, in UTC; the server deletes polls that are older than the messages.';

-- Name: realtime_db_release; Type: TABLE; Schema: realtime; Owner: -

CREATE TABLE realtime.realtime_db_release (
    version_num character varying(32) NOT NULL
);

-- Name: send_errors; Type: TABLE; Schema: realtime; Owner: -

CREATE TABLE realtime.send_errors (
    happened_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    error_code text NOT NULL,
    message text NOT NULL
);

-- Name: TABLE send_errors; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON TABLE realtime.send_errors IS 'Messages that were not stored because realtime.on_send_error was warn.';

-- Name: COLUMN send_errors.happened_at; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.send_errors.happened_at IS 'When the send failed.';

-- Name: COLUMN send_errors.error_code; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.send_errors.error_code IS 'The SQLSTATE of the error.';

-- Name: COLUMN send_errors.message; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.send_errors.message IS 'The text of the error, at most 500 characters.';

-- Name: settings; Type: TABLE; Schema: realtime; Owner: -

CREATE TABLE realtime.settings (
    only_row boolean DEFAULT true NOT NULL,
    retention_days integer DEFAULT 3 NOT NULL,
    days_ahead integer DEFAULT 7 NOT NULL,
    max_payload_bytes integer DEFAULT 3000500 NOT NULL,
    CONSTRAINT settings_days_ahead_check CHECK (((days_ahead >= 1) AND (days_ahead <= 366))),
    CONSTRAINT settings_max_payload_bytes_check CHECK (((max_payload_bytes >= 65536) AND (max_payload_bytes <= 268435456))),
    CONSTRAINT settings_only_row_check CHECK (only_row),
    CONSTRAINT settings_retention_days_check CHECK (((retention_days >= 1) AND (retention_days <= 3650)))
);

-- Name: TABLE settings; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON TABLE realtime.settings IS 'Settings of realtime-db: one row, changed with update.';

-- Name: COLUMN settings.only_row; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.settings.only_row IS 'Always true; keeps this table at one row.';

-- Name: COLUMN settings.retention_days; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.settings.retention_days IS 'Whole days (UTC) that messages are kept before their partition is dropped.';

-- Name: COLUMN settings.days_ahead; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.settings.days_ahead IS 'Days for which partitions are made in advance.';

-- Name: COLUMN settings.max_payload_bytes; Type: COMMENT; Schema: realtime; Owner: -

COMMENT ON COLUMN realtime.settings.max_payload_bytes IS 'Largest payload, in bytes of its JSON text or of its binary form.';

-- Name: messages_DAY; Type: TABLE ATTACH; Schema: realtime; Owner: -

ALTER TABLE ONLY realtime.messages ATTACH PARTITION realtime.messages_DAY FOR VALUES FROM ('DAY 00:00:00') TO ('DAY 00:00:00');

-- Name: messages position; Type: DEFAULT; Schema: realtime; Owner: -

ALTER TABLE ONLY realtime.messages ALTER COLUMN "position" SET DEFAULT nextval('realtime.messages_position'::regclass);

-- Name: messages messages_pkey; Type: CONSTRAINT; Schema: realtime; Owner: -

ALTER TABLE ONLY realtime.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (topic, inserted_at, "position");

-- Name: messages_DAY messages_DAY_pkey; Type: CONSTRAINT; Schema: realtime; Owner: -

ALTER TABLE ONLY realtime.messages_DAY
    ADD CONSTRAINT messages_DAY_pkey PRIMARY KEY (topic, inserted_at, "position");

-- Name: polls polls_pkey; Type: CONSTRAINT; Schema: realtime; Owner: -

ALTER TABLE ONLY realtime.polls
    ADD CONSTRAINT polls_pkey PRIMARY KEY (id);

-- Name: realtime_db_release realtime_db_release_pkc; Type: CONSTRAINT; Schema: realtime; Owner: -

ALTER TABLE ONLY realtime.realtime_db_release
    ADD CONSTRAINT realtime_db_release_pkc PRIMARY KEY (version_num);

-- Name: settings settings_pkey; Type: CONSTRAINT; Schema: realtime; Owner: -

ALTER TABLE ONLY realtime.settings
    ADD CONSTRAINT settings_pkey PRIMARY KEY (only_row);

-- Name: messages_DAY_pkey; Type: INDEX ATTACH; Schema: realtime; Owner: -

ALTER INDEX realtime.messages_pkey ATTACH PARTITION realtime.messages_DAY_pkey;

-- Name: messages; Type: ROW SECURITY; Schema: realtime; Owner: -

ALTER TABLE realtime.messages ENABLE ROW LEVEL SECURITY;

-- Name: messages_DAY; Type: ROW SECURITY; Schema: realtime; Owner: -

ALTER TABLE realtime.messages_DAY ENABLE ROW LEVEL SECURITY;

-- Name: messages revocations by realtime.revoke only; Type: POLICY; Schema: realtime; Owner: -

CREATE POLICY "revocations by realtime.revoke only" ON realtime.messages AS RESTRICTIVE USING (((extension <> 'revocation'::text) OR has_function_privilege('realtime.revoke(text, text, text)'::text, 'execute'::text)));

-- Name: messages service_role may do all; Type: POLICY; Schema: realtime; Owner: -

CREATE POLICY "service_role may do all" ON realtime.messages TO service_role USING (true) WITH CHECK (true);

-- Name: realtime_messages; Type: PUBLICATION; Schema: -; Owner: -

CREATE PUBLICATION realtime_messages WITH (publish = 'insert', publish_via_partition_root = true);

-- Name: PUBLICATION realtime_messages; Type: COMMENT; Schema: -; Owner: -

COMMENT ON PUBLICATION realtime_messages IS 'Inserts into realtime.messages, for the readers of realtime-db.';

-- Name: realtime_messages messages; Type: PUBLICATION TABLE; Schema: realtime; Owner: -

ALTER PUBLICATION realtime_messages ADD TABLE ONLY realtime.messages;

-- Name: SCHEMA realtime; Type: ACL; Schema: -; Owner: -

GRANT USAGE ON SCHEMA realtime TO anon;
GRANT USAGE ON SCHEMA realtime TO authenticated;
GRANT USAGE ON SCHEMA realtime TO service_role;

-- Name: FUNCTION authorize(topic text, claims jsonb, headers jsonb, write_extension text, OUT broadcast boolean, OUT presence boolean, OUT refusal text, OUT refusal_code text); Type: ACL; Schema: realtime; Owner: -

REVOKE ALL ON FUNCTION realtime.authorize(topic text, claims jsonb, headers jsonb, write_extension text, OUT broadcast boolean, OUT presence boolean, OUT refusal text, OUT refusal_code text) FROM PUBLIC;

-- Name: FUNCTION create_partition(day date); Type: ACL; Schema: realtime; Owner: -

REVOKE ALL ON FUNCTION realtime.create_partition(day date) FROM PUBLIC;

-- Name: FUNCTION drop_partition(day date); Type: ACL; Schema: realtime; Owner: -

REVOKE ALL ON FUNCTION realtime.drop_partition(day date) FROM PUBLIC;

-- Name: FUNCTION maintain(today date); Type: ACL; Schema: realtime; Owner: -

REVOKE ALL ON FUNCTION realtime.maintain(today date) FROM PUBLIC;

-- Name: FUNCTION revoke(topic text, role text, sub text); Type: ACL; Schema: realtime; Owner: -

REVOKE ALL ON FUNCTION realtime.revoke(topic text, role text, sub text) FROM PUBLIC;
GRANT ALL ON FUNCTION realtime.revoke(topic text, role text, sub text) TO service_role;

-- Name: FUNCTION role_refusal(role_name text); Type: ACL; Schema: realtime; Owner: -

REVOKE ALL ON FUNCTION realtime.role_refusal(role_name text) FROM PUBLIC;

-- Name: TABLE messages; Type: ACL; Schema: realtime; Owner: -

GRANT SELECT,INSERT,UPDATE ON TABLE realtime.messages TO anon;
GRANT SELECT,INSERT,UPDATE ON TABLE realtime.messages TO authenticated;
GRANT SELECT,INSERT,UPDATE ON TABLE realtime.messages TO service_role;

-- Name: SEQUENCE messages_position; Type: ACL; Schema: realtime; Owner: -

GRANT USAGE ON SEQUENCE realtime.messages_position TO PUBLIC;

-- Name: TABLE settings; Type: ACL; Schema: realtime; Owner: -

GRANT SELECT ON TABLE realtime.settings TO PUBLIC;

-- PostgreSQL database dump complete
