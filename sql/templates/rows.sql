select
    gen_random_uuid() as id,
    __topic__ as topic,
    __record__ as record,
    __old_record__ as old_record
from __source__
__where__
offset 0
