"""`batchfile run --engine http` against endpoints that cannot serve it: message, exit code, and what is kept."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import warm

WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
KEY = "sk-canary"

Told = tuple[int, str] | tuple[int, str, dict[str, str]]
"""Status, body, and headers; a body that begins with { is JSON, one with < is a page."""


def said(message: str) -> str:
    return json.dumps({"error": {"message": message}})


def listing(*names: str) -> Told:
    return 200, json.dumps({"object": "list", "data": [{"id": name} for name in names]})


def good(body: dict) -> Told:
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    return 200, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})


@dataclass
class Endpoint:
    """`models` answers GET /v1/models, `answer` each POST (path, body, Authorization header). `asked`: the paths."""

    models: Told = field(default_factory=lambda: listing("served"))
    answer: Callable[[str, dict, str], Told] = lambda path, body, key: good(body)
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def serving(endpoint: Endpoint, port: int = 0) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.tell(endpoint.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.tell(endpoint.answer(self.path, body, self.headers.get("Authorization", "")))

        def tell(self, told: Told) -> None:
            endpoint.asked.append(self.path)
            status, text, *more = told
            data = text.encode()
            self.send_response(status)
            kind = {"{": "application/json", "<": "text/html"}.get(text[:1], "text/plain")
            headers = {"Content-Type": kind, "Content-Length": str(len(data))} | (more[0] if more else {})
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    endpoint.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def free_port() -> Iterator[int]:
    """Bound and not listening: refused for as long as the test holds it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"number {n}"}], "max_tokens": 4}}
        for n in range(10)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def arguments(url: str, *more: str) -> list[str]:
    served = ("--engine", "http", "--base-url", url, "--model", "served")
    return ["run", "in.jsonl", "-o", "out.jsonl", *served, *more]


