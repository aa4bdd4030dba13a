-- The daily partitions of realtime.messages: tables named messages_YYYY_MM_DD that hold
-- just that UTC day. Anything else is somebody's own and is never touched.
--
-- attached    whether messages go there: false while it is being detached, and for a
--             table that is not or no longer a partition
-- detaching   a `detach … concurrently` was begun and is not finished
-- leaving     realtime-db has begun to remove it. A table that is neither attached nor
--             leaving was detached by hand, to keep it: it is never dropped
create or replace function realtime.partitions()
returns table (
    partition_name text,
    day date,
    attached boolean,
    detaching boolean,
    leaving boolean
)
language sql
stable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
as $$
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
$$;

comment on function realtime.partitions() is
'The daily partitions of realtime.messages that realtime-db made.';
