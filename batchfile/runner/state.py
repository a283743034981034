"""The state that the threads of one runner share, under one lock. No I/O; its only rules keep it consistent."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from batchfile.engine.base import Engine, EngineInfo, Prepared
from batchfile.inbox.scan import Inbox
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord, ShardRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.ledger.shards import Lease
from batchfile.lines.result import FinishedLine
from batchfile.media.rules import MediaRules
from batchfile.request_media import Media
from batchfile.runner.output_schema import Demand, OutputSchema
from batchfile.runner.queues import FairQueue, ReadyQueue
from batchfile.runner.stats import RunnerStats, StepTimes
from batchfile.schemas.rules import Verdict
from batchfile.types import Completion, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """Who a runner is, and what it works on: the batches of `pool`, or one of them.

    >>> options = batchfile.RunnerOptions(runner_id="worker-1", pool="mistral")

    `only`: work on this batch alone, or on these; claim in order, and return when all have ended. `inbox`: for its
    janitor. `grace_s`: how long a stopping runner waits for requests in flight; None: as the ledger's limits say.
    `media_rules`: what the requests of a batch may read; by default, nothing. `num_runners`: how many work on `only`.
    """

    runner_id: str
    pool: str
    only: str | tuple[str, ...] | None = None
    num_runners: int = 1
    is_janitor: bool = True
    inbox: Inbox | None = None
    grace_s: float | None = None
    media_rules: Callable[[BatchRecord], MediaRules] = lambda _: MediaRules()

    @property
    def batch_ids(self) -> tuple[str, ...]:
        """`only` as a tuple; empty for all batches of the pool."""
        return (self.only,) if isinstance(self.only, str) else self.only or ()


@dataclass(slots=True, kw_only=True, eq=False)
class ActiveShard:
    """A held shard in this process.

    `commit_lock`: of the thread that rewrites its record, and so `held`. `finished`: results that are not committed
    yet, `finished_bytes` in all; `left` counts this pool's lines without an outcome. `wants_to_announce`: the loop
    wants to dispatch, and the record must say so first (see `ledger/lease.py`). `output_schema`: what every answer must
    match, if anything. `needs_answer`: a refusal is a failure. `is_to_return`: its input cannot be read now; the
    checkpointer puts it back. `retry_at`: monotonic; when to try again to commit its results.
    """

    held: Lease
    left: int
    output_schema: OutputSchema | None = None
    needs_answer: bool = False
    finished: list[FinishedLine] = field(default_factory=list)
    finished_bytes: int = 0
    claimed_at: float = 0.0  # epoch seconds
    claimed: ShardRecord = field(init=False)  # as it was then
    commit_lock: threading.Lock = field(init=False)
    committed_at: float = field(init=False)  # monotonic: when the last commit began, or the claim
    has_dispatched: bool = False
    wants_to_announce: bool = False
    is_dropped: bool = False
    is_closed: bool = False  # with `is_dropped`: its batch ends or is gone, so no other runner took the lease
    is_bisecting: bool = False
    num_bisect_left: int = 0
    is_to_return: bool = False
    accused: int | None = None  # a line whose preparation hangs: written down before this process ends because of it
    num_failures: int = 0  # of commits, in a row
    retry_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.commit_lock = threading.Lock()
        self.committed_at = self.held.written_at
        self.claimed = self.held.record

    @property
    def batch_id(self) -> str:
        return self.held.batch.batch_id


@dataclass(slots=True, kw_only=True, eq=False)
class PendingRequest:
    """One request on its way. `deaths`: engine crashes with it in flight. `added_at`: monotonic.

    `size`: of its line, and of its media in memory (`media_bytes`). `media`: their references, with digests.
    `gpu_s_before`: what each request in flight had cost when this one was added. `engine_s`: how long the engine had
    it, in all attempts.
    """

    key: int
    shard: ActiveShard
    line: int
    custom_id: str
    prepared: Prepared
    size: int
    deaths: int = 0
    request: Request | None = None  # kept if the answer is to be checked: another attempt may need it
    schema: bytes | None = None  # the request's own schema, whichever guides it
    attempt: int = 1
    media: tuple[Media, ...] = ()
    media_bytes: int = 0
    added_at: float = 0.0
    gpu_s_before: float = 0.0
    engine_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """`item` is to be prepared with `request`. `is_alone`: then it runs with nothing else in flight."""

    item: PendingRequest
    request: Request
    is_alone: bool = False

    @property
    def batch_id(self) -> str:
        return self.item.shard.batch_id

    @property
    def size(self) -> int:
        return self.item.size


@dataclass(slots=True, kw_only=True)
class UncheckedAnswer:
    """The answer to `request`, of `item`. `gpu_s`: what it took. `was_alone`: it ran with no other.

    `schema_mismatch`: once checked, the first of `demands` that the answer does not meet.
    """

    item: PendingRequest
    request: Request
    completion: Completion
    demands: list[Demand]
    gpu_s: float
    was_alone: bool
    schema_mismatch: tuple[Demand, Verdict] | None = None

    @property
    def batch_id(self) -> str:
        return self.item.shard.batch_id

    @property
    def size(self) -> int:
        return sum(len(choice.text) for choice in self.completion.choices)


@dataclass(slots=True)
class Calls:
    """Which engine call a thread is in. Written by that thread alone.

    `name`: empty between two calls. `number`: of the call, to tell two in a row apart. `is_warm`: the engine has
    answered something. `item`: the request, if the call is about one alone and runs nothing.
    """

    name: str = ""
    number: int = 0
    is_warm: bool = False
    item: PendingRequest | None = None

    def enter(self, name: str, item: PendingRequest | None = None) -> None:
        self.number += 1
        self.item = item
        self.name = name

    def leave(self) -> None:
        self.name = ""
        self.item = None


class SharedState:
    """What the parts of a runner work on. Each part is a set of functions or a class over it; none calls another back.

    One lock guards it: `changed` and the `added` of each queue are its conditions. Rules:

    - The store and the engine are not called, and nothing else is waited for, while the lock is held.
    - `commit_lock` of a shard is held during the writes of its record. Its holder may take the lock, never the reverse.
    - `ready`, and of a shard `left`, `finished` and the counts next to them, change under the lock.
    - `shards` is added to by the prefetcher and removed from by the checkpointer; all others look at a copy.
      `in_flight` and `engine` belong to the loop.
    - `is_stopping`, `is_stopping_now`, `is_urgent` and a shard's `is_dropped` never become False again. They may be set
      from a signal handler, so without the lock: those that wait look again soon.

    `engine`: the last one that was built, and `info` its description; `has_engine`: it is alive. `num_builds`: engines
    built since one has answered. `calls`: of each thread that calls the engine. `num_checking`: answers that wait to be
    checked in another process, are being checked, or were (`checked`), until the loop has taken them; `checking_chars`
    is their size. `ended`: the records of those of the batches `only` that have ended, by id.
    """

    def __init__(self, ledger: Ledger, options: RunnerOptions) -> None:
        self.ledger, self.options = ledger, options
        self.aside = SetAside(ledger, only=options.batch_ids)
        self.stats = RunnerStats()
        self.steps = StepTimes(self.stats)
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self.ready: ReadyQueue[PendingRequest] = ReadyQueue()
        self.attempts: FairQueue[Job] = FairQueue(lock)  # further attempts
        self.unchecked: FairQueue[Job] = FairQueue(lock)  # requests that wait for their schemas
        self.to_load: FairQueue[Job] = FairQueue(lock)  # requests whose media have to be read
        self.to_check: FairQueue[UncheckedAnswer] = FairQueue(lock)
        self.checked: list[UncheckedAnswer] = []
        self.num_checking = self.checking_chars = 0
        self.shards: list[ActiveShard] = []
        self.in_flight: dict[int, PendingRequest] = {}
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None
        self.fingerprints: frozenset[str] = frozenset()  # of all engines so far; an empty one is unknown
        self.has_engine = False
        self.num_builds = 0
        self.calls = {
            "loop": Calls(),
            "prefetcher": Calls(is_warm=True),
            "preparer": Calls(is_warm=True),
            "compiler": Calls(is_warm=True),
        }
        self.share: int | None = None  # of the requests that no runner has claimed; None: all of them
        self.is_claiming = False  # a shard may be claimed already and not yet in `shards`
        self.arriving = ""  # the batch of a shard that was claimed and is not yet in `shards`
        self.is_assembling = False
        self.has_dropped = False  # the engine may have requests of shards that are dropped
        self.is_urgent = False  # the process ends in a moment: commit finished results now
        self.is_stopping = False  # nothing more is started
        self.is_stopping_now = False  # requests in flight are not finished either
        self.is_over = threading.Event()  # the threads are to end
        self.commit_due = threading.Event()
        self.end_due = threading.Event()  # this process works on no shard of some batch any more
        self.ended: dict[str, BatchRecord] = {}
        self.failure: BaseException | None = None  # what ended a thread, and so the run

    @property
    def last_ended(self) -> BatchRecord | None:
        """The record of the last batch of `only`, once all have ended."""
        batch_ids = self.options.batch_ids
        return self.ended[batch_ids[-1]] if batch_ids and len(self.ended) == len(batch_ids) else None

    @property
    def is_ending(self) -> bool:
        """Nothing more is claimed or prepared."""
        return self.is_stopping or self.is_over.is_set()

    @property
    def may_prefetch(self) -> bool:
        return self.has_engine and not self.is_ending

    def now(self) -> float:
        return self.ledger.clock.monotonic()

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def push(
        self,
        items: list[PendingRequest],
        *,
        is_alone: bool = False,
        is_next: bool = False,
        new_generation: bool = False,
    ) -> None:
        """Add to the ready queue. `is_next`: before all others that run alone."""
        with self.changed:
            if is_alone:
                self.ready.push_alone(items, is_next=is_next)
            else:
                self.ready.push(items, new_generation=new_generation)
            self.changed.notify_all()

    def finish(self, shard: ActiveShard, line: FinishedLine) -> None:
        """Record the outcome of a line. With the shard's last one, a commit is due."""
        with self.changed:
            shard.finished.append(line)
            shard.finished_bytes += len(line.result)
            shard.num_bisect_left -= shard.is_bisecting
            shard.left -= 1
        if shard.left == 0:
            self.commit_due.set()

    def forget(self, shard: ActiveShard, num: int) -> None:
        """The first `num` finished lines of the shard are committed."""
        with self.changed:
            shard.finished_bytes -= sum(len(line.result) for line in shard.finished[:num])
            del shard.finished[:num]

    def commit_soon(self) -> None:
        """Finished results are due now, and from now on in this process."""
        self.is_urgent = True
        self.commit_due.set()

    def take_on(self, shard: ActiveShard) -> None:
        """A shard that was claimed is worked on."""
        self.shards.append(shard)
        self.arriving = ""

    def give_back(self, shard: ActiveShard) -> None:
        """Let the checkpointer release it, for this or another runner to claim."""
        shard.is_to_return = True
        self.commit_due.set()

    def is_working_on(self, batch_id: str) -> bool:
        # In this order: a shard is among `shards` before it stops arriving.
        return batch_id == self.arriving or any(shard.batch_id == batch_id for shard in list(self.shards))
