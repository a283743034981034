"""Batches in a store: whose they are, when they began, and how often they are looked up."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchfile import BatchStatus, Ledger
from batchfile.cli import progress
from batchfile.client import base, store
from batchfile.client.store import StoreRemote, find_batch
from batchfile.client.upload import Upload, open_upload
from batchfile.errors import InvalidRequest
from batchfile.ledger.status import StatusReader
from batchfile.local.work import work
from batchfile.plan.options import CreateOptions
from batchfile.plan.planner import plan_upload
from batchfile.plan.policy import Policy
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults
from tests.helpers.engine import engine_factory
from tests.helpers.ledger import BatchRecord, batches
from tests.helpers.local import RunOptions, inspect, is_being_written, lock_output, open_batch, outputs
from tests.helpers.settings import load_settings
from tests.helpers.store import open_ledger_open_ledger as open_ledger
from tests.helpers.store import open_service_ledger

LINE = '{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 8}}'


def remote(folder: Path, tenant: str) -> StoreRemote:
    settings = load_settings()
    return StoreRemote(open_service_ledger(str(folder / "st"), settings), settings, tenant)


@pytest.fixture
def batch(tmp_path: Path) -> BatchStatus:
    (tmp_path / "in.jsonl").write_text(LINE)
    upload = open_upload(str(tmp_path / "in.jsonl"))
    return remote(tmp_path, "acme").submit(upload, CreateOptions(stage="email", is_strict=False), lambda num: None)


def test_a_batch_of_another_tenant_is_not_there(tmp_path: Path, batch: BatchStatus) -> None:
    others = remote(tmp_path, "zeta")
    calls: list[Any] = [others.batch, others.cancel, others.rerun]
    for call in calls:
        with pytest.raises(InvalidRequest, match="not a batch of the tenant zeta; name the tenant that it belongs to"):
            call(batch.batch_id)
    with pytest.raises(InvalidRequest, match="not a batch of the tenant zeta"):
        others.download(batch, "results")
    assert remote(tmp_path, "acme").batch(batch.batch_id) == batch


def test_a_local_run_has_not_ended_before_its_output_is_there(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(LINE)
    output = str(tmp_path / "out.jsonl")
    ledger = open_ledger(str(tmp_path / "st"), load_settings())
    options = RunOptions(output=output, engine="echo", model="echo")
    looking = StoreRemote(ledger, load_settings(), "default")
    with lock_output(output):
        made = open_batch(ledger, inspect(str(tmp_path / "in.jsonl")), options).batch
        ends: list[BatchRecord] = []
        work(ledger, [made.batch_id], engine_factory("echo", model="echo"), "local-1", lambda runner: None, ends.append)
        (ended,) = ends
        for found in (looking.batch(made.batch_id), *looking.batches()):
            assert (found.state, found.has_ended) == ("ending", False)
            assert found.detail == f"{output} is being written"
        outputs.export(ledger, ended, output)
        assert looking.batch(made.batch_id).has_ended
    assert (looking.batch(output).state, looking.batch(output).detail) == ("ended", None)
    Path(output).unlink()
    Path(output + outputs.RECEIPT_ENDING).unlink()
    gone = looking.batch(made.batch_id)
    assert gone.has_ended
    assert gone.detail is not None
    assert gone.detail.startswith(f"{output} does not exist: `batchfile results {made.batch_id} -o FILE`")


def test_a_look_at_an_output_never_takes_it_from_its_run(tmp_path: Path) -> None:
    output = str(tmp_path / "out.jsonl")
    for _ in range(50):
        looks = [threading.Thread(target=is_being_written, args=(output,)) for _ in range(4)]
        for look in looks:
            look.start()
        with lock_output(output):
            assert is_being_written(output)
        for look in looks:
            look.join()
    assert not is_being_written(output)


def test_a_batch_that_is_watched_is_found_once(
    tmp_path: Path, batch: BatchStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def counted(ledger: Any, name: str) -> Any:
        found.append(name)
        return find_batch(ledger, name)

    monkeypatch.setattr(store, "find_batch", counted)
    watching = remote(tmp_path, "acme")
    for _ in range(3):
        assert watching.batch(batch.batch_id).state == "open"
    assert found == [batch.batch_id]
    watching.cancel(batch.batch_id)
    assert watching.batch(batch.batch_id).has_ended


@pytest.fixture
def still() -> StoreRemote:
    """In memory, by a clock that only tests move."""
    clock = ManualClock()
    return StoreRemote(Ledger(store=MemoryStore(clock), clock=clock), load_settings(), "acme")


def create(remote: StoreRemote, name: str, created_at: float) -> None:
    """A batch whose create began at `created_at`."""
    ledger, routing = remote._ledger, remote.routing()
    draft = batches.Draft(
        batch_id=name, routing=routing, defaults=Defaults(), stage="email", tenant="acme", created_at=created_at
    )
    line = [LINE.encode()]
    policy = Policy(on_problem="refuse", requests_max=1)
    planned = plan_upload(ledger, name, line, size=100, routing=routing, stage="email", policy=policy)
    batches.create(ledger, draft, planned)


def test_the_time_that_a_batch_has_begins_when_all_of_a_slow_input_is_here(still: StoreRemote) -> None:
    clock = still._ledger.clock

    def slow(on_bytes: Callable[[int], None]) -> Iterator[bytes]:
        clock.sleep(3600)
        yield LINE.encode()

    began_at = clock.now()
    piped = Upload(name="stdin", size=None, format="jsonl", chunks=slow, is_repeatable=False)
    options = CreateOptions(stage="email", is_strict=False)
    assert still.submit(piped, options, lambda num: None).created_at == began_at + 3600


def test_a_batch_whose_create_took_longer_than_that_of_others_is_new_all_the_same(still: StoreRemote) -> None:
    create(still, "quick", 200.0)
    assert [found.batch_id for found in still.new_batches(set())] == ["quick"]
    create(still, "slow", 100.0)
    assert [found.batch_id for found in still.new_batches({"quick"})] == ["slow"]


def test_a_look_for_new_batches_passes_a_page_of_old_ones_and_reads_none_of_them(
    still: StoreRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "OLD_PLACES_MAX", 3)
    for number in range(6):
        create(still, f"b{number}", 100.0 - number)
    read: list[str] = []

    def counted(batch_id: str) -> Any:
        read.append(batch_id)
        return StatusReader.read(still._reader, batch_id)

    monkeypatch.setattr(still._reader, "read", counted)
    assert [found.batch_id for found in still.new_batches({"b0", "b1", "b3", "b4", "b5"})] == ["b2"]
    assert list(still.new_batches({"b0", "b1", "b2", "b3"})) == []
    assert read == ["b2"]


def test_whoever_watches_all_batches_sees_also_those_whose_create_had_begun_before(
    still: StoreRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(still, "quick", 200.0)
    between: list[Callable[[], object]] = [
        lambda: create(still, "slow", 100.0),
        lambda: still.cancel("quick"),
        lambda: still.cancel("slow"),
    ]
    clock = SimpleNamespace(sleep=lambda seconds: between.pop(0)(), monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(progress, "time", clock)
    heard: list[str] = []
    progress.follow_all(still, lambda ended: heard.append(ended.batch_id))
    assert heard == ["quick", "slow"]
