"""Hashes the requests of a batch while the planner reads them, and takes over results for them afterwards."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from batchfile.ledger.base import Ledger
from batchfile.ledger.records import InputRef
from batchfile.lines.envelope import Envelope
from batchfile.plan.hash_file import NO_HASH, HashFileWriter
from batchfile.plan.ranges import Cut
from batchfile.plan.request_hash import RequestHasher
from batchfile.plan.reuse import NewBatch, PoolOf, Reuse, Taken, reuse_results
from batchfile.types import Defaults

NONE_EQUAL = "nothing was reused: no request with temperature 0 or a seed is the same as one that has succeeded"


class Hashing:
    """`add` or `skip` is called once for each line, in order; `finish` at the end. Leaving earlier stores nothing."""

    def __init__(
        self, ledger: Ledger, batch_id: str, stage: str | None, defaults: Defaults, reuse: Reuse | None
    ) -> None:
        self.reuse = reuse
        self._ledger = ledger
        self._batch_id = batch_id
        self._hasher = RequestHasher(defaults, stage)
        self._file = HashFileWriter(ledger, batch_id)
        self._is_excluded = bytearray()  # see NewBatch; empty if nothing is to be reused

    def add(self, envelope: Envelope, pool: str, adapter: str | None) -> None:
        found = self._hasher.of(envelope, pool, adapter)
        if found is None:
            self.skip()
            return
        self._file.add(found)
        if self.reuse is not None:
            self._is_excluded.append(not self.reuse.is_sampled_too and self._hasher.is_sampled(envelope))

    def skip(self) -> None:
        """A line that cannot run, or whose answer cannot be reused."""
        self._file.add(NO_HASH)
        if self.reuse is not None:
            self._is_excluded.append(True)

    def finish(self, pool_of: PoolOf, cuts: list[Cut], pinned: InputRef, beat: Callable[[], None]) -> Taken:
        """Store the hashes, then reuse what can be reused. Raises: as `reuse_results`."""
        hashes = self._file.commit()
        if self.reuse is None:
            return Taken(cuts, hashes)
        batch = NewBatch(
            ledger=self._ledger,
            batch_id=self._batch_id,
            pool_of=pool_of,
            cuts=cuts,
            input=pinned,
            hashes=hashes,
            is_excluded=self._is_excluded,
            beat=beat,
        )
        taken = reuse_results(batch, self.reuse)
        if not taken.num_from and not taken.notes and not self.reuse.is_sampled_too:
            taken.notes.append(NONE_EQUAL)
        return taken

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)
