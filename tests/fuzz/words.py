"""Words of each target's language, for the mutations."""

from __future__ import annotations

from typing import Final

_HTTP: Final = (
    *(b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"CONNECT ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"),
    *(b"\r\n", b"\r\n\r\n", b"host: x\r\n", b"connection: close\r\n", b"connection: upgrade\r\n"),
    *(b"upgrade: websocket\r\n", b"upgrade: h2c\r\n", b"sec-websocket-version: 13\r\n"),
    *(b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"content-length: 2\r\n"),
    *(b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n", b"apikey: key\r\n"),
    *(b"authorization: Bearer key\r\n", b"x-api-key: key\r\n", b"proxy-connection: upgrade\r\n"),
    *(b"content-type: application/octet-stream\r\n", b"access-control-request-headers: x\r\n"),
    *(b"/socket/websocket", b"/realtime/v1", b"/sse", b"/api/broadcast", b"/events/e", b"/readyz"),
    *(b"/metrics", b"/healthcheck", b"/api/ping", b"?apikey=key", b"&vsn=2.0.0", b"&vsn=1.0.0"),
    *(
        b"&topic=room",
        b"&private=true",
        b"&persist=true",
        b"&persist[ttl]=60",
        b"last-event-id: ",
        b"apikey=new",
        b"apikey=short",
        b"0\r\n\r\n",
        b"%00",
    ),
    *(b"GET / HTTP/1.1\r\n\r\n", b"http://x", b"100000\r\n"),
)
_FRAMES: Final = (
    *(b"\x81\x80\0\0\0\0", b"\x82\x80\0\0\0\0", b"\x88\x82\0\0\0\0\x03\xe8", b"\x89\x80\0\0\0\0"),
    *(b"\x8a\x80\0\0\0\0", b"\x01\x80\0\0\0\0", b"\x00\x80\0\0\0\0", b"\x80\x80\0\0\0\0"),
    *(b"\x81\xfe\x00\x7e\0\0\0\0", b"\x81\xff\0\0\0\0\0\x01\0\0\0\0\0\0"),
    *(b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xe2\x82"),
)
_JSON: Final = (
    *(b"null", b"true", b"false", b"{}", b"[]", b'""', b"0", b"-1", b"1e999", b"1.5", b"NaN"),
    *(b'"\\ud83d"', b'"\\u0000"', b'"\\n"', b"[[[[", b'{"', b'":', b",", b"99999999999999999999"),
)
_PROTOCOL: Final = (
    *(b'"phx_join"', b'"phx_leave"', b'"heartbeat"', b'"phoenix"', b'"access_token"', b'"topic"'),
    *(b'"broadcast"', b'"presence"', b'"track"', b'"untrack"', b'"realtime:room"', b'"realtime:"'),
    *(b'"config"', b'"private":true', b'"ack":true', b'"self":true', b'"enabled":true', b'"key"'),
    *(b'"replay":{"since":1,"limit":2}', b'"replication_ready":true', b'"postgres_changes":[{}]'),
    *(b'"payload"', b'"event"', b'"type"', b'"meta"', b'"phx_ref"', b'"join_ref"', b'"ref"'),
    *(b'"realtime:deny"', b'"realtime:down"', b'"realtime:boom"', b'"realtime:quiet"'),
    *(b'"realtime:mute"', b'"realtime:blind"', b'"realtime:lost"', b'"new"', b'"short"', b'"bad"'),
    *(
        b'"sb_x"',
        b'"user_token"',
        b'"cursor"',
        b'"cursor":true',
        b'"realtime:gap"',
        b'"realtime:empty"',
        b'"realtime:late"',
        b"\x03\x01\x01\x0d\x01\x00\x01",
        b"realtime:room",
    ),
)
_SERVED: Final = (
    *(b"\x1e", b'["1","1","realtime:room",', b'["1","2","realtime:room",', b'[null,null,"phoenix"'),
    *(b'"phx_reply"', b'"phx_error"', b'"phx_close"', b'"system"', b'"status":"ok"', b'"response"'),
    *(b'"status":"error"', b'"reason"', b'"message"', b'"error"', b'"gap"', b'"meta"', b'"id"'),
    *(b'"replayed":true', b'"MessagesMissing: messages before 0001-01-01 are no longer stored"'),
    *(b"9999-12-31T23:59:59-23:59", b"0001-01-01T00:00:00+23:59", b'"Unauthorized: "'),
    *(b"\x04\x0d\x01\x00\x01realtime:roome", b"\x04\x0d\x01\x08\x01realtime:roome", b'{"id":""}'),
)
_TOKEN: Final = (b".", b"e30", b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", b"bnVsbA", b"-", b"_", b" ")
_PGOUTPUT: Final = (
    *(b"\0\x15B", b"\0\x1aC", b"I\0\0@\x04N\0\x0b", b"R\0\0@\x04realtime\0messages\0d\0\x0b"),
    *(b"t\0\0\0\x01t", b"n", b"u", b"M\0", b"\0\x01O", b"\0\x01T", b"\xff\xff\xff\xff", b"\\x00"),
)
_POSITIONS: Final = (
    b"c",
    b"m",
    b"a",
    b"k",
    b"f\0\0\0\0\0\0\0\x12",
    b"\xff" * 8,
    b"\0" * 7 + b"\x01",
)

WORDS: Final[dict[str, tuple[bytes, ...]]] = {
    "connection": _HTTP + _FRAMES + _PROTOCOL[:20],
    "websocket": _FRAMES,
    "frames": _JSON + _PROTOCOL,
    "session": (*_JSON, *_PROTOCOL, b"\x1et", b"\x1eb", b"\x1e.", b"\x1e,", b"\x1e+", b"\x1e*",
                b"\x1ed", b"\x1er", b"\x1eq", b"\x1es", b"\x1ev", b"\x1ek", b'{"persist":true}',
                b'{"persist":{"ttl":60}}'),
    "join": _JSON + _PROTOCOL,
    "token": _TOKEN,
    "rest": (*_JSON, b'"messages"', b'"topic"', b'"event"', b'"payload"', b'"private"', b'"id"',
             b"application/octet-stream\0", b"application/json\0", b"%ff", b"\0"),
    "pgoutput": _PGOUTPUT,
    "wal_session": _POSITIONS,
    "client": (*_JSON, *_PROTOCOL[:10], *_SERVED),
    "cursor": (b"w", b"p", b".", b"AAAA", b"____", b"=", b"-"),
}  # fmt: skip
