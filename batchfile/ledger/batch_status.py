"""A batch or a pool at one moment: derived by the ledger, sent by the native API, returned by the client."""

from typing import Literal

import msgspec

from batchfile.ledger.profile import Profile
from batchfile.ledger.records import EndReason
from batchfile.types import Counts, FailureGroup, InputFormat, Usage

# `damaged`: its stored record is lost; `unreadable`: it cannot be read now.
ShownState = Literal["planning", "open", "ending", "ended", "damaged", "unreadable"]


CANNOT_ANSWER: frozenset[str] = frozenset({"loading", "down"})  # states of runners


class PoolProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a pool on its part of a batch. A shard that is done is never worked on again."""

    num_shards: int = msgspec.field(name="shards")
    num_done: int = msgspec.field(name="shards_done")
    num_leased: int = msgspec.field(name="shards_leased")
    num_requests: int = msgspec.field(name="requests")
    num_finished: int = msgspec.field(name="requests_finished")

    @property
    def num_pending_shards(self) -> int:
        """Neither done nor claimed: what another runner could start."""
        return self.num_shards - self.num_done - self.num_leased


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why the requests of a pool do not run: `message` in words. `since`: epoch seconds, where it is known."""

    pool: str
    cause: Literal["no_runner", "endpoint_down", "loading", "set_aside"]
    message: str
    since: float | None = None


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as its readers see it. `runners` counts the live ones by state. `problem`: why none of them works."""

    name: str
    model: str
    engine: str
    stages: list[str]
    runners: dict[str, int]
    open_batches: int
    pending_requests: int
    problem: Waiting | None = None

    @property
    def is_up(self) -> bool:
        """Has it a runner that can answer requests: one that is neither loading nor cut off from its endpoint?"""
        return any(num for state, num in self.runners.items() if state not in CANNOT_ANSWER)


class BatchStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the service sees it. Times are epoch seconds. `pools`: those that work on it; empty after its end.

    `state`: `damaged` means that the stored record of the batch is lost: cancel or delete it, or ask the operator to
    restore the record. `unreadable`: the record cannot be read now, but will be. For both, only the id and
    `created_at` are known.

    The input format is `openai` if each line has a `body` and a `url`. `inbox_path`: the key of the dropped file that
    the batch was made of. `errored` includes `rejected`. `failures`: the most frequent reasons why requests did not
    succeed. `waiting_for`: why nothing moves, in an open batch. `gpu_s`: GPU seconds so far; 0 if no GPU is known.
    `usage_unknown`: results whose endpoint did not report tokens; the sums leave them out. `reused`: id of an earlier
    batch -> how many of its results this one has taken over; they are among `succeeded` and cost no tokens.
    `reuse_note`: why nothing was reused, or not from some batch, where that was wanted. `profile`: its throughput and
    the times of its requests, once it has ended; lists of batches leave it out.

    >>> status = client.batch(done.id).status()
    >>> status.state, status.reason, status.total, status.counts.succeeded
    ('ended', 'completed', 2, 2)
    """

    batch_id: str = msgspec.field(name="id")
    state: ShownState
    reason: EndReason | None
    detail: str | None
    stage: str | None
    total: int
    succeeded: int
    errored: int
    canceled: int
    expired: int
    pending: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    usage_unknown: int
    rejected: int = 0
    failures: tuple[FailureGroup, ...] = ()
    waiting_for: tuple[Waiting, ...] = ()
    gpu_s: float = 0.0
    created_at: float
    updated_at: float
    ended_at: float | None
    expires_at: float
    metadata: dict[str, str]
    priority: int
    dialect: InputFormat
    inbox_path: str | None
    pools: dict[str, PoolProgress]
    reused: dict[str, int] = {}
    reuse_note: str | None = None
    profile: Profile | None = None

    @property
    def num_reused(self) -> int:
        """Results that were taken over from earlier batches, and cost nothing."""
        return sum(self.reused.values())

    @property
    def counts(self) -> Counts:
        """Finished requests by outcome."""
        return Counts(
            succeeded=self.succeeded,
            errored=self.errored,
            canceled=self.canceled,
            expired=self.expired,
            rejected=self.rejected,
        )

    @property
    def usage(self) -> Usage:
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            unknown=self.usage_unknown,
        )

    @property
    def has_ended(self) -> bool:
        return self.state == "ended"

    @property
    def num_failed(self) -> int:
        """Requests that ran without a valid answer: not those that were rejected, canceled or expired."""
        return self.errored - self.rejected

    @property
    def is_all_succeeded(self) -> bool:
        return self.has_ended and self.reason == "completed" and self.succeeded == self.total


class BatchStatusPage(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first. `has_more`: ask again with `after` set to `next`, the id of the last batch that was looked at."""

    data: list[BatchStatus]
    has_more: bool
    next: str | None = None
