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
