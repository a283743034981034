"""The seam to batches somewhere else, and its nouns. Synchronous; knows no HTTP, no store and no terminal."""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from batchfile.ledger.records import BatchState, EndReason, PresenceRecord
from batchfile.types import Counts, InputFormat, RoutingTable, Usage

if TYPE_CHECKING:  # to look at a batch over HTTP loads neither the line formats nor the ledger
    from batchfile.client.upload import Upload

LOOK_AGAIN_S = 1.0  # between two looks at what lands
OLD_PLACES_MAX = 100  # of a list that are passed in a row in search of new ones


Access = Literal["read", "write", "create"]  # what a store is opened for
ResultFormat = Literal["native", "openai", "parquet"]

# `damaged`: its stored record is lost; `unreadable`: it cannot be read now.
ShownState = BatchState | Literal["damaged", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How far a pool is with its part of a batch. Done are shards that nobody works on again."""

    num_shards: int
    num_done: int = 0
    num_leased: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """How far a batch is, as of one look at it. Times in epoch seconds; `pools` is empty once it has ended.

    `counts`: finished requests by how they ended. `dialect`: the format of its input, in which its results are written
    for people. `inbox_path`: the key of the dropped file that it was made of.

    >>> status = client.batch(done.id).status()
    >>> status.state, status.reason, status.total, status.counts.succeeded
    ('ended', 'completed', 2, 2)
    """

    batch_id: str
    state: ShownState
    total: int
    counts: Counts
    usage: Usage
    created_at: float
    updated_at: float
    reason: EndReason | None = None
    detail: str | None = None
    stage: str | None = None
    priority: int = 5
    dialect: InputFormat = "native"
    inbox_path: str | None = None
    ended_at: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    pools: dict[str, Share] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.state == "ended"

    @property
    def num_failed(self) -> int:
        """Of these that ran: what was canceled or expired never did."""
        return self.counts.errored

    @property
    def is_all_succeeded(self) -> bool:
        return self.has_ended and self.reason == "completed" and self.counts.succeeded == self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """How a file is to be run. `pool`: where all of it goes. `priority`: 0 (first) to 9.

    `is_strict`: a line that can not run refuses the file.
    """

    stage: str | None = None
    pool: str | None = None
    priority: int = 5
    metadata: dict[str, str] = field(default_factory=dict)
    is_strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A finished file that never changes. `sha256`: at least the first 32 hex digits.

    `read(start)`: its bytes from there on, in chunks.
    """

    size: int
    sha256: str
    read: Callable[[int], Iterator[bytes]]


class Remote(Protocol):
    """Raises everywhere: NotFound for a batch that is not there; StoreUnavailable or ServiceUnavailable."""

    @property
    def place(self) -> str:
        """How a person names it: a URL, a directory."""
        ...

    def submit(self, upload: "Upload", wanted: SubmitOptions, on_bytes: Callable[[int], None]) -> BatchStatus:
        """Make a batch. `on_bytes` hears of each piece of the file that was read. Raises: InvalidFile."""
        ...

    def batch(self, name: str) -> BatchStatus: ...

    def batches(self) -> Iterator[BatchStatus]:
        """Newest first."""
        ...

    def new_batches(self, seen: Container[str]) -> Iterator[BatchStatus]:
        """Those whose id is not among `seen`, newest first.

        A batch has the time at which its create began, so a new one may come below others that were seen.
        """
        ...

    def cancel(self, name: str) -> BatchStatus:
        """An ended batch stays what it is."""
        ...

    def delete(self, name: str, *, now: bool) -> str:
        """An ended batch; its id. `now`: its bytes too, before this returns. Raises: NotEnded."""
        ...

    def rerun(self, name: str) -> BatchStatus:
        """A new batch of what did not succeed. Raises: InvalidFile where there is nothing, or not yet."""
        ...

    def results(self, batch: BatchStatus) -> Download | None:
        """The native result lines of an ended batch, in input order. None: it ended before it had any."""
        ...

    def errors(self, batch: BatchStatus) -> Download | None:
        """The input lines of an ended batch that did not succeed."""
        ...

    def live(self, batch_id: str) -> Iterator[list[bytes]]:
        """Native result lines as they land, each once, in no order, until the batch has ended; lists may be empty."""
        ...

    def routing(self) -> RoutingTable: ...

    def runners(self) -> list[PresenceRecord]:
        """The living ones."""
        ...

    def pending(self, pool: str) -> int:
        """How many requests wait for this pool."""
        ...

    def close(self) -> None: ...


def until_old(places: Iterable[BatchStatus | None]) -> Iterator[BatchStatus]:
    """What is new in a list, newest first; None: nothing in this place. Where nothing was for long, nothing will be."""
    num_old = 0
    for batch in places:
        if batch is not None:
            num_old = 0
            yield batch
        elif (num_old := num_old + 1) == OLD_PLACES_MAX:
            return
