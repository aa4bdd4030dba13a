-- Makes what holds data or belongs to the whole database: the settings, the messages
-- table with its partitions, the publication, the roles and their rights. Call it
-- after `create extension` and after `alter extension … update`; `realtime-db migrate`
-- calls it too. Calling it again does no harm.
--
-- These objects are not members of the extension: partitions made later under a member
-- table would make a dump that cannot be restored, and `drop extension` would drop the
-- messages.
--
-- errors    42501 no right to create a publication or a table; or a table of this name
--           was there before and is a stranger's
create or replace function realtime.setup()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set client_min_messages = 'warning'
as $setup$
begin
    -- include: schema/owners.sql
    -- include: schema/settings.sql
    -- include: schema/explain_misfit.sql
    -- include: schema/message_fits.sql
    -- include: schema/messages.sql
    -- include: schema/send_errors.sql
    -- include: schema/polls.sql
    -- include: schema/publication.sql
    -- include: access/roles.sql
    -- include: access/grants.sql
    -- include: access/policies.sql
    perform realtime.create_partition(d.day::date)
    from generate_series(
        (now() at time zone 'utc')::date - 1,
        (now() at time zone 'utc')::date + (select s.days_ahead from realtime.settings as s),
        interval '1 day'
    ) as d (day);
end;
$setup$;

comment on function realtime.setup() is
'Makes the tables, partitions, publication, roles and rights; harmless to call again.';
