"""Runs schema checks in a separate process (rules.py) that can be killed, with limits on time and memory.

A schema check cannot be interrupted, and blocks every thread of its process while it runs.
"""

import signal
import threading
from collections import Counter
from hashlib import blake2b
from typing import cast

import structlog

from batchfile.child_env import child_environment
from batchfile.schemas import rules
from batchfile.schemas.child import SLOW_MAX, Child, SlowOwners
from batchfile.schemas.rules import Verdict, VerdictKind

log = structlog.get_logger()

TIME_S_MAX = 1.0  # of processor time, for one text
TIME_S_HURRIED = 0.1  # for an owner whose recent checks reached the limit
SLOW_SCHEMAS_KEPT = 1024
ANSWER_S_MAX = 60.0  # wall-clock time: a busy machine fails no check before that
START_S_MAX = 60.0
TRIES = 2  # the process may have been killed from outside

TOO_LARGE = f"crashes the checking process, which has {rules.MEMORY_MAX >> 30} GiB of memory"


class CheckProcess:
    """The process starts with the first check. One thread checks at a time; any thread may close."""

    def __init__(self) -> None:
        self._worker: Child | None = None
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
                kind, why = worker.ask(*frame, timeout_s=ANSWER_S_MAX)
                return Verdict(cast(VerdictKind, kind.decode()), why.decode())
            except TimeoutError:
                worker.end()
                return self._slow(digest, time_s, owner)
            except (OSError, EOFError):
                worker.end()
                if worker.exit_status == -signal.SIGPROF:
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
            self._worker.end()

    def _slow(self, digest: bytes, time_s: float, owner: str) -> Verdict:
        self._slow_owners.note(owner)
        if len(self._num_slow) >= SLOW_SCHEMAS_KEPT:
            self._num_slow.clear()
        self._num_slow[digest] += 1
        return Verdict("unknown", _too_slow(time_s))

    def _started(self) -> Child:
        """The process, ready. Raises: OSError, EOFError, TimeoutError."""
        with self._lock:
            if self._is_closed:
                raise EOFError("it was closed")
            worker = self._worker
            if worker is not None and worker.exit_status is None:
                return worker
            self.release()
            worker = self._worker = Child(rules.__name__, env=child_environment())
        try:
            worker.answer(START_S_MAX)
        except (OSError, EOFError, TimeoutError):
            worker.end()
            raise
        return worker


def _too_slow(time_s: float) -> str:
    return f"takes more than {time_s:g} s"
