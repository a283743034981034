"""An object of lines, written as a stream, that is counted and hashed on the way."""

import hashlib
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from batchfile.ledger.base import Ledger
from batchfile.ledger.records import FileRef
from batchfile.store.base import Writer


class HashingWriter:
    """A streamed object of lines that counts and hashes what goes through."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        self.num_lines = 0
        self._key = key
        self._size = 0
        self._hash = hashlib.sha256()
        self._writer: Writer = ledger.store.writer(key, is_new=True)

    def write_lines(self, lines: list[bytes]) -> None:
        data = b"\n".join([*lines, b""]) if lines else b""
        self.num_lines += len(lines)
        self._pass(data)

    def write_long(self, chunks: Iterable[bytes]) -> None:
        """A line that is too long for memory, with or without its newline."""
        last = b""
        for chunk in chunks:
            self._pass(chunk)
            last = chunk or last
        if not last.endswith(b"\n"):
            self._pass(b"\n")
        self.num_lines += 1

    def _pass(self, data: bytes) -> None:
        self._size += len(data)
        self._hash.update(data)
        self._writer.write(data)

    def commit(self) -> FileRef:
        self._writer.commit()
        return FileRef(key=self._key, size=self._size, sha256=self._hash.hexdigest(), num_lines=self.num_lines)

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
