-- Raises the error that says why a message cannot be stored and what to do about it.
-- The send functions call it only when something looks wrong.
--
-- payload_missing   whether the payload is null; payloads themselves are not passed on
-- errors            RT002 topic missing · RT003 no partition for today · RT004 payload
--                   or event missing · 42501 no policy lets the caller insert
create or replace function realtime.explain_refusal(
    topic text,
    event text,
    payload_missing boolean
)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
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

comment on function realtime.explain_refusal(text, text, boolean) is
'Raises the error that says why a message cannot be stored, and what to do about it.';
