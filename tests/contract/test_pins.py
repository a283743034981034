"""What a batch is pinned to stays, where etags differ with each write, as with SSE-KMS, and writes come late.

Every object whose etag is pinned is written once, wherever it comes from.
"""

import gzip
import json
import random
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import PreconditionFailed
from batchfile.testing import EchoEngine, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import FileRecord, Inbox, Janitor, scan, stored_files, uploads
from tests.helpers.inbox import source_of_file as source
from tests.helpers.ledger import BatchRecord, Draft, batches, keys
from tests.helpers.lines import URL
from tests.helpers.local import RunOptions, inspect, open_batch
from tests.helpers.plan import REFUSE, pending, submit

POOL = "one"
ROUTING = RoutingTable(stages={POOL: POOL}, pools={POOL: ("m",)})


class Kms(MemoryStore):
    """No etag comes twice. Each streamed write is sent once more by `send_late`."""

    def __init__(self) -> None:
        super().__init__()
        self._late: list[Callable[[], str]] = []

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        super().put(key, data, absent=absent, match=match)
        etag = uuid.uuid4().hex
        with self._lock:
            self._objects[key] = replace(self._objects[key], etag=etag)
        return etag

    def writer(self, key: str, *, is_new: bool = False) -> "_Writer":  # type: ignore[override]
        return _Writer(self, key, is_new=is_new)

    def commit(self, key: str, data: bytes, *, is_new: bool) -> str:
        self._late.append(partial(self.put, key, data, absent=is_new))
        return self.put(key, data, absent=is_new)

    def send_late(self) -> None:
        for write in self._late:
            with suppress(PreconditionFailed):
                write()


class _Writer:
    def __init__(self, store: Kms, key: str, *, is_new: bool) -> None:
        self._store, self._key, self._is_new = store, key, is_new
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self) -> str:
        return self._store.commit(self._key, bytes(self._data), is_new=self._is_new)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.clear()


@pytest.fixture
def store() -> Kms:
    return Kms()


@pytest.fixture
def ledger(store: Kms) -> Ledger:
    return Ledger(store=store, rng=random.Random(5))


def body(*, is_native: bool = True) -> bytes:
    params = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    more = {"params": params} if is_native else {"method": "POST", "url": URL, "body": params}
    return b"".join(json.dumps({"custom_id": f"r{n}", **more}).encode() + b"\n" for n in range(10))


def run(ledger: Ledger, batch: BatchRecord, pool: str = POOL) -> None:
    """Every write comes once more, right before the batch is worked on and while it is; it succeeds all the same."""
    store = ledger.store
    assert isinstance(store, Kms)
    store.send_late()
    options = RunnerOptions(runner_id="r", pool=pool, only=batch.batch_id, is_janitor=False)
    ended = run_alone(Runner(ledger, lambda: EchoEngine(num_slots=4), options))
    assert ended is not None
    assert (ended.state, ended.reason, ended.counts.succeeded) == ("ended", "completed", 10), ended.detail
    assert ended.results is not None
    store.send_late()
    assert b"".join(store.stream(ended.results.key)).count(b"\n") == 10


def of_file(ledger: Ledger, file: FileRecord) -> None:
    draft = Draft(batch_id="b", routing=ROUTING, defaults=Defaults(), created_at=ledger.clock.now())
    store = ledger.store
    assert isinstance(store, Kms)
    pending.create(ledger, draft, source(ledger, file, endpoint=URL, requests_max=100))
    store.send_late()
    batch = pending.plan(ledger, "b", runner="p")
    assert batch is not None
    assert batch.state == "open", batch.detail
    run(ledger, batch)


def test_requests_that_stream_in(ledger: Ledger) -> None:
    draft = Draft(batch_id="b", routing=ROUTING, defaults=Defaults(), created_at=ledger.clock.now())
    run(ledger, submit(ledger, draft, [body()], size=1000, policy=REFUSE))


def test_a_stored_file(ledger: Ledger) -> None:
    chunks = [body(is_native=False)]
    of_file(
        ledger,
        stored_files.store_file(ledger, "t", chunks, filename="f", purpose="batch", kept_s=900.0, bytes_max=10**6),
    )


def test_an_upload_of_parts(ledger: Ledger, store: Kms) -> None:
    data = body(is_native=False)
    upload = uploads.begin(ledger, "t", filename="f", mime_type="", purpose="batch", size=len(data), file_kept_s=900.0)
    parts = [uploads.add_part(ledger, upload, [piece], bytes_max=10**6) for piece in (data[:500], data[500:])]
    store.send_late()
    done = uploads.complete(ledger, upload, parts, md5=None)
    assert done.file is not None
    of_file(ledger, done.file)


def test_a_packed_file_in_the_inbox(ledger: Ledger, store: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "QUIET_S", -3600.0)
    store.put(f"inbox/{POOL}/a.jsonl.gz", gzip.compress(body()))
    Janitor(ledger, runner="s", inbox=Inbox(ledger, ROUTING)).tick()
    (entry,) = store.list(keys.INDEX_PREFIX)
    batch = batches.read_batch(ledger, keys.index_batch_id(entry.key))
    assert batch is not None
    assert batch.input.key != f"inbox/{POOL}/a.jsonl.gz"
    run(ledger, batch)


def test_a_local_run(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(body())
    options = RunOptions(output=str(tmp_path / "out.jsonl"), engine="echo", model="echo")
    run(ledger, open_batch(ledger, inspect(str(tmp_path / "in.jsonl")), options).batch, "local")
