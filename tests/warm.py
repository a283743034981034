"""Our commands as processes that start warm: forked from a process that has loaded their modules already.

`python -m batchfile` and `python -m api` spend most of their start on imports, and the tests start hundreds. A process
from here is as real in everything else: its environment, folder, files, signals and exit code are its own. What a start
itself does is tested with `subprocess`.

The forking process has one thread and nothing but imports in it. It ends with the process that started it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
LOADED = (
    "api.__main__",
    "batchfile.cli.batches",
    "batchfile.cli.run",
    "batchfile.cli.submit",
    "batchfile.client.http_client",
    "batchfile.engine.echo",
    "batchfile.engine.http.engine",
    "batchfile.local.session",
    "batchfile.store.directory",
    "batchfile.store.s3",
)
MESSAGE_BYTES_MAX = 200_000
WAIT_S = 1200.0  # only against a hang


class Warm:
    """A process that runs `python -m MODULE ARGUMENTS`; what `subprocess.Popen` has of that name, it has too."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> None:
        self.args = [sys.executable, "-m", module, *arguments]
        self.returncode: int | None = None
        self._end, theirs = socket.socketpair()
        message = json.dumps({"module": module, "arguments": list(arguments), "cwd": str(cwd), "env": dict(env)})
        with theirs, open(os.devnull, "rb") as nothing:
            files = [(stdin or nothing).fileno(), stdout.fileno(), stderr.fileno(), theirs.fileno()]
            _forker().send(message.encode(), files)
        self._answers = self._end.makefile()
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        if self.returncode is None and _is_readable(self._end, 0.0):
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not _is_readable(self._end, timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._end.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    module: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """To its end. `stdin` is a pipe, as `subprocess.run` has it."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        process = Warm(module, arguments, cwd=cwd, env=env, stdin=given, stdout=out, stderr=said)
        given.close()
        feeder = threading.Thread(target=_feed, args=(writer, stdin))
        feeder.start()
        try:
            process.wait(WAIT_S)
        finally:
            process.kill()
            feeder.join()
        for file in (out, said):
            file.seek(0)
        return subprocess.CompletedProcess(process.args, process.wait(), out.read(), said.read())


def _feed(writer: int, data: bytes) -> None:
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(data)
    except BrokenPipeError:
        pass


def _is_readable(end: socket.socket, timeout: float | None) -> bool:
    end.settimeout(timeout)
    try:
        return bool(end.recv(1, socket.MSG_PEEK)) or True
    except (BlockingIOError, TimeoutError):
        return False
    finally:
        end.settimeout(None)


class _Forker:
    """The process that forks, seen from here. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def close(self) -> None:
        self._control.close()
        self._process.wait()

    def send(self, message: bytes, files: list[int]) -> None:
        assert len(message) < MESSAGE_BYTES_MAX
        with self._lock:
            socket.send_fds(self._control, [message], files)


_found: list[_Forker] = []
_lock = threading.Lock()


def _forker() -> _Forker:
    with _lock:
        if not _found:
            _found.append(_Forker())
            atexit.register(_found[0].close)
        return _found[0]


def _next_program(control: socket.socket) -> dict[str, Any] | None:
    """Forks for each message. Returns in a process that is to run a program, and None where nobody asks any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the waiting ones
    while True:
        message, files, _, _ = socket.recv_fds(control, MESSAGE_BYTES_MAX, 4)
        if not message:
            return None
        if os.fork() == 0:
            control.close()
            return _forked(json.loads(message), files)
        for file in files:
            os.close(file)


def _forked(program: dict[str, Any], files: list[int]) -> dict[str, Any]:
    """The process that waits and tells, and in it the one that is waited for, which returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, end = files
    pid = os.fork()
    if pid:
        for file in streams:
            os.close(file)
        os.write(end, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(end, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.close(end)
    for number, file in enumerate(streams):
        os.dup2(file, number)
        os.close(file)
    return program


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # or each process would look through all of it, at the latest when it ends
    program = _next_program(control)
    if program is None:
        return
    os.chdir(program["cwd"])
    os.environ.clear()
    os.environ.update(program["env"])
    sys.argv = [program["module"], *program["arguments"]]
    sys.path[0] = program["cwd"]
    runpy.run_module(program["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
