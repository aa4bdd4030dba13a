"""The page at `/`, in the hands of a user: a headless Chromium, driven by WebDriver.

    test ─ WebDriver, JSON over HTTP ─► chromedriver ─► Chromium ─► realtime-db serve

No client library: what the tests need of the protocol is a page of code. A test waits for a change
of the page, in the page, and the browser says when it came; nothing polls.

Without Chromium and its driver the tests are skipped; with CI=true they fail. Debian has both:
apt-get install chromium chromium-driver.

`INSPECTOR_SCREENSHOT=docs/inspector.png pytest -k picture` makes the picture of the documentation.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import struct
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults import ports

DEADLINE_SECONDS = 60.0
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,800",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
CONTROL, ENTER = "\ue009", "\ue007"

# Calls back as soon as the expression is true, and says what it is then.
UNTIL = """
const done = arguments[arguments.length - 1];
const check = () => {
    const value = (() => { %s })();
    if (!value) return false;
    watcher.disconnect();
    done(value);
    return true;
};
const watcher = new MutationObserver(check);
const all = {subtree: true, childList: true, attributes: true, characterData: true};
if (!check()) watcher.observe(document, all);
"""


class Browser:
    """A session of WebDriver (https://www.w3.org/TR/webdriver2/)."""

    def __init__(self, driver: str, chromium: str, folder: Path) -> None:
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines = iter(self._driver.stdout.readline, "")
        started = (re.search(r"started successfully on port (\d+)", line) for line in lines)
        self._port = int(next(match for match in started if match)[1])
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        capabilities = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": int(DEADLINE_SECONDS * 1000)},
        }
        self._session = ""
        new = self._call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/{new['sessionId']}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._call("DELETE", "")
        self._driver.terminate()
        self._driver.wait(timeout=DEADLINE_SECONDS)
        self._driver.stdout.close()

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._port, timeout=3 * DEADLINE_SECONDS
        )
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, f"/session{self._session}{path}", body)
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{value['error']}: {value['message'].splitlines()[0]}")
        return value

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": "about:blank"})  # or a new fragment loads nothing
        self.errors()
        self._call("POST", "/url", {"url": url})

    def script(self, source: str, *arguments: Any) -> Any:
        return self._call("POST", "/execute/sync", {"script": source, "args": arguments})

    def until(self, source: str, *arguments: Any) -> Any:
        """Waits until the body of a function returns something true, and returns that.

        The body sees its arguments as `args`.
        """
        script = f"const args = arguments; {UNTIL % source}"
        try:
            return self._call("POST", "/execute/async", {"script": script, "args": arguments})
        except AssertionError as error:
            text = self.script("return document.body.innerText")
            raise AssertionError(f"in vain: {source} {arguments}\n{error}\n\n{text}") from None

    def text(self, selector: str, expected: str) -> str:
        """Waits until an element is there whose text matches, and returns its text."""
        return self.until(
            "const found = [...document.querySelectorAll(args[0])].find("
            "(one) => one.checkVisibility() && new RegExp(args[1]).test(one.innerText.trim()));"
            "return found && found.innerText.trim()",
            selector,
            expected,
        )

    def find(self, selector: str) -> str:
        using = {"using": "css selector", "value": selector}
        return self._call("POST", "/element", using)[ELEMENT]

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str, *, clear: bool = True) -> None:
        element = self.find(selector)
        if clear:
            self._call("POST", f"/element/{element}/clear", {})
        self._call("POST", f"/element/{element}/value", {"text": text})

    def errors(self) -> list[str]:
        """What the console has got since the last call, of errors and warnings."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [one["message"] for one in entries if one["level"] in ("SEVERE", "WARNING")]

    def picture(self) -> bytes:
        return b64decode(self._call("GET", "/screenshot"))

    def resize(self, width: int, height: int) -> None:
        """Of what is inside of the window."""
        inner = self.script("return [window.innerWidth, window.innerHeight]")
        outer = self._call("GET", "/window/rect")
        size = {
            "width": width + outer["width"] - inner[0],
            "height": height + outer["height"] - inner[1],
        }
        self._call("POST", "/window/rect", size)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if driver is None or binary is None:
        reason = "Chromium or its driver is missing: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    browser = Browser(driver, binary, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


class Page:
    """The inspector, as somebody uses it who sees it."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def visit(self, port: int, key: str) -> None:
        """Opens it as `realtime-db dev` says, and waits until it is connected."""
        self.browser.open(f"http://127.0.0.1:{port}/#key={key}")
        self.connection("open")

    def connection(self, state: str) -> str:
        """Waits for a state, and returns what is said about it."""
        return self.browser.text(f"#connection[data-state={state}]", "")

    def ask_to_join(self, topic: str, *, private: bool = False, token: str = "") -> None:
        """Fills in the form, and presses Enter."""
        if self.browser.script("return document.querySelector('#private').checked") != private:
            self.browser.click("#private")
        if token:
            self.browser.script("document.querySelector('#token-box').open = true")
        if self.browser.script("return document.querySelector('#token-box').open"):
            self.browser.type("#token", token)
        self.browser.type("#topic", topic + ENTER)

    def channel(self, topic: str, state: str) -> str:
        """Waits until the channel is in a state, and returns all that is said about it."""
        return self.browser.text(f".channel[data-topic='{topic}'][data-state={state}]", "")

    def join(self, topic: str, **options: Any) -> None:
        self.ask_to_join(topic, **options)
        self.channel(topic, "joined")

    def message(self, event: str) -> list[str]:
        """Waits for a message in the log, and returns its columns."""
        return self.browser.until(
            "const found = [...document.querySelectorAll('.message')].find("
            "(one) => one.dataset.event === args[0] && !one.hidden);"
            "return found && [...found.firstChild.children].map((one) => one.textContent)",
            event,
        )

    def opened(self, event: str) -> str:
        """Opens a message, and returns its payload as it is shown."""
        self.browser.click(f'.message[data-event="{event}"] > summary')
        return self.browser.text(f'.message[data-event="{event}"] pre', "")

    def events(self) -> list[str]:
        """Those that are shown, in their order."""
        return self.browser.script(
            "return [...document.querySelectorAll('.message:not([hidden])')]"
            ".map((one) => one.dataset.event)"
        )


