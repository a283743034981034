"""RunPod over HTTP, where it answers what nobody likes to hear."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.helpers.fleet import RunpodError, at, call, key_of


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
