"""Webhooks over the wire: a receiver on loopback, and OpenAI's own client that verifies what comes."""

import base64
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai.types.webhooks import (
    BatchCancelledWebhookEvent,
    BatchCompletedWebhookEvent,
    BatchExpiredWebhookEvent,
    BatchFailedWebhookEvent,
)
from pydantic import SecretStr

from batchfile import Ledger
from batchfile.errors import SettingsError
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import DroppedFile, Inbox, Janitor, inbox_records, stored_files
from tests.helpers.inbox import source_of_file as source
from tests.helpers.ledger import BatchRecord, EndReason, SetAside, batches, ending
from tests.helpers.plan import pending
from tests.helpers.service import AT_ONCE, WebhookSender, _Due, _Receiver, event_of, post, signed_headers, webhook_key
from tests.helpers.settings import Webhook, load_settings

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
CHAT = "/v1/chat/completions"
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed


class Call(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers with the statuses in `answers`, then with 200; while `may_answer` is not set it hangs."""

    def __init__(self) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.answers: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.may_answer.wait()
                status = receiver.answers.pop(0) if receiver.answers else 200
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()
                receiver.calls.put(Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=1"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@contextmanager
def receiving() -> Iterator[Receiver]:
    one = Receiver()
    try:
        yield one
    finally:
        one.may_answer.set()
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="x", webhook_secret=SECRET) as one:
        yield one


class Process:
    """What an API process does about webhooks, with time in the test's hands."""

    def __init__(self, ledger: Ledger, hook: Webhook, **others: Webhook) -> None:
        self.webhook_sender = WebhookSender(ledger, {"acme": hook, **others})
        self.janitor = Janitor(ledger, runner="s", on_ended=self.webhook_sender.on_ended)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.webhook_sender.run, args=(self.stop,))
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


@pytest.fixture
def ledger() -> Ledger:
    """Its store has the same clock: attempts are due by the store's."""
    clock = ManualClock(time.time())
    return Ledger(store=MemoryStore(clock), clock=clock)


def ended(ledger: Ledger, batch_id: str = "batch_1") -> BatchRecord:
    """A batch of acme's that was cancelled."""
    file = stored_files.store_file(ledger, "acme", [b"{}"], filename="f", purpose="batch", kept_s=9e5, bytes_max=10)
    draft = batches.Draft(
        batch_id=batch_id, routing=RoutingTable(), defaults=Defaults(), tenant="acme", created_at=ledger.clock.now()
    )
    pending.create(ledger, draft, source(ledger, file, endpoint=CHAT, requests_max=9))
    batches.end(ledger, batch_id, "canceled")
    batch = ending.finish(ledger, batch_id, runner="r")
    assert batch is not None
    return batch


def test_a_batch_that_fails_is_told_and_openais_client_verifies_it(
    start_api: Any, receiver: Receiver, client: openai.OpenAI
) -> None:
    hook = {"url": receiver.url, "secret": SECRET, "allow_private": True}
    api = start_api(BATCHFILE_WEBHOOKS=json.dumps({"default": hook}))
    with openai.OpenAI(
        base_url=f"{api.url}/v1", api_key="x", http_client=openai.DefaultHttpxClient(trust_env=False)
    ) as caller:
        file = caller.files.create(file=("in.jsonl", b"nothing"), purpose="batch")
        batch = caller.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    call = receiver.calls.get(timeout=WAIT_S)
    event = client.webhooks.unwrap(call.body, call.headers)
    assert isinstance(event, BatchFailedWebhookEvent)
    BatchFailedWebhookEvent.model_validate(json.loads(call.body))
    assert (event.data.id, event.object, event.type) == (batch.id, "event", "batch.failed")
    assert event.id == call.headers["webhook-id"]
    assert call.path == "/hook?a=1"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(call.body.replace(b"failed", b"expired"), call.headers)