@pytest.fixture
def page(chromium: Browser) -> Page:
    return Page(chromium)


@pytest.fixture
def send(database: psycopg.Connection) -> Callable[..., None]:
    """`send(topic, "greeting", '{"a": 1}', private=True)`, from SQL."""

    def send(topic: str, event: str, payload: str = "{}", *, private: bool = False) -> None:
        database.execute(
            "select realtime.send(%s::jsonb, %s, %s, %s)", [payload, event, topic, private]
        )

    return send


# How it is served


def test_the_page_may_run_its_own_script_and_talk_to_its_own_server_only(server) -> None:
    answer = server.request("GET", "/")

    policy = dict(
        directive.split(" ", 1)
        for directive in answer.headers["content-security-policy"].split("; ")
    )
    (script,) = re.findall(rb"<script>(.*?)</script>", answer.body, re.DOTALL)
    digest = policy["script-src"].removeprefix("'sha256-").removesuffix("'")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "access-control-allow-origin" not in answer.headers
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert b64decode(digest) == sha256(script).digest()
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_the_page_loads_nothing_from_elsewhere_and_makes_no_markup_of_text(server) -> None:
    text = server.request("GET", "/").body.decode()

    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text) == []


def test_without_the_inspector_there_is_no_page(start_server) -> None:
    assert start_server("--no-inspector").request("GET", "/").status == 404


# What it does


def test_it_connects_with_the_key_of_its_address_and_the_console_stays_empty(
    server, page, mint
) -> None:
    server.ready()  # or the console would say that it is not
    page.visit(server.port, mint("anon"))

    assert page.browser.text("#connection", r"ping \d")
    assert page.browser.text("#replication[data-state=ok]", "following the WAL")
    assert page.browser.text("#server", r"Partitions\s+ok")
    assert page.browser.text("#key-hint", "^role anon · user ann · good for")
    assert page.browser.errors() == []


