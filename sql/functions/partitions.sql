-- The daily partitions of realtime.messages: tables named messages_YYYY_MM_DD that hold
-- just that UTC day. Anything else is somebody's own and is never touched.
--
-- attached   false while a `detach … concurrently` was begun and not finished, and for
--            a table made for a day that was not attached
create or replace function realtime.partitions()
returns table (partition_name text, day date, attached boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
as $$
    select
        c.relname::text,
        d.day,
        coalesce(not i.inhdetachpending, false)
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
        and (
            i.inhrelid is null
            or pg_get_expr(c.relpartbound, c.oid) = format(
                'FOR VALUES FROM (%L) TO (%L)',
                to_char(d.day, 'YYYY-MM-DD HH24:MI:SS'),
                to_char(d.day + 1, 'YYYY-MM-DD HH24:MI:SS')
            )
        )
    order by d.day
$$;

comment on function realtime.partitions() is
'The daily partitions of realtime.messages that realtime-db made.';
