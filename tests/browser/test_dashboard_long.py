"""What takes longer in a browser: a restart of the service, pools that fail, 1,000 batches, and their cost."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from playwright.sync_api import Route as AskedFor

from tests.chaos.servers import BUCKET, KEYS, Server
from tests.contract import chat_server
from tests.helpers.ledger import HeartbeatRecord, write_heartbeat
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger
from tests.warm import Warm

from .conftest import HANG_MS
from .test_dashboard import violations

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).parents[2]
NUM_BATCHES, NUM_RUNNERS = 1_000, 100
WATCHED_S = 20.0

OBSERVE = """window.slow = [];
new PerformanceObserver(list => window.slow.push(...list.getEntries().map(one => one.duration)))
    .observe({type: 'longtask'})"""

expect.set_options(timeout=HANG_MS)


class Route:
    """A fixed address that leads to a service, to the next one, or nowhere (`port` 0)."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.port or 1)) as service:
            threading.Thread(target=_pass_on, args=(client, service), daemon=True).start()
            _pass_on(service, client)

    def close(self) -> None:
        self._listener.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def start_runner(tmp_path: Path) -> Iterator[Callable[..., None]]:
    started: list[Warm] = []

    def start(store: str, *more: str, **variables: str) -> None:
        arguments = ["--pool", "mistral", "--store", store, "--metrics-port", "0", *more]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        with (tmp_path / f"runner-{len(started)}.log").open("wb") as log:
            started.append(Warm("runners", arguments, cwd=tmp_path, env=environ, stdout=log, stderr=log))

    yield start
    for one in started:
        one.kill()
        one.wait()


def store_requests(api: Any) -> int:
    """Of the API process so far."""
    figures = re.findall(r"^batchfile_store_requests_total\{.*\} (\S+)$", api.http.get("/metrics").text, re.MULTILINE)
    return round(sum(map(float, figures)))


def test_a_batch_in_a_bucket_from_its_file_to_its_results(
    tmp_path: Path, start_api: Any, start_runner: Any, open_page: Callable[..., Page]
) -> None:
    """With a runner that works slowly enough to be watched: shards, throughput and results as they land."""
    server = Server("ministack", tmp_path)
    try:
        server.start()
        server.wait()
        server.make_bucket()
        store = f"s3://{BUCKET}/browser?endpoint={server.url}&region=us-east-1"
        api = start_api(store, **KEYS)
        slow = {"BATCHFILE_ECHO_LATENCY_S": "0.2", "BATCHFILE_ECHO_SLOTS": "8", "BATCHFILE_LIMITS__CHECKPOINT_S": "1"}
        start_runner(store, "--engine", "echo", **KEYS, **slow)
        page = open_page(f"{api.url}/#/submit")
        page.set_input_files("#file", {"name": "p.txt", "mimeType": "", "buffer": b"one short prompt\n" * 600})
        page.get_by_label("Pool").select_option("mistral")
        page.get_by_role("button", name="Submit").click()
        expect(page.locator("h1 + .state")).to_have_text("Running")
        expect(page.get_by_text("being worked on").first).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("Requests finished since the start"))).to_be_visible()
        expect(page.get_by_role("heading", name="Latest results")).to_be_visible()
        expect(page.locator(".result").first).to_contain_text("one short prompt")
        assert violations(page) == []
        page.goto(f"{api.url}/#/pools")
        expect(page.get_by_role("region", name="Runners of mistral").get_by_text("Running")).to_be_visible()
        assert violations(page) == []
        page.go_back()
        expect(page.locator("h1 + .state")).to_have_text("Completed")
        expect(page.get_by_text("600 of 600 requests")).to_be_visible()
        expect(page.get_by_role("heading", name="First 10 results")).to_be_visible()
    finally:
        server.kill()


def test_canceling_asks_first_and_the_rest_can_be_run_again(
    api: Any, open_page: Callable[..., Page], make_request: Any
) -> None:
    batch_id = api.submit("subject", [make_request(f"r{n}") for n in range(3)])
    page = open_page(api.url)
    row = page.get_by_role("row").filter(has_text=batch_id)
    row.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_contain_text("3 requests will not run")
    page.keyboard.press("Escape")
    assert api.http.get(f"/api/batches/{batch_id}").json()["state"] == "open"
    row.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the batch").click()
    expect(row.get_by_text("Canceled", exact=True)).to_be_visible()
    row.get_by_role("button", name="Rerun failed").click()
    expect(page.get_by_text("A batch of 3 requests was created")).to_be_visible()
    page.get_by_label("State").select_option("canceled")
    expect(page.get_by_role("row").filter(has_text="Canceled")).to_have_count(1)
    page.get_by_label("State").select_option("failed")
    expect(page.get_by_text("No batch fits these filters")).to_be_visible()


def test_a_pool_whose_endpoint_rejects_the_key_says_so(
    start_api: Any, start_runner: Any, open_page: Callable[..., Page], make_request: Any
) -> None:
    with chat_server.running() as endpoint:
        endpoint.always = {"status": 401, "text": json.dumps({"error": {"message": "bad key"}})}
        api = start_api()
        batch_id = api.submit("email", [make_request(f"r{n}") for n in range(20)])
        start_runner(api.store, MISTRAL_BASE_URL=endpoint.url, MISTRAL_API_KEY="sk-secret")
        page = open_page(f"{api.url}/#/pools")
        words = "The endpoint rejects the API key (401)"
        expect(page.get_by_role("region", name="Pool mistral").get_by_text(words).first).to_be_visible()
        page.goto(f"{api.url}/#/batch/{batch_id}")
        expect(page.locator("h1 + .state")).to_have_text("Waiting")
        expect(page.locator(".note").filter(has_text=words)).to_be_visible()
        assert "sk-secret" not in page.content()
        endpoint.always = None
        expect(page.locator("h1 + .state")).to_have_text("Completed")