def test_a_key_that_the_server_refuses_is_refused_with_its_words(server, page, mint) -> None:
    page.browser.open(f"http://127.0.0.1:{server.port}/#key={mint(ttl_seconds=-10)}")

    assert page.connection("refused").startswith("Refused\nToken has expired")


def test_a_message_sent_by_sql_appears(server, page, mint, topic, send) -> None:
    page.visit(server.port, mint("anon"))
    page.join(topic)

    send(topic, "greeting", '{"n": 12345678901234567890.10}')

    time, source, name, event, payload, size, round_trip = page.message("greeting")
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3}$", time)
    assert (source, name, event, round_trip) == ("database", topic, "greeting", "")
    assert "12345678901234567890.10" in payload
    assert re.fullmatch(r"\d+ B", size)
    assert re.match(r'\{\n  "n": 12345678901234567890\.10,\n  "id": ', page.opened("greeting"))
    assert page.browser.errors() == []


def test_what_is_sent_from_the_page_appears_with_its_round_trip(server, page, mint, topic) -> None:
    page.visit(server.port, mint("anon"))
    page.join(topic)

    page.browser.type("#event", "typed")
    page.browser.type("#payload", f'{{"a": [1.50, true]}}{CONTROL}{ENTER}')

    _, source, _, _, payload, _, round_trip = page.message("typed")
    assert (source, payload) == ("you", '{"a":[1.50,true]}')
    assert re.fullmatch(r"\d+(\.\d)? ms", round_trip)
    assert re.fullmatch(
        r"accepted after \d+(\.\d)? ms", page.browser.text("#outcome[data-state=ok]", "")
    )


def test_what_is_no_json_is_not_sent(server, page, mint, topic) -> None:
    page.visit(server.port, mint("anon"))
    page.join(topic)

    page.browser.type("#payload", "{nonsense")
    page.browser.click("#send-button")

    assert page.browser.text("#outcome[data-state=bad]", "^the payload is not JSON")
    assert page.events() == []


def test_a_private_channel_is_joined_with_a_users_token(
    server, page, mint, private_topic, send
) -> None:
    page.visit(server.port, mint("anon"))
    page.join(private_topic, private=True, token=mint("authenticated"))

    send(private_topic, "secret", private=True)

    assert page.message("secret")[1:3] == ["database", private_topic]


def test_a_refused_private_join_shows_the_reason(server, page, mint, private_topic) -> None:
    page.visit(server.port, mint("anon"))
    page.ask_to_join(private_topic, private=True)

    text = "Unauthorized: You do not have permissions to read from this Channel topic: "
    assert text + private_topic in page.channel(private_topic, "refused")


def test_a_hostile_message_stays_text(server, page, mint, topic, send) -> None:
    attack = "<img src=x onerror=window.attacked=1><script>window.attacked=1</script>"
    page.visit(server.port, mint("anon"))
    page.join(f"{topic}<b>")

    send(f"{topic}<b>", attack, json.dumps({attack: attack}))

    assert page.message(attack)[2:4] == [f"{topic}<b>", attack]
    page.browser.click(".message > summary")
    shown = page.browser.text(".message pre", "")
    assert json.loads(shown)[attack] == attack
    assert page.browser.script("return document.querySelectorAll('main img, b b').length") == 0
    assert page.browser.script("return typeof window.attacked") == "undefined"
    assert page.browser.errors() == []


def test_markup_made_by_mistake_would_be_stopped_by_the_policy(server, page, mint) -> None:
    page.visit(server.port, mint("anon"))

    thrown = page.browser.script(
        "try { document.body.innerHTML = '<i>x</i>'; } catch (error) { return error.name; }"
    )

    assert thrown == "TypeError"


