"""Compiles schemas ahead of the engine, in a process that may be killed, with bounds on time and memory.

A schema that costs too much is then found before an engine's own thread compiles it, which cannot be interrupted. The
process starts with the first schema (compile_worker.py); it knows the engine's compiler, this module knows only bytes.
"""

import os
import select
import signal
import subprocess
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import structlog

from batchfile.child_env import python_path, start_child
from batchfile.engine.schemas import compile_worker
from batchfile.engine.vllm.processes import ProcessGuard

SLOW_MAX = 3  # of one owner within SLOW_WINDOW_S: its next get less
SLOW_WINDOW_S = 600.0
OWNERS_KEPT = 1024  # who had slow ones last


class SlowOwners:
    """Any thread may ask and tell."""

    def __init__(self) -> None:
        self._slow_at: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def is_hurried(self, owner: str) -> bool:
        with self._lock:
            slow_at = self._slow_at.get(owner, deque())
            return len(slow_at) == SLOW_MAX and time.monotonic() - slow_at[0] < SLOW_WINDOW_S

    def note(self, owner: str) -> None:
        with self._lock:
            self._slow_at.setdefault(owner, deque(maxlen=SLOW_MAX)).append(time.monotonic())
            self._slow_at.move_to_end(owner)
            while len(self._slow_at) > OWNERS_KEPT:
                self._slow_at.popitem(last=False)


log = structlog.get_logger()

TIME_S_MAX = 10.0  # for one schema
MEMORY_MAX = 2 * 1024**3  # bytes that one schema may take in addition to what the process has
TIME_S_HURRIED = 1.0  # for one of an owner whose last ones met the bound
VERDICTS_KEPT = 4096
START_S_MAX = 300.0  # to import and to load a tokenizer
STARTS_MAX = 3  # that fail one after the other
ANSWER_TICK_S = 0.25

Bound = Literal["time", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`answer`: the compiler's, in bytes; None where a bound was met: then `bound` is which, `limit` in words.

    `time_s`: what it was given, where that was too little.
    """

    answer: bytes | None = None
    bound: Bound | None = None
    limit: str = ""
    time_s: float = 0.0


class SchemaCheck:
    """Judges schemas by `module.load(payload)`. Any thread may call it, several at once; one schema at a time."""

    def __init__(self, module: str, payload: bytes, guard: ProcessGuard | None = None) -> None:
        self._module = module
        self._payload = payload
        self._guard = guard
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._slow_owners = SlowOwners()
        self._worker: subprocess.Popen[bytes] | None = None
        self._num_failed_starts = 0
        self._is_closed = False
        self._turn = threading.Lock()  # whose request the worker has
        self._lock = threading.Lock()  # of verdicts, and of whether it is closed; held for no time

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        worker = self._worker
        return None if worker is None else worker.pid

    def known(self, schema: bytes) -> Verdict | None:
        """At once, and whoever asks. None: it has to be checked first."""
        return self._known(_digest(schema), TIME_S_MAX)

    def check(self, schema: bytes, owner: str = "") -> Verdict | None:
        """At most about a minute, and once for each schema. None: it cannot be checked here.

        `owner`: who had many slow ones gets less time for the next. No other owner's schema fails for that.
        """
        digest = _digest(schema)
        with self._turn:
            time_s = self._time_s(owner)
            found = self._known(digest, time_s)
            if found is not None:
                return found
            verdict = self._judged(schema, time_s)
            if verdict is not None and verdict.bound == "time":
                self._slow_owners.note(owner)
        if verdict is not None:
            with self._lock:
                self._verdicts[digest] = verdict
                while len(self._verdicts) > VERDICTS_KEPT:
                    self._verdicts.popitem(last=False)
        return verdict

    def close(self) -> None:
        """Ends the process; a check that waits for it returns None. A second call does nothing."""
        with self._lock:
            self._is_closed = True
            worker = self._worker
        if worker is not None:
            self._end(worker)

    def _known(self, digest: bytes, time_s: float) -> Verdict | None:
        """The verdict, but for one that met the bound in less than `time_s`."""
        with self._lock:
            found = self._verdicts.get(digest)
            if found is None or (found.bound == "time" and found.time_s < time_s):
                return None
            self._verdicts.move_to_end(digest)
            return found

    def _judged(self, schema: bytes, time_s: float) -> Verdict | None:
        worker = self._started()
        if worker is None:
            return None
        try:
            assert worker.stdin is not None
            frame = (str(time_s).encode(), str(MEMORY_MAX).encode(), schema)
            compile_worker.write(worker.stdin.fileno(), *frame)
            kind, answer = answer_of(worker, 2 * compile_worker.STARVED * time_s)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self._end(worker)
            if not self._is_closed:
                log.warning("schema.not_checked", reason=f"its process ended: {type(error).__name__}: {error}")
            return None
        if kind == compile_worker.TOO_SLOW:
            return Verdict(bound="time", limit=f"{time_s:g} s", time_s=time_s)
        if kind == compile_worker.DIED:
            return Verdict(bound="memory", limit=f"{MEMORY_MAX >> 30} GiB")
        return Verdict(answer=answer)

    def _time_s(self, owner: str) -> float:
        """The bound for the owner's next one."""
        return TIME_S_HURRIED if self._slow_owners.is_hurried(owner) else TIME_S_MAX

    def _started(self) -> "subprocess.Popen[bytes] | None":
        """The process, ready; None where it does not start."""
        worker = self._worker
        if worker is not None and worker.poll() is None:
            return worker
        while self._num_failed_starts < STARTS_MAX:
            with self._lock:
                if self._is_closed:
                    return None
                worker = self._worker = self._start()
            try:
                assert worker.stdin is not None
                compile_worker.write(worker.stdin.fileno(), self._payload)
                kind, reason = answer_of(worker, START_S_MAX)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                kind, reason = compile_worker.BROKEN, f"{type(error).__name__}: {error}".encode()
            if kind == compile_worker.READY:
                self._num_failed_starts = 0
                log.info("schema.checker_ready", after_s=float(reason))
                return worker
            self._end(worker)
            if self._is_closed:
                return None
            self._num_failed_starts += 1
            log.warning("schema.checker_failed", reason=reason.decode("utf-8", "replace"))
        return None

    def _start(self) -> "subprocess.Popen[bytes]":
        environ = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": python_path()}
        if self._guard is not None:
            environ |= self._guard.environ
        worker = start_child("-P", "-m", compile_worker.__name__, self._module, env=environ)
        if self._guard is not None:
            self._guard.watch(worker.pid)
        return worker

    def _end(self, worker: "subprocess.Popen[bytes]") -> None:
        """With a fork that it may have: they are a process group."""
        try:
            os.killpg(worker.pid, signal.SIGKILL)
        except OSError:
            worker.kill()
        worker.wait()
        if self._worker is worker:
            self._worker = None
        if not self._is_closed:  # a thread may be reading
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()


def answer_of(worker: "subprocess.Popen[bytes]", timeout_s: float) -> list[bytes]:
    """Raises: EOFError, TimeoutError. Ticks are counted: time in which this process is stopped is no time."""
    assert worker.stdout is not None
    fd = worker.stdout.fileno()
    for _ in range(int(timeout_s / ANSWER_TICK_S) + 1):
        if select.select([fd], [], [], ANSWER_TICK_S)[0]:
            return compile_worker.read(fd)
    raise TimeoutError(f"no answer within {timeout_s:g} s")


def _digest(schema: bytes) -> bytes:
    return blake2b(schema, digest_size=16).digest()
