"""The interface to batches of a service or a store, and its types. Synchronous; knows no HTTP, store or terminal."""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from batchfile.ledger.batch_status import BatchStatus as BatchStatus  # noqa: PLC0414 a type of this interface
from batchfile.ledger.batch_status import Pool
from batchfile.ledger.records import HeartbeatRecord
from batchfile.types import RoutingTable

if TYPE_CHECKING:  # reading a batch over HTTP loads neither the line formats nor the ledger
    from batchfile.client.upload import Upload
    from batchfile.plan.options import CreateOptions

LOOK_AGAIN_S = 1.0  # between two looks for new results
OLD_PLACES_MAX = 100  # known entries of a list in a row after which the search for new ones ends


Access = Literal["read", "write", "create"]  # what a store is opened for
ResultFormat = Literal["native", "openai", "parquet"]
BatchFile = Literal["results", "errors", "reasons"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A finished file that never changes. `sha256`: at least the first 32 hex digits.

    `read(start)`: its bytes from there on, in chunks.
    """

    size: int
    sha256: str
    read: Callable[[int], Iterator[bytes]]


class Remote(Protocol):
    """All methods raise NotFound for a batch that does not exist, and StoreUnavailable or ServiceUnavailable."""

    @property
    def place(self) -> str:
        """Its name for people: a URL or a directory."""
        ...

    def submit(self, upload: "Upload", options: "CreateOptions", on_bytes: Callable[[int], None]) -> BatchStatus:
        """Create a batch, of the connection's tenant. `on_bytes` is called with the size of each chunk that was read.

        Raises: InvalidFile.
        """
        ...

    def batch(self, name: str) -> BatchStatus: ...

    def batches(self) -> Iterator[BatchStatus]:
        """Newest first."""
        ...

    def new_batches(self, seen: Container[str]) -> Iterator[BatchStatus]:
        """Batches whose id is not in `seen`, newest first.

        A batch is listed by the time at which its create began, so a new one may be listed after known ones.
        """
        ...

    def cancel(self, name: str) -> BatchStatus:
        """End a batch early. An ended batch does not change."""
        ...

    def delete(self, name: str, *, now: bool) -> str:
        """Delete an ended batch; returns its id. `now`: remove its data before this returns. Raises: NotEnded."""
        ...

    def rerun(self, name: str) -> BatchStatus:
        """Create a batch of the requests that did not succeed. Raises: InvalidFile without any, or before its end."""
        ...

    def download(self, batch: BatchStatus, file: BatchFile) -> Download | None:
        """A file of an ended batch; None: it ended without it.

        `results`: its native result lines, in input order. `errors`: the input lines that did not succeed. `reasons`:
        why each of these did not, a JSON line for each in the same order.
        """
        ...

    def live(self, batch_id: str) -> Iterator[list[bytes]]:
        """Native result lines as they arrive, each once, in any order, until the batch ends; lists may be empty."""
        ...

    def routing(self) -> RoutingTable: ...

    def pools(self) -> list[Pool]: ...

    def runners(self) -> list[HeartbeatRecord]:
        """The living ones."""
        ...

    def close(self) -> None: ...


def until_old(places: Iterable[BatchStatus | None]) -> Iterator[BatchStatus]:
    """The new batches of a list, newest first; None: a known one. Stops after `OLD_PLACES_MAX` known ones in a row."""
    num_old = 0
    for batch in places:
        if batch is not None:
            num_old = 0
            yield batch
        elif (num_old := num_old + 1) == OLD_PLACES_MAX:
            return