def test_a_file_without_a_pool_says_once_what_is_missing(api: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{api.url}/#/submit")
    submit = page.get_by_role("button", name="Submit")
    for _ in range(2):  # the same file can be chosen again
        page.set_input_files("#file", {"name": "p.txt", "mimeType": "", "buffer": b"a prompt\n" * 90})
        expect(page.get_by_text("Line 1 and 89 more")).to_be_visible()
        expect(page.get_by_text("90 requests would have no pool")).to_be_visible()
        expect(submit).to_be_disabled()
    page.get_by_label("Pool").select_option("mistral")
    expect(page.get_by_text("Every request can run")).to_be_visible()
    expect(submit).to_be_enabled()
    page.set_input_files("#file", {"name": "p.parquet", "mimeType": "", "buffer": b"PAR1" + bytes(90) + b"PAR1"})
    expect(page.get_by_text("p.parquet: is Parquet data")).to_be_visible()
    expect(submit).to_be_disabled()


def test_pages_stay_apart_when_answers_are_late(
    serve_api: Any, open_page: Callable[..., Page], make_request: Any
) -> None:
    """Two clicks turn one page, and a look at the first page that ends later does not reach the second."""
    api = serve_api()
    made = [api.submit("email", [make_request("a")]) for _ in range(60)]
    page = open_page(api.url)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    late: list[AskedFor] = []

    def hold(asked: AskedFor) -> None:
        late.append(asked)

    page.route("**/api/batches?*before=*", hold)
    with page.expect_request("**/api/batches?*before=*"):
        made.append(api.submit("email", [make_request("new")]))
    page.get_by_role("button", name="Older").dblclick()
    expect(page.get_by_text("Page 2")).to_be_visible()
    for one in late:
        one.continue_()
    with page.expect_response("**/api/batches?*id=*"):
        pass
    expect(rows).to_have_count(10)
    expect(rows.first).to_contain_text(made[9])


def test_failed_requests_are_grouped_by_reason(api: Any, open_page: Callable[..., Page], make_request: Any) -> None:
    bad = {"params": {"max_tokens": 0, "messages": [{"role": "user", "content": "x"}]}}
    batch_id = api.submit("email", [make_request("good"), *(make_request(f"b{n}") | bad for n in range(4))])
    api.work(batch_id)
    page = open_page(f"{api.url}/#/batch/{batch_id}")
    group = page.get_by_role("region", name="Failures").get_by_role("listitem")
    expect(group).to_have_count(1)
    expect(group).to_contain_text("4 requests")
    expect(group).to_contain_text("max_tokens")
    group.get_by_text("Example").click()
    expect(group.get_by_text("b0")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Failed requests").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 4


def test_the_service_restarts_under_the_page(start_api: Any, open_page: Callable[..., Page], make_request: Any) -> None:
    first = start_api()
    route = Route(first.port)
    try:
        batch_id = first.submit("email", [make_request("a")])
        page = open_page(f"{route.url}/#/batch/{batch_id}")
        expect(page.locator("h1 + .state")).to_have_text("Waiting")
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        route.port = 0
        first.stop()
        expect(page.get_by_role("alert").filter(has_text="The service does not answer")).to_be_visible()
        expect(page.locator("h1 + .state")).to_have_text("Waiting")
        second = start_api(first.store)
        second.work(batch_id)
        route.port = second.port
        expect(page.locator("h1 + .state")).to_have_text("Completed")
        expect(page.locator("#banner")).to_be_hidden()
    finally:
        route.close()


def test_a_thousand_batches_and_a_hundred_runners(
    start_api: Any, open_page: Callable[..., Page], make_request: Any, record_property: Any
) -> None:
    """Pages stay as they are while new batches arrive, and a page asks less of the store than `batchfile watch`."""
    api = start_api(BATCHFILE_API__OPEN_BATCHES_MAX="5000")
    made = [api.submit("email", [make_request("a")]) for _ in range(NUM_BATCHES)]
    ledger = open_service_ledger(api.store, load_settings())
    for n in range(NUM_RUNNERS):
        record = HeartbeatRecord(
            pool="llama-70b", runner_id=f"r-{n:03d}", model="m", engine="vllm", state="running", started_at=time.time()
        )
        write_heartbeat(ledger, record)
    page = open_page(api.url)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    weight = page.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.includes('/api/')).length")
    page.get_by_role("button", name="Older").click()
    expect(rows.first).to_contain_text(made[-51])
    api.submit("email", [make_request("new")])
    before = store_requests(api)
    page.wait_for_timeout(WATCHED_S * 1000)
    of_page = store_requests(api) - before
    assert rows.first.inner_text().startswith("Queued") or made[-51] in rows.first.inner_text()
    page.get_by_role("button", name="Newer").click()
    expect(rows.first).not_to_contain_text(made[-1])
    page.evaluate(OBSERVE)
    page.goto(f"{api.url}/#/pools")
    expect(page.locator(".runners tbody tr")).to_have_count(NUM_RUNNERS)
    slow = page.evaluate("window.slow")
    page.close()
    before = store_requests(api)
    command = [sys.executable, "-m", "batchfile", "watch", "--url", api.url]
    watching = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(WATCHED_S)
    watching.kill()
    watching.wait()
    of_watch = store_requests(api) - before
    found = {"page": of_page * 60 / WATCHED_S, "watch": of_watch * 60 / WATCHED_S, "paint_ms": paint, "slow_ms": slow}
    print(json.dumps({"store requests per minute": found, "files": weight}))
    record_property("dashboard", found)
    assert of_page < of_watch
    assert httpx.get(api.url, trust_env=False).status_code == 200
