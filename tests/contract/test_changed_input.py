"""An input that is not as it was pinned: read on where the planned bytes are there, and no id lost where not."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from batchfile.types import Defaults
from tests.contract.test_ledger import BATCH, LOCAL, World, finished, line
from tests.helpers.ledger import (
    BatchRecord,
    batch_key,
    batch_prefix,
    batches,
    ending,
    input_key,
    inputs,
    repin,
    shards,
    update_batch,
)
from tests.helpers.plan import plan_input

KEY = input_key(BATCH, "n")


def created(rows: list[bytes], *, keeps_ids: bool = True) -> World:
    world = World()
    world.store.put(KEY, b"\n".join(rows) + b"\n")
    planned = plan_input(world.ledger, BATCH, KEY, routing=LOCAL, keeps_ids=keeps_ids)
    batches.create(world.ledger, batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=Defaults()), planned)
    return world


def errors(world: World) -> list[dict[str, object]]:
    assert world.batch.errors is not None
    return [json.loads(row) for row in b"".join(world.store.stream(world.batch.errors.key)).splitlines()]


def replaced(data: bytes) -> bytes:
    return b"something else"


def removed_middle(data: bytes) -> bytes:
    return data[:100] + data[200:] + data


@pytest.mark.parametrize("change", [replaced, removed_middle])
def test_of_an_input_that_is_gone_every_result_has_its_id(change: Callable[[bytes], bytes]) -> None:
    rows = [line(n) for n in range(70)]
    rows[1], rows[50] = b"rubbish", line(49)
    world = created(rows)
    held = world.claim(1)
    shards.checkpoint(world.ledger, held, [finished(n + 32, n) for n in range(5)], has_dispatched=True)
    world.store.put(KEY, change(b"\n".join(rows)))
    world.run("r2")
    assert (world.batch.state, world.batch.reason) == ("ended", "input_changed")
    found = world.results()
    wanted: list[str | None] = [f"r{n}" for n in range(70)]
    wanted[1], wanted[50] = None, "r49"
    assert [row["custom_id"] for row in found] == wanted
    assert errors(world) == [row for row in found if row["status"] != "succeeded"]
    assert len(errors(world)) == 65


@pytest.mark.parametrize("data", [None, b'"r1"\n"r0"\n'])
def test_ids_that_are_not_what_was_written_are_nobodys(data: bytes | None) -> None:
    world = created([line(n) for n in range(3)])
    (kept,) = [entry.key for entry in world.store.list(f"{batch_prefix(BATCH)}custom-ids-")]
    if data is None:
        world.store.delete(kept)
    else:
        world.store.put(kept, data)
    world.store.put(KEY, b"something else")
    world.run()
    assert [row["custom_id"] for row in world.results()] == [None] * 3
    assert errors(world) == []


def test_the_same_bytes_under_another_etag_are_read_on() -> None:
    world = created([line(n) for n in range(40)], keeps_ids=False)
    pinned = world.batch.input
    stale = replace(pinned, etag="old")
    update_batch(
        world.ledger, batch_key(BATCH), lambda record: None if record.input == stale else replace(record, input=stale)
    )
    world.run()
    assert (world.batch.reason, world.batch.counts.succeeded) == ("completed", 40)
    assert world.batch.input == pinned


def test_an_input_that_grew_is_read_from_a_copy_of_what_was_planned() -> None:
    rows = [line(n) for n in range(40)]
    world = created(rows, keeps_ids=False)
    data = b"\n".join(rows) + b"\n"
    world.store.put(KEY, data + line(40) + b"\n")
    world.run()
    assert (world.batch.reason, world.batch.counts.succeeded) == ("completed", 40)
    copied = world.batch.input
    assert copied.key != KEY
    assert b"".join(world.store.stream(copied.key, match=copied.etag)) == data
    assert len(list(world.store.list(f"{batch_prefix(BATCH)}input-"))) == 2


def test_lines_that_failed_before_the_input_grew_are_in_the_errors_file() -> None:
    rows = [line(n) for n in range(3)]
    rows[1] = b"rubbish"
    world = created(rows, keeps_ids=False)
    world.store.put(KEY, b"\n".join(rows) + b"\nmore")
    batches.end(world.ledger, BATCH, "canceled")
    ending.finish(world.ledger, BATCH, runner="r")
    assert world.batch.errors is not None
    assert b"".join(world.store.stream(world.batch.errors.key)) == b"\n".join(rows) + b"\n"


def test_who_repins_second_takes_what_the_first_has_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    world = created([line(n) for n in range(3)])
    stale = world.batch
    world.store.put(KEY, b"\n".join(line(n) for n in range(3)) + b"\n\n")
    first: list[BatchRecord | None] = []
    commit = inputs._commit

    def late(*arguments: object) -> BatchRecord | None:
        with monkeypatch.context() as patched:
            patched.setattr(inputs, "_commit", commit)
            first.append(repin(world.ledger, stale))
        return commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inputs, "_commit", late)
    second = repin(world.ledger, stale)
    assert second == first[0] == world.batch
    assert len(list(world.store.list(f"{batch_prefix(BATCH)}input-"))) == 2, "one copy, and what was there"
    assert repin(world.ledger, stale) == world.batch