def test_a_payload_cannot_turn_its_text_around(server, page, mint, topic, send) -> None:
    page.visit(server.port, mint("anon"))
    page.join(topic)

    send(topic, "turned", json.dumps({"a": "\u202eevil"}))

    assert r'"a": "\u202eevil"' in page.message("turned")[4]
    assert r'"a": "\u202eevil"' in page.opened("turned")


def test_a_binary_message_is_shown_as_bytes(server, page, mint, topic, database) -> None:
    page.visit(server.port, mint("anon"))
    page.join(topic)

    database.execute(r"select realtime.send_binary('\x00ff41', 'blob', %s, false)", [topic])

    assert page.message("blob")[4] == "00 ff 41"
    assert re.fullmatch(r"0000  00 ff 41 +··A", page.opened("blob"))


def test_a_filter_hides_a_pause_holds_and_clear_empties(server, page, mint, topic, send) -> None:
    page.visit(server.port, mint("anon"))
    page.join(topic)
    send(topic, "one", '{"word": "Apple"}')
    send(topic, "two")
    page.message("two")

    page.browser.type("#filter", "apple")
    assert page.events() == ["one"]
    page.browser.type("#filter", " \b")
    page.browser.click("#pause")
    send(topic, "three")
    assert page.browser.text("#pause", r"^Resume \(1\)$")
    assert page.events() == ["one", "two"]
    page.browser.click("#pause")
    page.message("three")
    page.browser.click("#clear")
    assert page.events() == []


def test_it_says_that_it_reconnects_and_joins_again_when_the_server_is_back(
    start_server, page, mint, topic, send
) -> None:
    server = start_server()
    page.visit(server.port, mint("anon"))
    page.join(topic)

    server.stop()

    assert page.connection("reconnecting").startswith("Reconnecting")
    assert "joins when connected" in page.channel(topic, "waiting")
    with ports.reserve(server.port):
        start_server("--port", str(server.port)).says("following the WAL")
    page.channel(topic, "joined")
    send(topic, "again")
    assert page.message("again")[1] == "database"


def test_the_picture_of_the_documentation_shows_all_of_it(
    server, page, mint, send, database, tmp_path
) -> None:
    user = mint("authenticated")
    page.visit(server.port, mint("anon"))
    page.browser.resize(1280, 800)
    page.ask_to_join("admin:audit", private=True)
    page.channel("admin:audit", "refused")
    page.join("open:orders", private=True, token=user)
    page.join("room:1")
    page.browser.script("document.querySelector('#token-box').open = false")
    order = {"id": 1042, "status": "paid", "total": 129.90, "customer": "ann"}
    for event, record, old in (
        ("INSERT", {**order, "status": "new"}, None),
        ("UPDATE", order, {**order, "status": "new"}),
    ):
        change = {"record": record, "old_record": old, "table": "orders", "operation": event}
        send("open:orders", event, json.dumps(change), private=True)
    send("room:1", "greeting", '{"from": "ann", "text": "Is anybody here?"}')
    database.execute(
        "select realtime.send_binary(%s, 'thumbnail', 'room:1', false)",
        [b"\x89PNG\r\n\x1a\n" + bytes(range(48))],
    )
    page.message("thumbnail")
    page.browser.script("document.querySelector('#to').value = 'realtime:room:1'")
    for event, payload in (
        ("typing", '{"user": "bob"}'),
        ("greeting", '{"from": "bob", "text": "Yes, I am."}'),
    ):
        page.browser.type("#event", event)
        page.browser.type("#payload", payload + CONTROL + ENTER)
        page.browser.text(".tag.you + .clip + .event", event)
    send("open:orders", "DELETE", json.dumps({**change, "operation": "DELETE"}), private=True)
    page.message("DELETE")
    page.browser.click(".message[data-kind=database][data-event=greeting] > summary")
    page.browser.text(".message[data-event=greeting] pre", "Is anybody here")

    picture = page.browser.picture()

    Path(os.environ.get("INSPECTOR_SCREENSHOT", tmp_path / "inspector.png")).write_bytes(picture)
    assert struct.unpack(">II", picture[16:24]) == (1280, 800)
    assert page.browser.script("return document.documentElement.scrollWidth") == 1280
