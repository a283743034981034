"""The ids of a batch's requests next to an input that is not the store's own, so that no change of it loses them.

One line each, in input order: the id as JSON, or null where the request has none. Written by the planner.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec
import structlog

from batchfile.errors import StoreError, StoreUnavailable
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.hashing_writer import HashingWriter
from batchfile.ledger.records import FileRef, Range
from batchfile.lines.framing import iter_lines

log = structlog.get_logger()

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(str | None)


class CustomIdsWriter(HashingWriter):
    def __init__(self, ledger: Ledger, batch_id: str) -> None:
        super().__init__(ledger, keys.custom_ids_key(batch_id, ledger.new_id()[:12]))

    def write(self, ids: Sequence[str | None]) -> None:
        self.write_lines([_encoder.encode(custom_id) for custom_id in ids])


class CustomIds:
    """What was kept, read where it is needed: twice, the first time to prove that it is what was written."""

    def __init__(self, ledger: Ledger, kept: FileRef | None) -> None:
        self.are_kept = kept is not None
        self._ledger = ledger
        self._kept = kept
        self._ids: Iterator[str | None] | None = None
        self._at = 0  # the number of the next one

    def of(self, span: Range) -> list[str | None]:
        """None for each that is not known. Ranges must be asked for in their order, each once."""
        if self._ids is None:
            self._ids = self._read()
        ids = list(islice(self._ids, span.first - self._at, span.first - self._at + span.num_lines))
        self._at = span.first + span.num_lines
        return ids + [None] * (span.num_lines - len(ids))

    def _read(self) -> Iterator[str | None]:
        if self._kept is None or not self._is_whole(self._kept):
            self.are_kept = False
            return iter(())
        stored = iter_lines(self._ledger.store.stream(self._kept.key))
        return (_decoder.decode(line.data or b"null") for line in stored)

    def _is_whole(self, kept: FileRef) -> bool:
        digest = hashlib.sha256()
        try:
            for chunk in self._ledger.store.stream(kept.key):
                digest.update(chunk)
        except StoreUnavailable:
            raise
        except StoreError as error:
            log.error("custom_ids.lost", key=kept.key, error=str(error))
            return False
        return digest.hexdigest() == kept.sha256
