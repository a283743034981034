"""Runs schema checks in a separate process (schema_rules.py) that can be killed, with limits on time and memory.

A schema check cannot be interrupted, and blocks every thread of its process while it runs.
"""

import signal
import subprocess
import threading
from collections import Counter
from hashlib import blake2b
from typing import cast

import structlog

from batchfile.child_env import child_environment, start_child
from batchfile.engine.schemas.compile import SLOW_MAX, SlowOwners, answer_of
from batchfile.engine.schemas.compile_worker import write
from batchfile.runner import schema_rules
from batchfile.runner.schema_rules import Kind, Verdict

log = structlog.get_logger()

TIME_S_MAX = 1.0  # of processor time, for one text
TIME_S_HURRIED = 0.1  # for an owner whose recent checks reached the limit
SLOW_SCHEMAS_KEPT = 1024
ANSWER_S_MAX = 60.0  # wall-clock time: a busy machine fails no check before that
START_S_MAX = 60.0
TRIES = 2  # the process may have been killed from outside

TOO_LARGE = f"crashes the checking process, which has {schema_rules.MEMORY_MAX >> 30} GiB of memory"


class CheckProcess:
    """The process starts with the first check. One thread checks at a time; any thread may close."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None
        self._slow_owners = SlowOwners()
        self._num_slow: Counter[bytes] = Counter()  # by the schema's digest
        self._is_closed = False
        self._lock = threading.Lock()  # guards `_is_closed`

    def check(self, schema: bytes, text: str, owner: str = "") -> Verdict:
        """Blocks up to the time limit, or ANSWER_S_MAX on a busy machine. An `owner` of slow checks gets less time."""
        digest = blake2b(schema, digest_size=16).digest()
        if self._num_slow[digest] >= SLOW_MAX:
            return Verdict("unknown", _too_slow(TIME_S_MAX))
        time_s = TIME_S_HURRIED if self._slow_owners.is_hurried(owner) else TIME_S_MAX
        frame = (str(time_s).encode(), schema, text.encode("utf-8", "surrogatepass"))
        for _ in range(TRIES):
            try:
                worker = self._started()
            except (OSError, EOFError, TimeoutError) as error:
                if not self._is_closed:
                    log.error("answers.not_checked", reason=f"the process that checks them does not start: {error}")
                return Verdict("unknown", "is not possible now: the checking process does not start")
            try:
                kind, why = self._asked(worker, frame, ANSWER_S_MAX)
                return Verdict(cast(Kind, kind.decode()), why.decode())
            except TimeoutError:
                self._end(worker)
                return self._slow(digest, time_s, owner)
            except (OSError, EOFError):
                self._end(worker)
                if worker.returncode == -signal.SIGPROF:
                    return self._slow(digest, time_s, owner)
        return Verdict("unknown", TOO_LARGE)

    def close(self) -> None:
        """End the process, and with it a check in progress."""
        with self._lock:
            self._is_closed = True
            worker = self._worker
        if worker is not None:
            worker.kill()

    def release(self) -> None:
        """Free the rest, once no thread checks any more."""
        if self._worker is not None:
            self._end(self._worker)

    def _slow(self, digest: bytes, time_s: float, owner: str) -> Verdict:
        self._slow_owners.note(owner)
        if len(self._num_slow) >= SLOW_SCHEMAS_KEPT:
            self._num_slow.clear()
        self._num_slow[digest] += 1
        return Verdict("unknown", _too_slow(time_s))

    def _started(self) -> "subprocess.Popen[bytes]":
        """The process, ready. Raises: OSError, EOFError, TimeoutError."""
        with self._lock:
            if self._is_closed:
                raise EOFError("it was closed")
            worker = self._worker
            if worker is not None and worker.poll() is None:
                return worker
            self.release()
            worker = self._worker = start_child("-P", "-m", schema_rules.__name__, env=child_environment())
        try:
            answer_of(worker, START_S_MAX)
        except (OSError, EOFError, TimeoutError):
            self._end(worker)
            raise
        return worker

    def _asked(self, worker: "subprocess.Popen[bytes]", frame: tuple[bytes, ...], timeout_s: float) -> list[bytes]:
        """Raises: OSError, EOFError, TimeoutError."""
        assert worker.stdin is not None
        write(worker.stdin.fileno(), *frame)
        return answer_of(worker, timeout_s)

    def _end(self, worker: "subprocess.Popen[bytes]") -> None:
        worker.kill()  # does nothing if it has ended; its exit status is kept
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                pipe.close()


def _too_slow(time_s: float) -> str:
    return f"takes more than {time_s:g} s"
