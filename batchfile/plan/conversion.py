"""A file that is not plain JSONL becomes an input once: unpacked, or its rows written as lines. Streamed."""

import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from batchfile.errors import TooLarge
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord, InputRef
from batchfile.lines.converter import convert
from batchfile.lines.file_formats import CHUNK_BYTES, HEAD_BYTES, ChunkReader, detect
from batchfile.store.base import Store

UNPACKED_BYTES_MAX = 256 * 1024**3  # a small file may unpack to anything


def readable(ledger: Ledger, batch: BatchRecord, beat: Callable[[], None], name: str) -> str:
    """The key of the requests as plain lines: of the object itself, or of what was made of it.

    `beat` is called every MiB or so; `name` is for messages.
    Raises: InvalidFile (damaged data, a column that is missing, too much for one process), ConverterKilled,
    ObjectChanged, ObjectMissing, StoreUnavailable.
    """
    store, pinned = ledger.store, batch.input
    head = b"".join(store.stream(pinned.key, 0, min(HEAD_BYTES, pinned.size), match=pinned.etag))
    kind = detect(name, head)
    if kind == "jsonl":
        return pinned.key
    source = (
        io.BufferedReader(_Ranges(store, pinned), CHUNK_BYTES)
        if kind == "parquet"
        else ChunkReader(store.stream(pinned.key, match=pinned.etag))
    )
    key = keys.input_key(batch.batch_id, ledger.new_id()[:12])
    size = 0
    with store.writer(key, is_new=True) as writer:
        # In a process of its own: this one may hold an engine, or be a service.
        for chunk in convert(name, kind, cast(BinaryIO, source), beat=beat):
            size += len(chunk)
            if size > UNPACKED_BYTES_MAX:
                raise TooLarge(f"{name}: unpacks to more than {UNPACKED_BYTES_MAX // 1024**3} GiB; split it")
            writer.write(chunk)
        writer.commit()
    return key


class _Ranges(io.RawIOBase):
    """A pinned object as a file that can be read anywhere."""

    def __init__(self, store: Store, pinned: InputRef) -> None:
        self._store = store
        self._pinned = pinned
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._pinned.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, end = self._at, min(self._at + len(buffer), self._pinned.size)
        if start >= end:
            return 0
        for chunk in self._store.stream(self._pinned.key, start, end, match=self._pinned.etag):
            at = self._at - start
            buffer[at : at + len(chunk)] = chunk
            self._at += len(chunk)
        return self._at - start
