"""Where this service goes by itself: to webhooks and to the endpoints of pools, and nowhere that they lead it."""

import ipaddress
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from batchfile.errors import SettingsError
from batchfile.types import Failure, Message, Outcome, Request, Sampling
from tests.contract import chat_server
from tests.helpers.endpoint import HttpEngine, HttpOptions
from tests.helpers.service import is_public, post
from tests.helpers.settings import LocalRun, PoolSettings, Webhook

KEY = "sk-canary-of-the-pool"
SECRET = "whsec_" + "MDEyMzQ1Njc4OWFiY2RlZg=="


@pytest.fixture
def canary() -> Iterator[Any]:
    """A server on this machine that must hear nothing: its URL and what it heard."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(f"{self.path} {self.headers}")
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    heard: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server.server_port, heard
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0",
        "localhost",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[::ffff:0:127.0.0.1]",
        "169.254.169.254",
        "0xa9fea9fe",
        "[fd00:ec2::254]",
    ],
)
def test_no_spelling_of_an_own_address_is_posted_to(canary: Any, host: str) -> None:
    port, heard = canary
    assert "private address" in str(post(f"http://{host}:{port}/", b"{}", {}, allow_private=False))
    assert heard == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::1", False),
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("fec0::1", False),
        ("2001::1", False),
        ("2002:a9fe:a9fe::", False),
        ("5f00::1", False),
        ("168.63.129.16", False),
        ("::ffff:168.63.129.16", False),
        ("64:ff9b::a83f:8110", False),
        ("168.63.129.17", True),
        ("192.0.0.192", False),
        ("192.0.0.9", False),
        ("192.0.1.1", True),
        ("3fff::1", False),
        ("3fff:fff::1", False),
        ("2a00:1450:4001:81b::200e", True),
    ],
)
def test_only_what_was_given_out_for_the_internet_is_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_a_name_that_leads_elsewhere_when_asked_again_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["93.184.216.34", "127.0.0.1"]
    went_to: list[str] = []

    def look_up(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), 80))]

    def connect(address: tuple[str, int], *_: Any) -> Any:
        went_to.append(address[0])
        raise ConnectionRefusedError("as far as it goes")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert post("http://rebound.example/", b"", {}, allow_private=False) is not None
    assert went_to == ["93.184.216.34"]


def test_a_name_with_one_own_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert "private address" in str(post("http://both.example/", b"", {}, allow_private=False))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pass@example.com/",
        "http://example.com@127.0.0.1/",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://127.0.0.1:6379/_x",
        "http:///x",
        "//example.com/",
        "http://example.com/ x",
        "http://a\r\nb/",
        "",
    ],
)
def test_a_webhook_that_is_no_plain_address_is_no_setting(url: str) -> None:
    with pytest.raises(ValidationError):
        Webhook(url=url, secret=SECRET)  # type: ignore[arg-type]


def ask(engine: HttpEngine) -> Outcome:
    request = Request(custom_id="r", messages=(Message("user", "hi"),), sampling=Sampling(max_tokens=8))
    engine.add(0, engine.prepare(request))
    while True:
        for finished in engine.step():
            return finished.outcome


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_of_a_pool_follows_no_redirect(canary: Any, status: int) -> None:
    port, heard = canary
    with chat_server.running() as server:
        server.script.append({"status": status, "headers": {"Location": f"http://127.0.0.1:{port}/stolen"}})
        engine = HttpEngine(HttpOptions(base_url=server.url, model="m", api_key=KEY, backoff_s=0.01))
        ask(engine)
        engine.close()
        assert server.seen[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    assert heard == []


@pytest.mark.parametrize("status", [400, 500])
def test_a_key_that_an_endpoint_repeats_reaches_no_caller(status: int) -> None:
    with chat_server.running() as server:
        for _ in range(3):
            server.script.append({"status": status, "text": json.dumps({"error": {"message": f"no such key: {KEY}"}})})
        engine = HttpEngine(HttpOptions(base_url=server.url, model="m", api_key=KEY, backoff_s=0.01))
        outcome = ask(engine)
        engine.close()
    assert isinstance(outcome, Failure)
    assert "no such key: ***" in outcome.message
    assert KEY not in str(outcome)


def test_a_key_with_a_line_break_is_trimmed_or_refused_and_never_shown() -> None:
    with chat_server.running() as server:
        engine = HttpEngine(HttpOptions(base_url=server.url, model="m", api_key=f" {KEY}\n"))
        ask(engine)
        engine.close()
        assert server.seen[0]["headers"]["Authorization"] == f"Bearer {KEY}"
        for key in (f"{KEY}\r\nX-More: 1", f"{KEY}é", f"{KEY}\0"):
            with pytest.raises(SettingsError) as refused:
                HttpEngine(HttpOptions(base_url=server.url, model="m", api_key=key))
            assert KEY not in str(refused.value)


def test_credentials_in_the_address_of_a_pool_are_refused_and_not_shown() -> None:
    url = "https://user:canary@llama.internal/v1"
    with pytest.raises(SettingsError) as refused:
        HttpEngine(HttpOptions(base_url=url, model="m"))
    assert "canary" not in str(refused.value)
    with pytest.raises(ValidationError, match="must not contain credentials"):
        PoolSettings(model="m", engine="http", base_url=url)
    with pytest.raises(ValidationError, match="must not contain credentials"):
        LocalRun(base_url=url)
