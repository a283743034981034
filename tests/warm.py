"""Our commands as processes that start warm: forked from a process that has loaded their modules already.

`python -m batchfile`, `api` and `runners` spend most of their start on imports, and the tests start hundreds. A process
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
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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
    "batchfile.machine.supervisor",
    "runners.__main__",
    "runners.supervisor",
    "runners.worker",
)
MESSAGE_BYTES_MAX = 200_000
WAIT_S = 1200.0  # only against a hang


class Warm:
    """A process that runs `python -m MODULE ARGUMENTS`; what `subprocess.Popen` has of a name, it has too.

    `module`: or "-c", with the program as the first argument. `stdin` is empty by default, `stdout` and `stderr` are
    pipes, which `communicate` reads and closes.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: IO[bytes] | int = subprocess.PIPE,
        stderr: IO[bytes] | int = subprocess.PIPE,
        text: bool = False,
    ) -> None:
        self.args = [sys.executable, "-m", module, *arguments]
        self.returncode: int | None = None
        message = json.dumps({"module": module, "arguments": list(arguments), "cwd": str(cwd), "env": dict(env)})
        self._end, end = socket.socketpair()
        with end, ExitStack() as theirs:
            self.stdin, reader = _stream(stdin, theirs, "w", text)
            self.stdout, out = _stream(stdout, theirs, "r", text)
            self.stderr, err = _stream(stderr, theirs, "r", text)
            _forker().send(message.encode(), [reader, out, err, end.fileno()])
        self._answers = self._end.makefile()
        self.pid = int(self._answers.readline())

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Raises: subprocess.TimeoutExpired, after it has killed the process."""
        with ThreadPoolExecutor(3) as threads:
            threads.submit(_feed, self.stdin, input)
            out, err = (threads.submit(_read, pipe) for pipe in (self.stdout, self.stderr))
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return out.result(), err.result()

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
    process = Warm(module, arguments, cwd=cwd, env=env, stdin=subprocess.PIPE)
    out, err = process.communicate(stdin, timeout=WAIT_S)
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _stream(given: IO[bytes] | int, theirs: ExitStack, mode: str, text: bool) -> tuple[IO[Any] | None, int]:
    """Our end of a pipe, if one is to be made, and what the process gets, open until `theirs` ends."""
    if not isinstance(given, int):
        return None, given.fileno()
    if given == subprocess.DEVNULL:
        return None, theirs.enter_context(open(os.devnull, "r+b", buffering=0)).fileno()
    reader, writer = os.pipe()
    ours, other = (writer, reader) if mode == "w" else (reader, writer)
    theirs.callback(os.close, other)
    return os.fdopen(ours, mode if text else mode + "b"), other


def _feed(pipe: IO[Any] | None, data: Any) -> None:
    if pipe:
        with suppress(BrokenPipeError), pipe:
            if data:
                pipe.write(data)


def _read(pipe: IO[Any] | None) -> Any:
    if pipe is None:
        return None
    with pipe:
        return pipe.read()


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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background have not
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
    if program["module"] == "-c":
        del sys.argv[1]
        exec(compile(program["arguments"][0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(program["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
