"""The end of a batch: assembled once, whichever process does it and however often, and never changed."""

from dataclasses import replace
from typing import Any

import pytest
import structlog

from batchfile.errors import LeaseLost, ObjectChanged, StoreUnavailable
from batchfile.testing import EchoEngine
from tests.contract.ledger_kit import BATCH, World, finished, line
from tests.helpers.ledger import (
    BatchRecord,
    ShardRecord,
    assembly_key,
    batch_key,
    batches,
    ending,
    input_key,
    lease,
    load,
    shards,
    swap,
)
from tests.helpers.plan import ranges
from tests.helpers.store import Object


@pytest.mark.parametrize(
    ("reason", "status"), [("canceled", "canceled"), ("expired", "expired"), ("failed", "errored")]
)
def test_ending_keeps_what_is_committed_and_answers_the_rest(reason: str, status: str) -> None:
    world = World()
    world.create([line(number) for number in range(40)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(0, 0)], has_dispatched=True)
    batches.end(world.ledger, BATCH, reason)  # type: ignore[arg-type]
    ended = ending.finish(world.ledger, BATCH, runner="r9")
    assert ended is not None
    assert (ended.state, ended.reason) == ("ended", reason)
    assert [row["status"] for row in world.results()] == ["succeeded"] + [status] * 39
    assert [row["custom_id"] for row in world.results()] == [f"r{number}" for number in range(40)]
    with pytest.raises(LeaseLost):
        shards.checkpoint(world.ledger, held, [finished(1, 1)], has_dispatched=True)


def test_an_assembly_that_is_stopped_leaves_nothing_and_any_process_does_it_again_at_once() -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(number, number) for number in range(5)], has_dispatched=True)
    before = {entry.key for entry in world.store.list("")}
    assert ending.finish(world.ledger, BATCH, runner="r2", is_stopped=lambda: True) is None
    assert {entry.key for entry in world.store.list("")} - before == {assembly_key(BATCH)}
    assert world.batch.state == "open"
    ended = ending.finish(world.ledger, BATCH, runner="r3")
    assert ended is not None
    assert [row["status"] for row in world.results()] == ["succeeded"] * 5


def test_a_claim_that_races_with_a_cancel_is_closed() -> None:
    world = World()
    world.create([line(1)])
    plan, stale = batches.read_plan(world.ledger, world.batch), world.batch
    batches.end(world.ledger, BATCH, "canceled")
    assert shards.claim(world.ledger, stale, plan, "local", 0, runner="r1") == "closed"
    assert world.shard("local", 0).reason == "canceled"


def test_an_ended_batch_never_changes() -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    world.run()
    before, results = world.batch, world.results()
    batches.end(world.ledger, BATCH, "canceled")
    ending.finish(world.ledger, BATCH, runner="r2")
    assert (world.batch, world.results()) == (before, results)


def test_who_comes_late_to_the_end_of_a_batch_does_not_look_for_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(n, n) for n in range(5)], has_dispatched=True)
    get = world.store.get

    def end_first(key: str) -> Object | None:
        """Before the late one claims its task, another has ended the batch, and its lease on that has expired."""
        if key == assembly_key(BATCH):
            monkeypatch.setattr(world.store, "get", get)
            assert ending.finish(world.ledger, BATCH, runner="r2") is not None
            ending.sweep_parts(world.ledger, world.batch)
            world.clock.sleep(world.ledger.limits.lease_ttl_s + 1)
        return get(key)

    monkeypatch.setattr(world.store, "get", end_first)
    with structlog.testing.capture_logs() as events:
        late = ending.finish(world.ledger, BATCH, runner="r1")
    assert late is None
    assert world.batch.state == "ended"
    assert not [event for event in events if event["event"] == "part.lost"]


def test_a_turn_ends_although_the_answer_to_its_last_beat_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create([line(0)])
    key = assembly_key(BATCH)
    task = shards.claim_task(world.ledger, world.batch, key, "_assembly", runner="r1")
    assert task is not None
    put = world.store.put

    def put_and_fall_silent(*args: Any, **options: Any) -> str:
        put(*args, **options)
        monkeypatch.setattr(world.store, "get", lose)
        raise StoreUnavailable("no answer")

    def lose(key: str) -> Object | None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(world.store, "put", put_and_fall_silent)
    world.clock.sleep(world.ledger.limits.checkpoint_s)
    shards.beat(world.ledger, task)
    monkeypatch.undo()
    shards.finish(world.ledger, task)
    found = load(world.ledger, key, ShardRecord)
    assert found is not None
    assert found.record.state == "done"


