"""Hashes the requests of a batch while the planner reads them, and takes over results for them afterwards."""

from collections.abc import Callable

from batchfile.ledger.base import Ledger
from batchfile.ledger.records import InputRef
from batchfile.lines.envelope import Envelope
from batchfile.plan.hash_file import HashFileWriter
from batchfile.plan.ranges import Cut
from batchfile.plan.request_hash import RequestHasher
from batchfile.plan.reuse import NewBatch, PoolOf, Reuse, Taken, reuse_results
from batchfile.types import Defaults


class Hashing:
    """`add` or `skip` is called once for each line, in order; `finish` at the end."""

    def __init__(self, defaults: Defaults, stage: str | None, reuse: Reuse | None) -> None:
        self._file = HashFileWriter()
        self._hasher = RequestHasher(defaults, stage)
        self._reuse = reuse
        self._is_excluded = bytearray()  # see NewBatch; empty if nothing is to be reused

    def add(self, envelope: Envelope, pool: str, index: int) -> None:
        self._file.add(self._hasher.of(envelope, pool), index)
        if self._reuse is not None:
            self._is_excluded.append(not self._reuse.is_sampled_too and self._hasher.is_sampled(envelope))

    def skip(self) -> None:
        """A line that cannot run."""
        if self._reuse is not None:
            self._is_excluded.append(True)

    def finish(
        self,
        ledger: Ledger,
        batch_id: str,
        pool_of: PoolOf,
        cuts: list[Cut],
        pinned: InputRef,
        beat: Callable[[], None],
    ) -> Taken:
        """Store the hashes, then reuse what can be reused. Raises: as `reuse_results`."""
        hashes = self._file.store(ledger, batch_id, beat)
        if self._reuse is None:
            return Taken(cuts, hashes)
        if hashes is None:
            return Taken(cuts, notes=["no result was reused: there was no room for temporary files"])
        batch = NewBatch(
            ledger=ledger,
            batch_id=batch_id,
            pool_of=pool_of,
            cuts=cuts,
            input=pinned,
            hashes=hashes,
            is_excluded=self._is_excluded,
            beat=beat,
        )
        return reuse_results(batch, self._reuse)
