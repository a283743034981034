"""Batches that a process leaves alone for a while, because the store rejects or damages one of their objects.

Trouble with one batch does not stop the others, and no batch is ended because of it. Each failure in a row doubles the
pause. While the store answers nobody, no batch is to blame: `clear_unavailable`.
"""

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import structlog

from batchfile.errors import BatchDamaged, BatchfileError, StoreError, StoreFull, StoreUnavailable
from batchfile.ledger.base import Ledger
from batchfile.store.base import Entry

log = structlog.get_logger()

PAUSE_S = 1.0  # after the first failure; doubles
PAUSE_S_MAX = 60.0
LOG_AGAIN_S = 600.0  # between two log lines about one batch that remains set aside
KEPT_S = 3600.0  # a failure is forgotten if nothing failed for this long after its pause

UNANSWERED_MAX = 3  # in a row, each of another batch or file: then the whole store is unavailable

# What failed: to make a batch from a file in the inbox (its key then stands for the batch), to claim a shard and read
# its input, to commit its results, to end the batch or look after it, to plan or end a large one, to tell of its end.
Work = Literal["plan", "claim", "commit", "end", "long", "webhook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """`until` and `logged_at` are monotonic."""

    error: BatchfileError
    pause_s: float
    until: float
    logged_at: float


class SetAside:
    """Thread-safe. `only`: the batches that the process works on, if it works on no others."""

    def __init__(self, ledger: Ledger, *, only: Collection[str] = ()) -> None:
        self._clock = ledger.clock
        self._only = only
        self._lock = threading.Lock()
        self._failures: dict[str, dict[Work, _Failure]] = {}  # by batch id

    def put(self, batch_id: str, work: Work, error: BatchfileError) -> float:
        """Leave the batch alone; returns for how many seconds.

        Raises: `error` itself if the store is full, because no batch is to blame for that; and for a batch of `only`,
        unless it only has to wait for the store.
        """
        if isinstance(error, StoreFull) or (batch_id in self._only and not isinstance(error, StoreUnavailable)):
            raise error
        now = self._clock.monotonic()
        with self._lock:
            self._forget_old(now)
            of_batch = self._failures.setdefault(batch_id, {})
            before = of_batch.get(work)
            pause_s = PAUSE_S if before is None else min(PAUSE_S_MAX, before.pause_s * 2)
            logged_at = float("-inf") if before is None else before.logged_at
            is_news = now - logged_at >= LOG_AGAIN_S
            of_batch[work] = _Failure(
                error=error, pause_s=pause_s, until=now + pause_s, logged_at=now if is_news else logged_at
            )
        if is_news:
            log.error("batch.set_aside", batch_id=batch_id, work=work, error=str(error), again_in_s=pause_s)
        return pause_s

    def worked(self, batch_id: str, work: Work) -> None:
        """The work that had failed succeeded."""
        if batch_id not in self._failures:
            return
        with self._lock:
            of_batch = self._failures.get(batch_id, {})
            if of_batch.pop(work, None) is None:
                return
            if not of_batch:
                del self._failures[batch_id]
        log.info("batch.resumed", batch_id=batch_id, work=work)

    def left_s(self, batch_id: str, work: Work | None = None) -> float:
        """For how many more seconds to leave the batch, or this work on it, alone; 0: it may be worked on.

        Very cheap, however many others are set aside: it is called for each batch, many times a second.
        """
        if batch_id not in self._failures:
            return 0.0
        now = self._clock.monotonic()
        with self._lock:
            of_batch = self._failures.get(batch_id, {})
            untils = [found.until for of, found in of_batch.items() if work in {None, of}]
        return max(0.0, max(untils, default=now) - now)

    def clear_unavailable(self) -> None:
        """The store itself was unavailable: no batch is to blame, and none waits once it is back."""
        with self._lock:
            self._keep(lambda found: not isinstance(found.error, StoreUnavailable))

    def reasons(self) -> dict[str, str]:
        """The batches that were set aside and have not worked since, each with its last error."""
        with self._lock:
            self._forget_old(self._clock.monotonic())
            return {batch_id: str(list(of.values())[-1].error) for batch_id, of in self._failures.items()}

    def _forget_old(self, now: float) -> None:
        self._keep(lambda found: now < found.until + KEPT_S)

    def _keep(self, is_kept: Callable[[_Failure], bool]) -> None:
        kept = {
            batch_id: {work: found for work, found in of.items() if is_kept(found)}
            for batch_id, of in self._failures.items()
        }
        self._failures = {batch_id: of for batch_id, of in kept.items() if of}


def do_each(entries: Iterable[Entry], do: Callable[[Entry], bool], event: str) -> int:
    """Call `do` for each object of a sweep; one that fails does not hold up the others. Returns how many were true.

    Raises: StoreUnavailable if several in a row get no answer.
    """
    num, num_unanswered = 0, 0
    for entry in entries:
        try:
            num += do(entry)
            num_unanswered = 0
        except (StoreError, BatchDamaged) as error:
            log.error(event, key=entry.key, error=str(error))
            num_unanswered = num_unanswered + 1 if isinstance(error, StoreUnavailable) else 0
            if num_unanswered == UNANSWERED_MAX:
                raise
    return num