@pytest.mark.parametrize(
    ("reason", "kind", "name"),
    [
        ("completed", BatchCompletedWebhookEvent, "batch.completed"),
        ("failed", BatchFailedWebhookEvent, "batch.failed"),
        ("input_changed", BatchFailedWebhookEvent, "batch.failed"),
        ("expired", BatchExpiredWebhookEvent, "batch.expired"),
        ("canceled", BatchCancelledWebhookEvent, "batch.cancelled"),
    ],
)
def test_each_event_is_of_its_class_in_openais_client(
    reason: EndReason, kind: Any, name: str, ledger: Ledger, client: openai.OpenAI
) -> None:
    batch = replace(ended(ledger), reason=reason)
    told = event_of(batch)
    event = client.webhooks.unwrap(told.body, signed_headers(told, SECRET, time.time()))
    assert isinstance(event, kind)
    kind.model_validate_json(told.body, strict=True)
    assert (event.type, event.data.id, event.id) == (name, batch.batch_id, told.event_id)


def test_what_was_not_taken_comes_again_from_another_process_as_the_same_event(
    ledger: Ledger, receiver: Receiver, client: openai.OpenAI
) -> None:
    batch = ended(ledger)
    hook = Webhook(url=receiver.url, secret=SecretStr(SECRET), allow_private=True)
    receiver.answers = [503, 302]
    calls = []
    for _ in range(3):
        process = Process(ledger, hook)
        process.janitor.tick()  # which finds a batch that ended before it began
        calls.append(receiver.calls.get(timeout=WAIT_S))
        process.close()
        ledger.clock.sleep(3600.0)
    for call in calls:
        client.webhooks.verify_signature(call.body, call.headers, tolerance=10**6)
    event = client.webhooks.unwrap(calls[0].body, calls[0].headers)
    assert isinstance(event, BatchCancelledWebhookEvent)
    assert event.data.id == batch.batch_id
    assert {(call.body, call.headers["webhook-id"]) for call in calls} == {(calls[0].body, event.id)}
    assert len({call.headers["webhook-timestamp"] for call in calls}) == 3
    assert {call.path for call in calls} == {"/hook?a=1"}  # a redirect is not followed


def test_one_process_comes_again_by_itself(ledger: Ledger, receiver: Receiver) -> None:
    receiver.answers = [500]
    hook = Webhook(url=receiver.url, secret=SecretStr(SECRET), allow_private=True)
    process = Process(ledger, hook)
    process.webhook_sender.on_ended(ended(ledger))
    first = receiver.calls.get(timeout=WAIT_S)
    ledger.clock.sleep(60.0)
    assert receiver.calls.get(timeout=WAIT_S).body == first.body
    process.close()


@pytest.mark.parametrize("is_callback", [False, True])
def test_a_receiver_that_hangs_holds_up_no_other(ledger: Ledger, receiver: Receiver, is_callback: bool) -> None:
    """Neither another tenant's, nor the same tenant's where only the callbacks of dropped files hang."""
    with receiving() as hanging:
        hanging.may_answer.clear()
        ours, theirs = (
            Webhook(url=url, secret=SecretStr(SECRET), allow_private=True) for url in (receiver.url, hanging.url)
        )
        dropped = DroppedFile(key="inbox/m/a.jsonl", etag="e", modified_at=0.0, callback=hanging.url)
        origin = inbox_records.source(dropped, 1).origin
        with closing(Process(ledger, ours, other=theirs)) as process:
            for n in range(5 * AT_ONCE):
                batch = ended(ledger, f"batch_{n}")
                process.webhook_sender.on_ended(
                    replace(batch, origin=origin) if is_callback else replace(batch, tenant="other")
                )
            last = ended(ledger, "batch_last")
            process.webhook_sender.on_ended(last)
            assert receiver.calls.get(timeout=WAIT_S).body == event_of(last).body
            hanging.may_answer.set()


