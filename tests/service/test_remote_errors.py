"""What goes wrong between a command and a service: each is one line that says what happened and what to do."""

import hashlib
import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.service.remote_kit import Shell, Wire, jsonl, line, wire_to

KEY = "bf_remote-test"
KEYS = f"default:{hashlib.sha256(KEY.encode()).hexdigest()}"
CLOSED = "http://127.0.0.1:9"  # discard; nobody listens there


@pytest.fixture(scope="module")
def api(serve_api: Any) -> Any:
    return serve_api(BATCHFILE_API_KEYS=KEYS, BATCHFILE_API__BODY_BYTES_MAX="200000")


@pytest.fixture
def shell(api: Any, tmp_path: Path) -> Shell:
    return Shell(tmp_path, [], api.store, BATCHFILE_URL=api.url, BATCHFILE_API_KEY=KEY)


@pytest.fixture
def wire(api: Any) -> Iterator[Wire]:
    with wire_to(api.port) as found:
        yield found


@pytest.fixture
def page() -> Iterator[str]:
    """A server of something else."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>Welcome</html>")

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_wrong_key_a_wrong_address_and_a_wrong_name_are_wrong_usage_and_say_what_to_do(
    shell: Shell, page: str
) -> None:
    (shell.folder / "in.jsonl").write_bytes(jsonl(line("a")))
    said = shell.run("submit", "in.jsonl", "--stage", "email", "--api-key", "bf_other", code=2).stderr.decode()
    assert "does not accept this API key; check BATCHFILE_API_KEY" in said
    said = shell.run("ls", "--url", page, code=2).stderr.decode()
    assert "answered 200 with text/html, so it is not a batchfile service; check the address" in said
    said = shell.run("ls", "--url", CLOSED, code=1).stderr.decode()
    assert f"{CLOSED} cannot be reached (Connection refused); check that it is running" in said
    said = shell.run("status", "batch_000000000000", code=2).stderr.decode()
    assert "no such batch at http" in said
    said = shell.run("submit", "in.jsonl", "--stage", "emial", code=2).stderr.decode()
    assert "stage: 'emial' is unknown; use one of email, " in said
    assert shell.run("submit", "in.jsonl", "--stage", "emial", "--store", "st", code=2).stderr == said.encode()
    for ending in ("csv", "jsonl.gz"):
        said = shell.run("results", "batch_000000000000", "-o", f"out.{ending}", code=2).stderr.decode()
        assert f"out.{ending}: the format is not supported; use a name ending in .jsonl or .parquet" in said
    said = shell.run("ls", "--url", page, "--store", "st", code=2).stderr.decode()
    assert "--url and --store cannot be combined" in said


def test_a_file_that_is_too_large_for_the_service_is_told_the_way_around_it(shell: Shell) -> None:
    (shell.folder / "in.jsonl").write_bytes(jsonl(*(line(f"r{number}") for number in range(5_000))))
    said = shell.run("submit", "in.jsonl", "--stage", "email", code=4).stderr.decode()
    assert "larger than 200,000 bytes" in said
    assert "with --store" in said


def test_a_damaged_file_is_said_and_nothing_is_made_of_it(shell: Shell) -> None:
    (shell.folder / "in.jsonl.gz").write_bytes(b"\x1f\x8b" + b"x" * 100)
    before = shell.json("ls")
    said = shell.run("submit", "in.jsonl.gz", "--stage", "email", code=4).stderr.decode()
    assert "the gzip data is damaged" in said
    assert shell.json("ls") == before


def test_a_create_whose_answer_is_lost_is_one_batch(shell: Shell, wire: Wire) -> None:
    before = len(shell.json("ls"))
    wire.lose = b"POST /api/batches"
    batch_id = shell.id_of("submit", "-", "--stage", "email", "--url", wire.url, stdin=jsonl(line("a")))
    assert wire.lose is None
    found = shell.json("ls")
    assert (len(found), found[0]["batch_id"]) == (before + 1, batch_id)


def test_a_service_that_goes_away_for_a_while_is_waited_for(shell: Shell, wire: Wire) -> None:
    batch_id = shell.id_of("submit", "-", "--stage", "email", stdin=jsonl(line("a")))
    with shell.begin("watch", batch_id, "--url", wire.url) as watch:
        assert watch.stderr is not None
        assert b"0/1 requests" in watch.stderr.readline()
        wire.is_down = True
        wire.cut()
        while b"waiting: http" not in watch.stderr.readline():
            pass
        shell.work(batch_id)
        wire.is_down = False
        watch.stderr.read()
    assert watch.returncode == 0


def test_a_tail_whose_connection_breaks_gives_each_result_once(shell: Shell, wire: Wire) -> None:
    hints = {"mistral": range(100), "llama-70b": range(100, 200)}
    lines = [{**line(f"r{n}"), "metadata": {"model_hint": pool}} for pool, numbers in hints.items() for n in numbers]
    batch_id = shell.id_of("submit", "-", stdin=jsonl(*lines))
    tail = shell.begin("tail", batch_id, "--url", wire.url)
    workers = [threading.Thread(target=shell.work, args=(batch_id, pool)) for pool in hints]
    workers[0].start()
    with tail:
        assert tail.stdout is not None
        found = [tail.stdout.readline()]
        wire.cut()
        workers[1].start()
        found += tail.stdout.readlines()
    assert tail.returncode == 0
    for worker in workers:
        worker.join()
    assert sorted(json.loads(row)["custom_id"] for row in found) == sorted(item["custom_id"] for item in lines)


def test_a_full_disk_keeps_what_arrived_and_the_same_command_goes_on(shell: Shell, wire: Wire) -> None:
    batch_id = shell.id_of("submit", "-", "--stage", "email", stdin=jsonl(*(line(f"r{n}") for n in range(600))))
    shell.work(batch_id)
    command = [sys.executable, "-m", "batchfile", "results", batch_id, "-o", "out.jsonl"]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    full = subprocess.run(
        command, cwd=shell.folder, env=shell.environ, capture_output=True, preexec_fn=limit, check=False, timeout=1200
    )
    assert full.returncode == 1
    assert b"the disk is full; finished work is kept" in full.stderr
    (partial,) = shell.folder.glob(".out.jsonl.*.partial")
    assert 0 < partial.stat().st_size <= 50_000
    assert not (shell.folder / "out.jsonl").exists()
    shell.run("results", batch_id, "-o", "out.jsonl")
    assert (shell.folder / "out.jsonl").read_bytes() == shell.run("results", batch_id).stdout
    assert list(shell.folder.glob(".out*")) == []


def test_an_interrupted_wait_leaves_the_batch_and_says_how_to_go_on(shell: Shell) -> None:
    waiting = shell.begin("submit", "-", "--stage", "email", "--wait")
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    waiting.stdin.write(jsonl(line("a")))
    waiting.stdin.close()
    waiting.stdin = None
    batch_id = waiting.stdout.readline().decode().strip()
    assert waiting.stderr is not None
    while b"0/1 requests" not in waiting.stderr.readline():
        pass
    waiting.send_signal(signal.SIGINT)
    said = shell.end(waiting, code=130).stderr.decode()
    assert f"{batch_id} keeps running: `batchfile watch {batch_id}` follows it" in said
    assert shell.json("status", batch_id)[0]["state"] == "open"
