-- The counts of swallowed errors: 0.1.0 has nothing that writes or reads them.
drop table if exists realtime.send_errors;
