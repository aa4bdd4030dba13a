-- Makes every server ask the policies again, at once, for those who are on private
-- channels: who may no longer read is closed, and what was known of the right to write
-- is forgotten. Call it when you have taken a right away, in the same transaction.
--
-- topic     of the channels; null: any
-- role      of the users' tokens; null: any
-- sub       of the users' tokens; null: any
-- effects   stores a row of realtime.messages with the extension revocation, by which
--           servers hear of it at commit. It takes nothing away from anybody itself:
--           the policies decide
-- errors    RT003 no partition for today · 42501 the caller may not insert. For the
--           owner and service_role
create or replace function realtime.revoke(
    topic text default null,
    role text default null,
    sub text default null
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
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

comment on function realtime.revoke(text, text, text) is
'Makes every server ask the policies again and close who may no longer read.';

revoke execute on function realtime.revoke(text, text, text) from public;