@pytest.mark.parametrize("has_secret", [True, False])
def test_who_dropped_a_file_is_told_where_it_asked_to_be(
    receiver: Receiver, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, has_secret: bool
) -> None:
    """Signed with the tenant's secret, where there is one; never at an address that only we reach, unless allowed."""
    monkeypatch.setattr("batchfile.safe_http.is_public", lambda address: True)
    store = MemoryStore(ManualClock(time.time() - 60.0))
    store.put("inbox/mistral/a.batch.toml", f'callback = "{receiver.url}&of=a"'.encode())
    store.put("inbox/mistral/a.jsonl", b"rubbish")
    ledger = Ledger(store=store)
    hook = Webhook(url="http://127.0.0.1:9/nobody", secret=SecretStr(SECRET), allow_private=True)
    webhook_sender = WebhookSender(ledger, {"default": hook} if has_secret else {})
    inbox = Inbox(ledger, RoutingTable(pools={"mistral": ("m",)}))
    stop = threading.Event()
    thread = threading.Thread(target=webhook_sender.run, args=(stop,))
    thread.start()
    Janitor(ledger, runner="s", inbox=inbox, on_ended=webhook_sender.on_ended).tick()
    call = receiver.calls.get(timeout=WAIT_S)
    stop.set()
    thread.join(WAIT_S)
    assert call.path == "/hook?a=1&of=a"
    assert json.loads(call.body)["data"]["path"] == "inbox/mistral/a.jsonl"
    assert ("webhook-signature" in call.headers) == has_secret
    if has_secret:
        client.webhooks.verify_signature(call.body, call.headers)


def test_a_damaged_record_of_an_attempt_is_set_aside_with_a_pause_that_grows(
    ledger: Ledger, receiver: Receiver
) -> None:
    ended(ledger)
    key = webhook_key("batch_1")
    ledger.store.put(key, b"\0\0\0")
    hook = Webhook(url=receiver.url, secret=SecretStr(SECRET), allow_private=True)
    aside = SetAside(ledger)
    webhook_sender = WebhookSender(ledger, {"acme": hook}, aside)
    due, pauses = _Due(0.0, "batch_1", "acme", ""), []
    for _ in range(8):
        wait_s = webhook_sender._attempt(due)
        assert wait_s is not None
        pauses.append(round(wait_s))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert f"{key} in memory:" in aside.reasons()["batch_1"]
    assert receiver.calls.empty()
    ledger.store.delete(key)
    assert webhook_sender._attempt(due) is None
    assert receiver.calls.get(timeout=WAIT_S)
    assert aside.reasons() == {}


def test_a_clock_that_is_set_back_does_not_put_off_the_next_attempt(ledger: Ledger) -> None:
    ended(ledger)
    ledger.store.put(webhook_key("batch_1"), b"damaged: it is set aside for a second")
    webhook_sender = WebhookSender(ledger, {})
    webhook_sender._deliver(_Receiver("acme", "host"), _Due(0.0, "batch_1", "acme", "https://host/"))
    due = webhook_sender._news.get_nowait()
    assert isinstance(due, _Due)
    assert due.at == pytest.approx(ledger.clock.monotonic() + 1.0, abs=0.5)


def test_a_private_address_is_refused_unless_it_is_allowed(receiver: Receiver) -> None:
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
        assert "private address" in str(post(url, b"{}", {}, allow_private=False))
    assert receiver.calls.empty()
    assert post(receiver.url, b"{}", {}, allow_private=True) is None


def test_a_server_that_is_not_there_or_speaks_no_http_is_a_problem_and_no_crash(receiver: Receiver) -> None:
    for url in ("http://no.such.host.invalid/", "http://[no-address/", "http://host:port/"):
        assert post(url, b"", {}, allow_private=True) is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            listener.accept()[0].close()

        answer = threading.Thread(target=hang_up)
        answer.start()
        assert post(f"http://127.0.0.1:{port}/", b"", {}, allow_private=True) is not None
        answer.join()
    assert post(receiver.url.replace("http:", "https:"), b"", {}, allow_private=True) is not None


@pytest.mark.parametrize("secret", ["plain", "whsec_", "whsec_???", "whsec_" + base64.b64encode(b"short").decode()])
def test_a_secret_that_is_none_is_refused_and_not_shown(
    secret: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHFILE_WEBHOOKS__ACME__URL", "https://example.com/hook")
    monkeypatch.setenv("BATCHFILE_WEBHOOKS__ACME__SECRET", secret)
    with pytest.raises(SettingsError, match="whsec_") as refused:
        load_settings()
    assert f"{secret!r}" not in str(refused.value)
