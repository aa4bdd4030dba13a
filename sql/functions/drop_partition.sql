-- Drops the partition of realtime.messages for a UTC day, with its messages.
--
-- returns   whether there was one. A table that was detached by hand is kept
-- effects   while it is attached, this locks realtime.messages against readers and
--           senders until the transaction ends: commit at once
-- errors    55P03 a lock was not to be had within 5 ms: try again. Waiting longer would
--           hold up the senders, who queue behind
--           · 42501 not the owner of realtime.messages
create or replace function realtime.drop_partition(day date)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '5ms'
as $$
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

comment on function realtime.drop_partition(date) is
'Drops the partition of realtime.messages for a UTC day; returns if there was one.';

revoke execute on function realtime.drop_partition(date) from public;
