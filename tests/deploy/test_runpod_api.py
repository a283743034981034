"""RunPod over HTTP, where it answers what nobody likes to hear."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fake_runpod import KEY, FakeRunpod, Server
from fake_runpod_rules import Problem

from tests.helpers.fleet import Runpod, RunpodError, at, call, key_of


class Elsewhere:
    """A server that redirects what comes under /old, and keeps the keys that reach it."""

    def __init__(self) -> None:
        keys = self.keys = list[str | None]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                keys.append(self.headers.get("Authorization"))
                is_old = self.path.startswith("/old")
                self.send_response(302 if is_old else 200)
                if is_old:
                    self.send_header("Location", f"http://localhost:{self.server.server_port}/new")  # type: ignore[attr-defined]
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    one = Elsewhere()
    thread = threading.Thread(target=one.http.serve_forever, args=(0.05,))
    thread.start()
    yield one
    one.http.shutdown()
    thread.join()
    one.http.server_close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_is_told_and_gets_no_key(elsewhere: Elsewhere, method: str) -> None:
    with pytest.raises(RunpodError, match=r"302 redirect to http://localhost:\d+/new is not followed"):
        call(method, f"{elsewhere.url}/old", "secret", {} if method == "POST" else None)
    assert elsewhere.keys == ["Bearer secret"]


@pytest.mark.parametrize("text", ["rpa_key\n", " rpa_key", "rpa_key\r\n"])
def test_what_surrounds_a_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOME_KEY", text)
    assert key_of("SOME_KEY") == "rpa_key"
    monkeypatch.setenv("SOME_KEY", " \n")
    assert key_of("SOME_KEY") is None


@pytest.mark.parametrize("text", ["rpa_\nkey", "rpa_\x7fkey", "rpa_kéy", "rpa_“key”"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SOME_KEY", text)
    with pytest.raises(RunpodError, match="SOME_KEY contains characters that no key has") as told:
        key_of("SOME_KEY")
    assert "rpa_" not in str(told.value)


def test_what_is_missing_in_an_answer_is_named_and_no_value_is_shown() -> None:
    answer = {"env": {"HF_TOKEN": "hf_secret"}, "workers": {"min": "hf_secret"}}
    for names in (("env", "POOL"), ("workers", "min"), ("workers", "min", "most"), ("none", "at", "all")):
        with pytest.raises(RunpodError, match=".".join(names)) as told:
            at(answer, *names, kind=int, of="endpoint")
        assert "hf_secret" not in str(told.value)
    assert at({"jobs": {"failed": 1}}, "jobs", "failed", kind=int, of="health") == 1


POD = {"image": "x", "cpu": {"id": "cpu5c", "vcpuCount": 2}}


def test_a_list_has_all_pages_and_each_thing_once(server: Server, runpod: FakeRunpod) -> None:
    """A pod that is created meanwhile moves the others to the next page."""
    client = Runpod(KEY, server.url, server.url)
    ids = [client.manage("POST", "/pods", {**POD, "name": f"p{number}"})["id"] for number in range(7)]
    runpod.page_num = 2
    assert [pod["id"] for pod in client.listed("/pods", "pods")] == list(reversed(ids))
    runpod.odd = {"/v2/pods": {"pods": [{"id": "a"}], "pagination": {"nextCursor": "again", "hasNextPage": True}}}
    with pytest.raises(RunpodError, match="the pages never end"):
        client.listed("/pods", "pods")


class Busy:
    """Refuses with 429 as often as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runpod: FakeRunpod, num: int, retry_after: str) -> None:
        self.waits = waits = list[float]()
        answer, left = runpod.answer, [num]

        def busy(method: str, path: str, body: dict[str, Any], key: str | None) -> Any:
            if left[0]:
                left[0] -= 1
                raise Problem(429, "rate limit exceeded for the minute window", headers={"Retry-After": retry_after})
            return answer(method, path, body, key)

        monkeypatch.setattr(runpod, "answer", busy)
        monkeypatch.setattr("runners.runpod.api.time.sleep", waits.append)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_429_is_waited_for_as_long_as_it_says(
    server: Server, runpod: FakeRunpod, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    busy = Busy(monkeypatch, runpod, 2, "12")
    body = {**POD, "name": "p"} if method == "POST" else None
    Runpod(KEY, server.url, server.url, patience_s=65.0).manage(method, "/pods", body)
    assert busy.waits == [12.0, 12.0]
    assert len(runpod.things["pods"]) == (method == "POST")


@pytest.mark.parametrize(("num", "retry_after", "patience_s"), [(3, "12", 65.0), (1, "1800", 65.0), (1, "12", 5.0)])
def test_429_for_longer_is_an_error_with_the_time(
    server: Server, runpod: FakeRunpod, monkeypatch: pytest.MonkeyPatch, num: int, retry_after: str, patience_s: float
) -> None:
    Busy(monkeypatch, runpod, num, retry_after)
    with pytest.raises(RunpodError, match=f"429 rate limit exceeded .*; try again in {retry_after} s"):
        Runpod(KEY, server.url, server.url, patience_s=patience_s).manage("GET", "/pods")
