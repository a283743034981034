"""Compiles schemas before the engine does, in a child process with limits on time and memory.

This finds a schema that is too expensive before the engine's own thread compiles it, which cannot be interrupted. The
child (compile_worker.py) starts with the first schema. It runs the engine's compiler; this module handles only bytes.
"""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

import structlog

from batchfile.child_env import python_path
from batchfile.schemas import compile_worker
from batchfile.schemas.child import Child, SlowOwners

log = structlog.get_logger()

TIME_S_MAX = 10.0  # for one schema
MEMORY_MAX = 2 * 1024**3  # bytes for one schema, in addition to the memory of the process
TIME_S_HURRIED = 1.0  # for a schema of an owner whose last schemas reached the limit
VERDICTS_KEPT = 4096
START_S_MAX = 300.0  # to import and to load a tokenizer
STARTS_MAX = 3  # consecutive failed starts

Bound = Literal["time", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """`answer`: of the compiler, in bytes; None if a limit was reached, which `bound` and `limit` (as text) describe.

    `time_s`: the time that was not enough.
    """

    answer: bytes | None = None
    bound: Bound | None = None
    limit: str = ""
    time_s: float = 0.0


class Guard(Protocol):
    """Kills a process that it watches when this process ends; forks of it carry `environ`."""

    @property
    def environ(self) -> dict[str, str]: ...

    def watch(self, pid: int) -> None: ...


class SchemaCheck:
    """Checks schemas by `module.load(payload)`, one at a time. Thread-safe."""

    def __init__(self, module: str, payload: bytes, guard: Guard | None = None) -> None:
        self._module = module
        self._payload = payload
        self._guard = guard
        self._verdicts: OrderedDict[bytes, CompileResult] = OrderedDict()
        self._slow_owners = SlowOwners()
        self._worker: Child | None = None
        self._num_failed_starts = 0
        self._is_closed = False
        self._turn = threading.Lock()  # held while the worker handles a request
        self._lock = threading.Lock()  # for the verdicts and `_is_closed`; never held for long

    @property
    def pid(self) -> int | None:
        """The process id; None while no process runs."""
        worker = self._worker
        return None if worker is None else worker.pid

    def known(self, schema: bytes) -> CompileResult | None:
        """The verdict, without waiting. None: the schema has to be checked first."""
        return self._known(_digest(schema), TIME_S_MAX)

    def check(self, schema: bytes, owner: str = "") -> CompileResult | None:
        """Checks each schema once, in at most about a minute. None: it cannot be checked here.

        `owner`: one with many slow schemas gets less time for the next one. This does not affect other owners.
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
        """Ends the process; a waiting check returns None. A second call does nothing."""
        with self._lock:
            self._is_closed = True
            worker = self._worker
        if worker is not None:
            worker.kill()

    def _known(self, digest: bytes, time_s: float) -> CompileResult | None:
        """The verdict, unless it reached a time limit that is shorter than `time_s`."""
        with self._lock:
            found = self._verdicts.get(digest)
            if found is None or (found.bound == "time" and found.time_s < time_s):
                return None
            self._verdicts.move_to_end(digest)
            return found

    def _judged(self, schema: bytes, time_s: float) -> CompileResult | None:
        worker = self._started()
        if worker is None:
            return None
        frame = (str(time_s).encode(), str(MEMORY_MAX).encode(), schema)
        try:
            kind, answer = worker.ask(*frame, timeout_s=2 * compile_worker.STARVED * time_s)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self._end(worker)
            if not self._is_closed:
                log.warning("schema.not_checked", reason=f"the process that compiles schemas ended: {error}")
            return None
        if kind == compile_worker.TOO_SLOW:
            return CompileResult(bound="time", limit=f"{time_s:g} s", time_s=time_s)
        if kind == compile_worker.DIED:
            return CompileResult(bound="memory", limit=f"{MEMORY_MAX >> 30} GiB")
        return CompileResult(answer=answer)

    def _time_s(self, owner: str) -> float:
        """The time limit for the owner's next schema."""
        return TIME_S_HURRIED if self._slow_owners.is_hurried(owner) else TIME_S_MAX

    def _started(self) -> Child | None:
        """The process, ready; None if it does not start."""
        worker = self._worker
        if worker is not None and worker.exit_status is None:
            return worker
        while self._num_failed_starts < STARTS_MAX:
            with self._lock:
                if self._is_closed:
                    return None
                worker = self._worker = self._start()
            try:
                kind, reason = worker.ask(self._payload, timeout_s=START_S_MAX)
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

    def _start(self) -> Child:
        environ = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": python_path()}
        if self._guard is not None:
            environ |= self._guard.environ
        worker = Child(compile_worker.__name__, self._module, env=environ)
        if self._guard is not None:
            self._guard.watch(worker.pid)
        return worker

    def _end(self, worker: Child) -> None:
        worker.end()
        if self._worker is worker:
            self._worker = None


def _digest(schema: bytes) -> bytes:
    return blake2b(schema, digest_size=16).digest()
