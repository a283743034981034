"""The output and error files of an ended batch, rendered from its results whenever they are read.

An ended batch never changes, so they have the same bytes each time.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from batchfile.files.keys import file_prefix
from batchfile.files.stored_files import file_input
from batchfile.ledger.batches import read_batch
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.retention import left_of_s, remove_after
from batchfile.lines.formats.openai_results import openai_file

from ..http.auth import Caller
from ..service import Service
from . import schemas
from .schemas import Kind, output_file_id

SIZES_MAX = 1_000
_ID = re.compile(r"file-([0-9a-f]{32})-(output|errors)")
_NAMES: dict[Kind, str] = {"output": "output.jsonl", "errors": "error.jsonl"}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One of the two files of `batch`. `expires_at`: epoch seconds."""

    file_id: str
    batch: BatchRecord
    kind: Kind
    expires_at: float


class OutputFiles:
    """Finds, reads and removes them. The size is found by rendering the file once, and then stored."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._rendering = threading.Lock()  # one at a time, however many are requested

    def find(self, caller: Caller, file_id: str) -> OutputFile | None:
        match = _ID.fullmatch(file_id)
        if match is None:
            return None
        ledger = self._service.ledger
        kind: Kind = "output" if match[2] == "output" else "errors"
        batch = read_batch(ledger, f"batch_{match[1]}")
        if batch is None or batch.tenant != caller.tenant or file_input(batch) is None:
            return None
        if output_file_id(batch, kind) != file_id or batch.ended_at is None:
            return None
        file = OutputFile(file_id, batch, kind, batch.ended_at + self._kept_s(batch))
        if self._left_s(file) <= 0 or ledger.store.head(self._removed_key(caller, file_id)) is not None:
            return None
        return file

    def chunks(self, file: OutputFile) -> Iterator[bytes]:
        assert file.batch.results is not None, "a batch without results has no output files"
        return openai_file(
            self._service.ledger.store.stream(file.batch.results.key),
            batch_id=file.batch.batch_id,
            created=int(file.batch.created_at),
            is_output=file.kind == "output",
        )

    def view(self, caller: Caller, file: OutputFile) -> schemas.File:
        return schemas.File(
            id=file.file_id,
            bytes=self._size(caller, file),
            created_at=int(file.batch.ended_at or 0),
            expires_at=int(file.expires_at),
            filename=f"{file.batch.batch_id}_{_NAMES[file.kind]}",
            purpose="batch_output",
        )

    def remove(self, caller: Caller, file: OutputFile) -> None:
        """Removes only this file; the batch and its other file stay."""
        ledger = self._service.ledger
        remove_after(ledger, file_prefix(caller.tenant, file.file_id), self._left_s(file))
        ledger.store.put(self._removed_key(caller, file.file_id), b"")

    def _kept_s(self, batch: BatchRecord) -> float:
        return batch.kept_s or self._service.ledger.limits.retention_s

    def _left_s(self, file: OutputFile) -> float:
        return left_of_s(self._service.ledger, file.batch, self._kept_s(file.batch))

    def _removed_key(self, caller: Caller, file_id: str) -> str:
        return f"{file_prefix(caller.tenant, file_id)}.removed"

    def _size(self, caller: Caller, file: OutputFile) -> int:
        if file.file_id not in self._sizes:
            with self._rendering:
                self._sizes[file.file_id] = self._stored_size(caller, file)
            if len(self._sizes) > SIZES_MAX:
                self._sizes.popitem(last=False)
        return self._sizes[file.file_id]

    def _stored_size(self, caller: Caller, file: OutputFile) -> int:
        ledger = self._service.ledger
        prefix = file_prefix(caller.tenant, file.file_id)
        found = ledger.store.get(f"{prefix}.size")
        if found is not None and found.data.isdigit():
            return int(found.data)
        size = sum(map(len, self.chunks(file)))
        remove_after(ledger, prefix, self._left_s(file))
        ledger.store.put(f"{prefix}.size", str(size).encode())
        return size
