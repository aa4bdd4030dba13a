select
    gen_random_uuid() as id,
    n.topic,
    n.record,
    o.record as old_record
from (
    select
        __new_pair__ as pair,
        __topic__ as topic,
        __record__ as record
    from new_rows as new
) as n
-- A full join, for it is never a nested loop: the session keeps the
-- plan of its first statement, which may have been of one row.
full join (
    select
        __old_pair__ as pair,
        __old_record__ as record
    from old_rows as old
) as o on n.pair = o.pair
offset 0
