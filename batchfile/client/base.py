"""The seam to batches somewhere else, and its nouns. Synchronous; knows no HTTP, no store and no terminal."""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from batchfile.ledger.batch_status import BatchStatus as BatchStatus  # noqa: PLC0414 a noun of this seam
from batchfile.ledger.records import PresenceRecord
from batchfile.types import RoutingTable

if TYPE_CHECKING:  # to look at a batch over HTTP loads neither the line formats nor the ledger
    from batchfile.client.upload import Upload

LOOK_AGAIN_S = 1.0  # between two looks at what lands
OLD_PLACES_MAX = 100  # of a list that are passed in a row in search of new ones


Access = Literal["read", "write", "create"]  # what a store is opened for
ResultFormat = Literal["native", "openai", "parquet"]


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
