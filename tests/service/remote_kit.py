"""What the tests of commands for batches elsewhere share: real processes, runners, and a line that can be cut."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from batchfile import Runner, RunnerOptions
from tests import warm
from tests.helpers.engine import engine_factory
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger

WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
ROOT = Path(__file__).parents[2]


class Shell:
    """Runs the command in a folder. `place`: the options that say where the batches are; `store`: where they lie."""

    def __init__(self, folder: Path, place: list[str], store: str, **variables: str) -> None:
        self.folder = folder
        self.store = store
        self._place = place
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of tests in the background; processes inherit it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.environ = {**kept, "PYTHONPATH": str(ROOT), **variables}

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "batchfile", *arguments, *self._place]
        return subprocess.Popen(command, cwd=self.folder, env=self.environ, stdin=pipe, stdout=pipe, stderr=pipe)

    def run(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = warm.run("batchfile", [*arguments, *self._place], cwd=self.folder, env=self.environ, stdin=stdin)
        return self._checked(done, code)

    def end(self, process: subprocess.Popen[bytes], *, stdin: bytes = b"", code: int = 0) -> Any:
        try:
            out, said = process.communicate(stdin, WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return self._checked(subprocess.CompletedProcess(process.args, process.returncode, out, said), code)

    def _checked(self, done: subprocess.CompletedProcess[bytes], code: int) -> subprocess.CompletedProcess[bytes]:
        assert done.returncode == code, (done.args, done.stdout[-1000:], done.stderr[-2000:])
        return done

    def id_of(self, *arguments: str, stdin: bytes = b"") -> str:
        return self.run(*arguments, stdin=stdin).stdout.decode().strip()

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.run(*arguments, "--json").stdout.splitlines()]

    def work(self, batch_id: str, pool: str = "mistral") -> None:
        """Run the batch to its end with an echo engine."""
        options = RunnerOptions(runner_id=f"{pool}-test", pool=pool, only=batch_id, is_janitor=False)
        ledger = open_service_ledger(self.store, load_settings())
        Runner(ledger, engine_factory("echo", model="echo"), options).run()


def line(custom_id: str, **params: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Write to {custom_id}."}]
    return {"custom_id": custom_id, "params": {"messages": messages, "max_tokens": 16, **params}}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


class Wire:
    """A TCP line to a port. `cut` breaks every connection, and while `is_down` new ones break at once.

    `lose`: the answer to what holds these bytes is lost, once.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.lose: bytes | None = None
        self.is_down = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.is_down:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self._open += [near, far]
                is_lost = threading.Event()
                threading.Thread(target=self._carry, args=(near, far, is_lost, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, is_lost, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, is_lost: threading.Event, is_request: bool) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(65536):
                if is_request and self.lose is not None and self.lose in data:
                    self.lose = None
                    is_lost.set()
                if not is_request and is_lost.is_set():
                    break
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
            source.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()
