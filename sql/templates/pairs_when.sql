select
    gen_random_uuid() as id,
    __topic__ as topic,
    __record__ as record,
    case when old."realtime:pair" is not null then __old_record__ end as old_record
from (
    select
        *,
        __new_pair__ as "realtime:pair"
    from new_rows as new
) as new
left join (
    select
        *,
        __old_pair__ as "realtime:pair"
    from old_rows as old
) as old on new."realtime:pair" = old."realtime:pair"
__where__
offset 0
