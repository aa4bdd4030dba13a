"""Any bytes on the port: an answer of HTTP or a closed connection, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from realtime_db.transports import http as our_http
from realtime_db.transports.http import Handover, HttpProtocol, Request, Response
from realtime_db.wheel import Wheel

GET = b"GET /healthcheck HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /healthcheck HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def statuses(received: bytes) -> list[int]:
    """Of the answers one after another; fails if anything else is between them."""
    found = []
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        assert separator, received
        first, *lines = head.decode().split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {n.lower(): v for n, v in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        assert len(rest) >= length
        found.append(int(status))
        received = rest[length:]
    return found


# Over real sockets


NASTY = [
    b"\x00",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nhost\x00: y\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    b"POST /api/broadcast HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /api/broadcast HTTP/1.1\r\ncontent-length: 9" + b"9" * 30 + b"\r\n\r\n",
    b"POST /api/broadcast HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\ncontent-length: 1\r\n\r\nx",
    b"CONNECT example.org:443 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"GET /socket/websocket HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x80",
    b"GET /%00%ff%zz/../..?%ff=%zz&&=&a HTTP/1.1\r\n\r\n",
    b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 201 + b"\r\n",
    b"GET / HTTP/1.1\r\nx: " + b"y" * 300_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"x" * 300_000,
]


@pytest.mark.parametrize("data", NASTY, ids=range(len(NASTY)))
def test_bytes_that_are_no_good_request_get_an_error_or_a_closed_connection(server, data) -> None:
    received = server.exchange(data, half_close=True)

    assert all(400 <= status < 500 or status == 505 for status in statuses(received)), received
    assert server.request("GET", "/healthcheck").status == 200


fragments = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"GET ", b"POST ", b"/", b"/api/broadcast", b"/socket/websocket", b"?topic=a",
            b" HTTP/1.1\r\n", b"\r\n", b"\r\n\r\n", b"host: x\r\n", b"content-length: 3\r\n",
            b"transfer-encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n",
            b"upgrade: websocket\r\n", b"connection: upgrade\r\n", b"expect: 100-continue\r\n",
            b"apikey: x\r\n", LAST, GET,
        ]
    ),
)  # fmt: skip


@given(parts=st.lists(fragments, max_size=12))
@example(parts=[GET, b"\x00", GET])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_leave_the_server_as_it_was(server, parts) -> None:
    received = server.exchange(b"".join(parts), half_close=True)
    answers = received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")

    assert all(status < 500 or status == 505 for status in statuses(answers))
    assert statuses(server.exchange(LAST)) == [200]


def test_pipelined_requests_are_answered_in_their_order(server, mint) -> None:
    slow = f"POST /api/broadcast/open:x/events/e?private=true HTTP/1.1\r\napikey: {mint()}\r\n"
    slow += "content-length: 2\r\n\r\n{}"
    missing = b"GET /nowhere HTTP/1.1\r\n\r\n"

    received = server.exchange(GET + slow.encode() + missing + GET + slow.encode() + LAST)

    assert statuses(received) == [200, 202, 404, 200, 202, 200]


def test_garbage_behind_a_request_does_not_take_its_answer(server, mint) -> None:
    slow = f"POST /api/broadcast/open:x/events/e?private=true HTTP/1.1\r\napikey: {mint()}\r\n"
    for last in ("", "connection: close\r\n"):
        request = f"{slow}{last}content-length: 2\r\n\r\n{{}}".encode()

        assert statuses(server.exchange(request + b"\x00\r\n\r\n" * 1000)) == [202]


def test_a_flood_of_pipelined_requests_that_nobody_reads_does_not_grow(start_server) -> None:
    server = start_server()
    page = b"GET /api/openapi HTTP/1.1\r\n\r\n"
    before = resident_bytes(server.pid)
    with server.open() as flood:
        flood.settimeout(2)
        # The server has stopped to read; or has read so much at once that it ended this.
        with pytest.raises((TimeoutError, ConnectionError)):
            for _ in range(10_000):
                flood.sendall(page * 100)
        assert server.request("GET", "/healthcheck").status == 200
        assert resident_bytes(server.pid) - before < 50_000_000


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as pages:
        return int(pages.read().split()[1]) * 4096


def test_one_connection_serves_many_requests(server) -> None:
    with server.open() as opened:
        for _ in range(3):
            opened.sendall(GET)
            assert opened.recv(65_536).endswith(b"ok")


@pytest.mark.parametrize(
    "head", [b"GET /healthcheck HTTP/1.0\r\n\r\n", LAST], ids=["HTTP/1.0", "connection: close"]
)
def test_a_connection_that_shall_end_ends(server, head) -> None:
    received = server.exchange(head)

    assert statuses(received) == [200]
    assert b"\r\nconnection: close\r\n" in received


def test_a_client_that_has_said_all_still_gets_its_answer(server, mint) -> None:
    request = f"POST /api/broadcast/open:x/events/e?private=true HTTP/1.1\r\napikey: {mint()}\r\n"

    received = server.exchange(
        f"{request}content-length: 2\r\n\r\n{{}}".encode() + GET, half_close=True
    )

    assert statuses(received) == [202, 200]


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
def test_another_version_of_http_is_505(server, version) -> None:
    assert statuses(server.exchange(b"GET /healthcheck HTTP/%b\r\n\r\n" % version)) == [505]


def test_head_is_get_without_a_body(server) -> None:
    received = server.exchange(LAST.replace(b"GET", b"HEAD", 1))

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\ncontent-length: 2\r\n" in received
    assert received.endswith(b"\r\n\r\n")


def test_the_whole_url_in_the_request_line_is_understood(server) -> None:
    assert statuses(server.exchange(LAST.replace(b" /", b" http://x:1/"))) == [200]


def test_a_large_body_right_behind_its_head_is_taken(server, mint) -> None:
    payload = json.dumps({"a": "x" * 2_000_000}).encode()
    head = f"POST /api/broadcast/t/events/e HTTP/1.1\r\napikey: {mint()}\r\nconnection: close\r\n"

    received = server.exchange(
        head.encode() + b"content-length: %d\r\n\r\n" % len(payload) + payload
    )

    assert statuses(received) == [202]


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_body_in_chunks_is_taken_and_its_trailer_is_no_header(server, mint, chunk) -> None:
    body = json.dumps({"a": "x" * 3_000}).encode()
    chunks = b"".join(
        b"%x;ext=1\r\n%b\r\n" % (len(body[i : i + chunk]), body[i : i + chunk])
        for i in range(0, len(body), chunk)
    )
    head = f"POST /api/broadcast/t/events/e HTTP/1.1\r\napikey: {mint()}\r\nconnection: close\r\n"
    trailer = b"0\r\nauthorization: Bearer nonsense\r\n\r\n"

    received = server.exchange(
        head.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunks + trailer
    )

    assert statuses(received) == [202]


def test_a_client_that_asks_first_is_told_to_go_on(server, mint) -> None:
    head = f"POST /api/broadcast/t/events/e HTTP/1.1\r\napikey: {mint()}\r\ncontent-length: 2\r\n"
    with server.open() as opened:
        opened.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
        assert opened.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        opened.sendall(b"{}")
        assert statuses(opened.recv(65_536)) == [202]


def test_a_wish_for_http2_is_declined_and_the_body_is_read(server, mint) -> None:
    head = (
        f"POST /api/broadcast/t/events/e HTTP/1.1\r\napikey: {mint()}\r\ncontent-length: 2\r\n"
        "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
    )

    assert statuses(server.exchange(f"{head}{{}}".encode() + LAST)) == [202, 200]
    assert statuses(server.exchange(f"{head}}}".encode() + b"x" + LAST)) == [400, 200]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413_even_to_a_client_that_sends_all_of_it(
    start_server, chunked
) -> None:
    server = start_server("--max-body-bytes", "100000")
    body = b"x" * 3_000_000
    how = b"content-length: %d\r\n\r\n" % len(body)
    if chunked:
        how, body = b"transfer-encoding: chunked\r\n\r\n", b"2dc6c0\r\n%b\r\n0\r\n\r\n" % body

    received = server.exchange(b"POST /api/broadcast HTTP/1.1\r\n" + how + body)

    assert statuses(received) == [413]
    assert b"\r\naccess-control-allow-origin: *\r\n" in received


def test_a_head_that_is_too_large_is_431(server) -> None:
    for head in (b"x" * 70_000 + b": y\r\n", b"x: " + b"y" * 70_000 + b"\r\n", b"a: b\r\n" * 201):
        assert statuses(server.exchange(b"GET / HTTP/1.1\r\n" + head + b"\r\n")) == [431]


def test_a_token_of_ten_kilobytes_fits(server) -> None:
    head = b"GET /healthcheck?apikey=" + b"x" * 10_000 + b" HTTP/1.1\r\nconnection: close\r\n"

    assert statuses(server.exchange(head + b"authorization: " + b"y" * 10_000 + b"\r\n\r\n")) == [
        200
    ]


def test_many_half_open_connections_disturb_nobody(server) -> None:
    opened = [server.open() for _ in range(200)]
    try:
        for number, one in enumerate(opened):
            one.sendall(GET[: number % len(GET)])
        assert server.request("GET", "/healthcheck").status == 200
    finally:
        for number, one in enumerate(opened):
            if number % 2:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.close()
    assert server.request("GET", "/healthcheck").status == 200


# Time, which is the test's own


class Connection:
    """A protocol without a socket; the test moves the clock."""

    def __init__(self, application: Any = None) -> None:
        self.now = 1000.0
        self.wheel = Wheel(self.now)
        self.written = b""
        self.closed = ""
        self.reading = True
        self.reads_again = asyncio.Event()
        self.protocol = HttpProtocol(
            application
            or SimpleNamespace(
                answer_at_once=lambda request: Response(200, b"ok"),
                refused=lambda status, text: None,
            ),
            wheel=self.wheel,
            now=lambda: self.now,
            max_body_bytes=1000,
            connections=set(),
        )
        self.protocol.connection_made(self)  # type: ignore[arg-type]

    def hears(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def waits(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            self.wheel.advance(self.now)

    # What a transport has

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = self.closed or "closed"

    def abort(self) -> None:
        self.closed = "aborted"

    def write_eof(self) -> None:
        self.closed = "our half"

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed in ("closed", "aborted")

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True
        self.reads_again.set()


def test_a_connection_that_says_nothing_is_closed() -> None:
    connection = Connection()

    connection.waits(our_http.HEAD_SECONDS - 1)
    assert not connection.closed
    connection.waits(3)
    assert (connection.closed, connection.written) == ("closed", b"")


def test_a_head_that_comes_too_slowly_is_408_however_it_drips() -> None:
    connection = Connection()
    connection.hears(GET)
    connection.written = b""

    for byte in GET[:-1]:
        if connection.closed:
            break
        connection.hears(bytes([byte]))
        connection.waits(1)

    assert statuses(connection.written) == [408]
    assert connection.now - 1000 < our_http.HEAD_SECONDS + 3
    connection.waits(our_http.LINGER_SECONDS + 2)
    assert connection.closed == "aborted"


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"GET /", 431),
        (b"GET / HTTP/1.1\r\nx", 431),
        (b"GET / HTTP/1.1\r\nx: ", 431),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", 413),
    ],
)
def test_what_has_no_end_is_cut_off(begin, status) -> None:
    connection = Connection()

    connection.hears(begin)
    pieces = 0
    while not connection.closed:
        pieces += 1
        assert pieces < 20
        connection.hears(b"y" * 10_000)

    assert statuses(connection.written) == [status]


def test_a_body_that_comes_too_slowly_is_408() -> None:
    connection = Connection()

    connection.hears(b"POST / HTTP/1.1\r\ncontent-length: 500\r\n\r\n")
    for _ in range(round(our_http.BODY_SECONDS) + 2):
        connection.hears(b"x")
        connection.waits(1)

    assert statuses(connection.written) == [408]


def test_an_idle_connection_is_kept_for_a_while() -> None:
    connection = Connection()

    for _ in range(3):
        connection.hears(GET)
        connection.waits(our_http.KEEP_ALIVE_SECONDS - 2)
        assert not connection.closed
    connection.waits(5)
    assert connection.closed == "closed"


def test_slow_requests_that_follow_each_other_each_have_their_time() -> None:
    connection = Connection()

    connection.hears(GET[:5])
    for _ in range(10):
        connection.waits(our_http.HEAD_SECONDS - 2)
        connection.hears(GET[5:] + GET[:5])

    assert statuses(connection.written) == [200] * 10


def test_a_client_that_does_not_read_its_answers_is_cut_off() -> None:
    connection = Connection()
    connection.hears(GET)

    connection.protocol.pause_writing()
    connection.hears(GET)
    assert not connection.reading
    assert statuses(connection.written) == [200]
    connection.waits(our_http.WRITE_SECONDS + 3)

    assert connection.closed == "aborted"


def test_a_client_that_reads_again_is_answered_again() -> None:
    connection = Connection()
    connection.protocol.pause_writing()
    connection.hears(GET + GET)
    assert connection.written == b""

    connection.protocol.resume_writing()

    assert statuses(connection.written) == [200, 200]
    assert connection.reading


def test_many_requests_make_no_timers() -> None:
    connection = Connection()

    for _ in range(1000):
        connection.hears(GET)

    assert sum(map(len, connection.wheel._slots.values())) <= 3


def test_what_comes_behind_a_request_that_is_being_answered_waits() -> None:
    async def run() -> None:
        answered: asyncio.Queue[Response] = asyncio.Queue()
        seen: list[Request] = []

        class Slow:
            def answer_at_once(self, request: Request) -> Response | Handover | None:
                seen.append(request)
                return None

            async def answer(self, request: Request) -> Response | Handover:
                return await answered.get()

        connection = Connection(Slow())
        connection.hears(GET + GET)
        assert len(seen) == 1
        assert not connection.reading
        connection.waits(1000)
        assert not connection.closed

        connection.reads_again.clear()
        await answered.put(Response(202))
        await answered.put(Response(200))
        await connection.reads_again.wait()
        assert statuses(connection.written) == [202, 200]

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_client_that_pipelines_without_end_is_cut_off() -> None:
    connection = Connection()
    connection.protocol.pause_writing()

    connection.hears(GET * (our_http.MAX_PIPELINED + 1))

    assert connection.closed
    assert connection.written == b""