def run(folder: Path, url: str, *more: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OPENAI_API_KEY": key}
    done = warm.run("batchfile", arguments(url, *more), cwd=folder, env=environ)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def batches(folder: Path) -> list[Path]:
    return list(folder.glob(".batchfile/batches/*/batch.json"))


def fails(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """With exit code 2, and one sentence that says all of this."""
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("batchfile: the endpoint ")
    assert not [word for word in words if word not in last], last
    assert "Traceback" not in done.stderr
    assert KEY not in done.stderr


def everywhere(status: int, text: str, headers: dict[str, str] | None = None) -> Endpoint:
    told = (status, text, headers or {})
    return Endpoint(models=told, answer=lambda *_: told)


UNFIT = {
    "wrong key": (
        everywhere(401, said(f"Incorrect API key provided: {KEY}")),
        ("rejected the API key (401: Incorrect API key provided: ***)", "check OPENAI_API_KEY"),
    ),
    "key may not use it": (
        everywhere(403, said("Project has no access")),
        ("denied access to the model 'served' (403: Project has no access)", "check OPENAI_API_KEY and --model"),
    ),
    "unknown model": (
        Endpoint(
            models=listing("a", "b", "c", "d", "e", "f", "g"),
            answer=lambda path, body, key: (404, said(f"The model `{body['model']}` does not exist.")),
        ),
        ("404: The model `served` does not exist.", "with --model", "it serves a, b, c, d, e and 2 more"),
    ),
    "unknown model, no list": (
        everywhere(404, said("no such model")),
        ("does not serve the model 'served' (404: no such model)", "name another with --model, or check --base-url"),
    ),
    "redirect": (
        everywhere(308, "", {"Location": "https://elsewhere.example/v1"}),
        ("redirects to https://elsewhere.example/v1 (308)", "--base-url"),
    ),
    "a page": (
        everywhere(200, "<html>Sign in</html>"),
        ("does not answer as an OpenAI-compatible API (a web page, status 200)", "check --base-url"),
    ),
    "a page that is not found": (everywhere(404, "<html>Not Found</html>"), ("a web page, status 404", "--base-url")),
    "words": (everywhere(404, "404 page\x1b[31m\n not found"), ("404: 404 page [31m not found", "--base-url")),
    "no POST here": (everywhere(405, "<html>Not Allowed</html>"), ("a web page, status 405", "--base-url")),
    "not implemented": (everywhere(501, "<html>POST?</html>"), ("a web page, status 501", "--base-url")),
    "plain HTTP to a TLS port": (
        everywhere(400, "<html>The plain HTTP request was sent to HTTPS port</html>"),
        ("a web page, status 400", "--base-url"),
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_endpoint_that_refuses_every_request_ends_the_run_before_a_file_is_planned(folder: Path, name: str) -> None:
    endpoint, words = UNFIT[name]
    with serving(endpoint):
        fails(run(folder, endpoint.url), endpoint.url, *words)
    assert batches(folder) == []
    assert not (folder / "out.jsonl").exists()


def test_a_missing_key_is_asked_for(folder: Path) -> None:
    with serving(everywhere(401, said("who are you"))) as endpoint:
        fails(run(folder, endpoint.url, key=""), "requires an API key (401: who are you)", "set OPENAI_API_KEY")


def test_an_endpoint_that_is_not_there_ends_the_run(folder: Path, free_port: int) -> None:
    done = run(folder, f"http://127.0.0.1:{free_port}")
    fails(done, f"http://127.0.0.1:{free_port}/v1 cannot be reached (no connection: Connection refused)")
    fails(done, "start it, check --base-url, or add --wait-for-endpoint")
    assert batches(folder) == []


def test_a_host_that_does_not_resolve_ends_the_run(folder: Path) -> None:
    fails(run(folder, "http://no-such-host.invalid/v1"), "the host name 'no-such-host.invalid' cannot be resolved")


def test_an_endpoint_without_tls_at_an_https_address_ends_the_run(folder: Path) -> None:
    with serving(Endpoint()) as endpoint:
        fails(run(folder, endpoint.url.replace("http:", "https:")), "cannot be reached", "TLS failed")


def test_an_endpoint_that_breaks_every_connection_ends_the_run(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drop() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.recv(100)
                connection.close()

        threading.Thread(target=drop, daemon=True).start()
        done = run(folder, f"http://127.0.0.1:{server.getsockname()[1]}")
        fails(done, "closes the connection without an answer", "http:// or https://")
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "models", [(404, said("no such path")), (403, said("no permission for models")), listing("other")]
)
def test_a_listing_that_does_not_name_the_model_is_no_verdict(folder: Path, models: Told) -> None:
    """Aliases are not listed, keys may be bound to requests alone, and some endpoints have no listing."""
    with serving(Endpoint(models=models)) as endpoint:
        assert run(folder, endpoint.url).returncode == 0


def test_nothing_is_generated_to_check_an_endpoint_that_lists_the_model(folder: Path) -> None:
    with serving(Endpoint()) as endpoint:
        assert run(folder, endpoint.url).returncode == 0
        assert sorted(endpoint.asked) == ["/v1/chat/completions"] * 10 + ["/v1/models"]


def test_a_key_that_only_requests_need_ends_the_run_and_the_same_command_resumes_it(folder: Path) -> None:
    def answer(path: str, body: dict, key: str) -> Told:
        return good(body) if key == f"Bearer {KEY}" else (401, said("bad key"))

    with serving(Endpoint(answer=answer)) as endpoint:
        refused = run(folder, endpoint.url, key="sk-wrong")
        fails(refused, "rejected the API key (401: bad key)")
        assert "loading the model" not in refused.stderr
        [batch] = batches(folder)
        done = run(folder, endpoint.url)
    assert done.returncode == 0
    assert f"resuming {batch.parent.name}" in done.stderr
    assert len((folder / "out.jsonl").read_text().splitlines()) == 10


def test_a_model_that_is_listed_and_not_served_is_told_how_to_run_another(folder: Path) -> None:
    def answer(path: str, body: dict, key: str) -> Told:
        return good(body) if body["model"] == "other" else (404, said("not loaded"))

    with serving(Endpoint(models=listing("served", "other"), answer=answer)) as endpoint:
        fails(run(folder, endpoint.url), "with --model and add --restart; it serves served, other")
        assert run(folder, endpoint.url, "--model", "other", "--restart").returncode == 0


def test_a_request_that_is_refused_before_any_good_answer_fails_alone(folder: Path) -> None:
    def answer(path: str, body: dict, key: str) -> Told:
        return (403, said("flagged")) if body["messages"][0]["content"] == "number 0" else good(body)

    with serving(Endpoint(answer=answer)) as endpoint:
        assert run(folder, endpoint.url, "--max-num-seqs", "1").returncode == 3
    results = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["status"] for row in results] == ["errored"] + ["succeeded"] * 9


def test_wait_for_endpoint_waits(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "batchfile", *arguments(f"http://127.0.0.1:{port}", "--wait-for-endpoint", "-v")],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert waiting.stderr is not None
        for line in waiting.stderr:
            if "engine.first_requests" in line:
                break
        time.sleep(0.1)
        assert waiting.poll() is None
        with serving(Endpoint(), port):
            waiting.communicate(timeout=WAIT_S)
            assert waiting.returncode == 0
    finally:
        waiting.kill()


def test_wait_for_endpoint_is_for_http_alone(folder: Path) -> None:
    args = [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", "o", "--engine", "echo", "--wait-for-endpoint"]
    done = subprocess.run(args, cwd=folder, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2
    assert "--wait-for-endpoint is for --engine http, not for echo" in done.stderr


def test_a_run_that_has_ended_needs_no_endpoint_and_a_restart_that_fails_keeps_it(folder: Path) -> None:
    with serving(Endpoint()) as endpoint:
        assert run(folder, endpoint.url).returncode == 0
        results = (folder / "out.jsonl").read_bytes()
    fails(run(folder, endpoint.url, "--restart"), "cannot be reached")
    assert (folder / "out.jsonl").read_bytes() == results
    done = run(folder, endpoint.url)
    assert done.returncode == 0
    assert "nothing is left to run" in done.stderr


def test_one_request_that_always_meets_502_fails_alone_and_the_run_ends(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parents[1] / "cases" / "http-one-poison.py"
    endpoint = subprocess.Popen([sys.executable, script, str(port), "p502", "in.jsonl"], cwd=tmp_path)
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            assert time.monotonic() < deadline, "the endpoint does not start"
            with socket.socket() as caller:
                if not caller.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.05)
        done = run(tmp_path, f"http://127.0.0.1:{port}", "--max-num-seqs", "4")
    finally:
        endpoint.kill()
        endpoint.wait()
    assert done.returncode == 3, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    failed = [row for row in rows if row["response"]["status_code"] != 200]
    assert [row["custom_id"] for row in failed] == ["poison"]
    message = failed[0]["response"]["body"]["error"]["message"]
    assert message == "The endpoint answered 502: 502 Bad Gateway (3 attempts)"
