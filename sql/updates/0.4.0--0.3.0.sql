-- 0.3.0 knows of no revocations, no polls and no messages that expire. The policy would
-- ask for a function that is gone.
drop policy if exists
"revocations by realtime.revoke only" on realtime.messages; -- noqa: RF05
drop table if exists realtime.polls;
alter table realtime.messages drop column if exists expires_at;
