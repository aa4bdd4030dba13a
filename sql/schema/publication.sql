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
