"""Versions of a dropped file: each is one batch, whether it is removed, refused, moved or put there again."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from batchfile import Ledger
from batchfile.errors import RecordDamaged
from tests.contract.inbox_kit import POOLS, World, native, still, world
from tests.helpers.inbox import ClaimRecord, Inbox
from tests.helpers.ledger import Planned, SetAside, batches, damage, decode, ending, keys, purge, retention
from tests.helpers.plan import pending, plan_input
from tests.helpers.store import DirectoryStore

if sys.version_info >= (3, 14):
    pass
else:
    pass
from tests.contract.inbox_kit import made_and_died

__all__ = ["still", "world"]


def test_a_file_that_is_removed_while_it_is_planned_ends_its_batch_as_changed(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)

    def remove_first(ledger: Ledger, *which: Any, **how: Any) -> Planned:
        still.store.delete("inbox/mistral/a.jsonl")
        return plan_input(ledger, *which, **how)

    monkeypatch.setattr(pending, "plan_input", remove_first)
    for _ in range(2):
        still.janitor.tick()
    assert (still.only().state, still.only().reason) == ("ended", "input_changed")


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_batch_that_was_deleted_before_its_claim_said_that_it_was_made_is_not_made_again(
    still: World, is_damaged: bool
) -> None:
    """What is left of it is as bare as what stands for a create that was given up."""
    made_and_died(still)
    made = still.only()
    if is_damaged:
        place = damage.place_of(still.ledger, "default", made.batch_id)
        still.store.put(keys.batch_key(made.batch_id), b"")
        with pytest.raises(RecordDamaged) as raised:
            batches.read_batch(still.ledger, made.batch_id)
        assert place is not None
        damage.delete(still.ledger, raised.value, place)
    else:
        batches.end(still.ledger, made.batch_id, "canceled")
        ending.finish(still.ledger, made.batch_id, runner="r")
        retention.delete(still.ledger, made.batch_id)
        purge(still.ledger, made.batch_id)
    Inbox(still.ledger, POOLS).look(SetAside(still.ledger))
    assert still.batches() == []
    (claim,) = still.store.list("inbox-claims/")
    found = still.store.get(claim.key)
    assert found is not None
    assert decode(found.data, ClaimRecord).is_made


@pytest.mark.parametrize(("how", "data", "options"), [("empty", [], b""), ("wrong options", [native("b")], b"x = 1")])
def test_a_version_that_is_refused_unread_leaves_nothing_of_the_version_before(
    world: World, how: str, data: list[Any], options: bytes
) -> None:
    world.drop("mistral/a.jsonl", native("a"), b"rubbish\n")
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    assert len(world.outbox()) == 5
    world.store.put("inbox/mistral/a.batch.toml", options)
    world.drop("mistral/a.jsonl", *data)
    for _ in range(2):
        world.janitor.tick()
    assert world.outbox() == ["mistral/a.jsonl.rejected.json"]


def test_options_that_are_broken_after_a_file_has_run_change_nothing(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    told = world.outbox()
    world.store.put("inbox/mistral/a.batch.toml", b"x = 1")
    for janitor in (world.janitor, world.new_janitor("t")):
        janitor.tick()
    assert world.outbox() == told


def test_the_same_bytes_put_there_again_end_the_batch_that_runs(still: World) -> None:
    """In memory as in a bucket their etag is the same."""
    assert still.clock is not None
    data = still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    still.store.put("inbox/mistral/a.jsonl", data)
    still.clock.sleep(10.0)
    for _ in range(2):
        still.janitor.tick()
    first, second = still.batches()
    assert (first.state, first.reason, second.state) == ("ended", "input_changed", "open")
    assert still.document("mistral/a.jsonl.status.json")["batch_id"] == second.batch_id


def test_the_same_bytes_put_there_again_are_a_new_version(world: World) -> None:
    data = world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    world.run(world.only())
    first = entry = world.store.head("inbox/mistral/a.jsonl")
    while first is not None and entry is not None and int(entry.modified_at) == int(first.modified_at):
        world.store.put("inbox/mistral/a.jsonl", data)
        entry = world.store.head("inbox/mistral/a.jsonl")
    world.janitor.tick()
    assert len(world.batches()) == 2


@pytest.mark.parametrize("is_touched", [True, False])
def test_a_file_that_is_moved_out_and_back_is_a_new_version_only_where_it_was_touched(
    tmp_path: Path, is_touched: bool
) -> None:
    world, away = World(DirectoryStore(tmp_path / "store", fsync=False)), tmp_path / "a.jsonl"
    world.drop("mistral/a.jsonl", native("a"))
    place = tmp_path / "store" / "inbox" / "mistral" / "a.jsonl"
    os.utime(place, (1.0, 1.0))
    world.janitor.tick()
    world.run(world.only())
    place.rename(away)
    world.janitor.tick()
    if is_touched:
        os.utime(away, (2.0, 2.0))
    place.parent.mkdir(parents=True, exist_ok=True)
    away.rename(place)
    world.janitor.tick()
    assert len(world.batches()) == (2 if is_touched else 1)