def test_who_assembles_what_another_has_ended_and_swept_says_nothing_of_lost_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.create([line(number) for number in range(5)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(n, n) for n in range(5)], has_dispatched=True)
    get = world.store.get

    def sleep_long(key: str) -> Object | None:
        """Before the first part is read: paused beyond the lease, while another ends the batch and tidies."""
        if "/parts/" in key:
            monkeypatch.setattr(world.store, "get", get)
            world.clock.sleep(world.ledger.limits.lease_ttl_s + 1)
            assert ending.finish(world.ledger, BATCH, runner="r2") is not None
            ending.sweep_parts(world.ledger, world.batch)
        return get(key)

    monkeypatch.setattr(world.store, "get", sleep_long)
    with structlog.testing.capture_logs() as events:
        late = ending.finish(world.ledger, BATCH, runner="r1")
    assert late is None
    assert world.batch.counts is not None
    assert world.batch.counts.succeeded == 5
    assert not [event for event in events if event["event"] == "part.lost"]


def test_who_finds_the_end_of_a_batch_in_other_hands_reads_no_record_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create([line(number) for number in range(200)])
    world.run()
    fresh = lease.fresh("_assembly", 0, 1, lease="x", runner="busy")
    world.store.delete(assembly_key(BATCH))
    swap(world.ledger, assembly_key(BATCH), fresh, None)
    stored = load(world.ledger, batch_key(BATCH), BatchRecord)
    assert stored is not None
    swap(world.ledger, batch_key(BATCH), replace(stored.record, state="open", write_id="again"), stored)
    asked: list[str] = []
    get = world.store.get

    def noting(key: str) -> Object | None:
        asked.append(key)
        return get(key)

    monkeypatch.setattr(world.store, "get", noting)
    assert ending.finish(world.ledger, BATCH, runner="r2") is None
    assert asked == [batch_key(BATCH), assembly_key(BATCH)]


def test_a_changed_input_ends_the_batch_and_keeps_what_is_done() -> None:
    world = World()
    world.create([line(number) for number in range(40)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(n, n) for n in range(32)], has_dispatched=True)
    world.store.put(input_key(BATCH, "n"), b"something else")
    with pytest.raises(ObjectChanged):
        list(world.store.stream(input_key(BATCH, "n"), match=world.batch.input.etag))
    world.run("r2")
    assert world.batch.reason == "input_changed"
    rows = world.results()
    assert [row["status"] for row in rows] == ["succeeded"] * 32 + ["errored"] * 8
    assert rows[-1]["error"]["type"] == "input_changed"  # type: ignore[index]


def test_of_a_changed_input_an_assembly_tells_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_LINES_MIN", 4)
    world = World()
    planned = world.create([line(number) for number in range(40)])
    assert len(planned.plan.ranges) == 10
    world.store.put(input_key(BATCH, "n"), b"something else")
    batches.end(world.ledger, BATCH, "input_changed")
    with structlog.testing.capture_logs() as events:
        ending.finish(world.ledger, BATCH, runner="r")
    assert [event["event"] for event in events].count("input.changed") == 1
    batch = world.batch
    assert batch.errors is not None
    assert (batch.state, batch.total, batch.errors.num_lines) == ("ended", 40, 0)


def test_a_part_that_is_lost_makes_its_lines_storage_errors() -> None:
    world = World()
    world.create([line(number) for number in range(3)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(0, 0), finished(1, 1)], has_dispatched=True)
    shards.checkpoint(world.ledger, held, [finished(2, 2)], has_dispatched=True)
    world.store.delete(held.record.parts[0].key)
    ending.finish(world.ledger, BATCH, runner="r1")
    assert [row["status"] for row in world.results()] == ["errored", "errored", "succeeded"]
    assert world.results()[0]["error"]["type"] == "storage_error"  # type: ignore[index]
    assert world.results()[0]["custom_id"] == "r0"


def test_the_errors_file_holds_the_input_lines_that_did_not_succeed() -> None:
    world = World()
    rows = [line(1), b"{rubbish", line(2)]
    world.create(rows)
    world.run()
    assert world.batch.errors is not None
    assert b"".join(world.store.stream(world.batch.errors.key)) == rows[1] + b"\n"


def test_an_ended_batch_has_the_fingerprints_of_all_engines_that_made_its_results() -> None:
    world = World()
    world.create([line(number) for number in range(3)])
    held = world.claim()
    shards.checkpoint(world.ledger, held, [finished(0, 0)], has_dispatched=True, fingerprints=("a",))
    assert world.shard("local", 0).fingerprints == ("a",)
    shards.checkpoint(world.ledger, held, has_dispatched=True, fingerprints=("b",))
    assert world.shard("local", 0).fingerprints == ("a",), "a renewal commits nothing"
    shards.checkpoint(world.ledger, held, [finished(1, 1)], has_dispatched=True)
    shards.checkpoint(world.ledger, held, [finished(2, 2)], has_dispatched=True, fingerprints=("a", "c"))
    ended = ending.finish(world.ledger, BATCH, runner="r")
    assert ended is not None
    assert ended.fingerprints == {"local": ("", "a", "c")}, "an empty one is unknown"


def test_a_runner_records_the_fingerprint_of_its_engine() -> None:
    world = World()
    world.create([line(0), b"rubbish"])
    world.run()
    assert world.batch.fingerprints == {"local": (EchoEngine().info.fingerprint,)}
