-- Makes the partitions of realtime.messages for today and the days ahead, and drops
-- those that are older than realtime.settings.retention_days. For pg_cron, every hour:
--
--     select cron.schedule('realtime-db maintain', '7 * * * *',
--                          'select * from realtime.maintain()');
--
-- today     the UTC day of the server's clock; another one is for tests
-- returns   a row for each partition that was 'created' or 'dropped', is 'left' for the
--           next call, or 'failed'; reason says why. None of the last two is an error:
--           that would undo the rest. A failure is a warning as well
-- effects   to drop beside readers takes `detach … concurrently`, which no function can
--           do. So this asks for the lock that senders wait for, 5 ms at a time, 20
--           times in some 2 seconds, and begins no drop when it has had the lock for
--           5 ms; what is left, it leaves for the next call. Call it in a transaction
--           of its own. Does nothing on a standby and beside another maintainer
-- errors    42501 not the owner of realtime.messages. Runs with the rights of its
--           caller, and only the owner may call it
create or replace function realtime.maintain(
    today date default
    (pg_catalog.clock_timestamp() at time zone 'utc')::pg_catalog.date
)
returns table (action text, partition_name text, reason text)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
-- To make a partition waits for other maintenance of the table only; senders do not
-- queue behind it.
set lock_timeout = '2s'
as $$
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

comment on function realtime.maintain(date) is
'Makes the partitions of the days ahead and drops those past retention; for pg_cron.';

revoke execute on function realtime.maintain(date) from public;
