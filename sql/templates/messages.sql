insert into realtime.messages (id, topic, event, payload, private, extension)
select
    m.id,
    m.topic,
    __event__,
    jsonb_build_object(
        'id', m.id,
        'schema', __schema__,
        'table', __table__,
        'operation', tg_op,
        'record', m.record,
        'old_record', m.old_record
    ),
    __private__,
    'broadcast'
from (
    __rows__
) as m
-- A row without a topic, for a column in it is null, is for nobody.
where m.topic <> '';
