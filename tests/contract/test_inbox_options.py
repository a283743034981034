"""What is written beside a dropped file: the options of its batch, and whether it leaves the inbox."""

import json
import random
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from batchfile import Ledger
from batchfile.testing import FaultyStore
from tests.contract.inbox_kit import POOLS, Killed, World, native, still, world
from tests.helpers.inbox import Inbox, Janitor, dropped_file, outbox, outbox_task_key
from tests.helpers.ledger import SetAside, batches, retention
from tests.helpers.service import event_of

__all__ = ["still", "world"]


def test_options_beside_a_file_are_what_its_batch_gets(world: World) -> None:
    deadline = "2099-01-02T03:04:05Z"
    options = f'stage = "email"\npriority = 1\nmax_tokens = 3\ntemperature = 0.5\ndeadline = {deadline}\n'
    world.store.put("inbox/llama/a.batch.toml", options.encode())
    rows = [{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hello"}]}}]
    world.drop("llama/a.jsonl", *rows)
    world.drop("llama/b.jsonl", *rows)
    world.janitor.tick()
    made = {batch.input.key: batch for batch in world.batches()}
    batch = made["inbox/llama/a.jsonl"]
    assert (batch.stage, batch.priority) == ("email", 1)
    assert (batch.defaults.max_tokens, batch.defaults.temperature) == (3, 0.5)
    assert batch.expires_at == datetime.fromisoformat(deadline).timestamp()
    assert list(batches.read_plan(world.ledger, batch).pools) == ["mistral"]
    other = made["inbox/llama/b.jsonl"]
    assert (other.stage, other.priority, other.routing.everything) == (None, 5, "llama")
    assert world.outbox() == ["llama/a.jsonl.status.json", "llama/b.jsonl.status.json"]


def test_a_file_leaves_the_inbox_only_when_told_to_and_only_once_it_has_run(world: World) -> None:
    world.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    data = world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    assert world.store.head("inbox/mistral/a.jsonl") is not None
    world.run(world.only())
    world.janitor.tick()
    assert [entry.key for entry in world.store.list("inbox/")] == ["inbox/mistral/a.batch.toml"]
    moved = world.store.get("done/mistral/a.jsonl")
    assert moved is not None
    assert moved.data == data
    assert world.document("mistral/a.jsonl.receipt.json")["input"]["moved_to"] == "done/mistral/a.jsonl"
    world.new_janitor("t").tick()
    assert len(world.batches()) == 1
    ended = world.only()
    receipt = world.document("mistral/a.jsonl.receipt.json")
    world.store.delete(outbox_task_key(ended.batch_id))  # as if it was cut off before its end
    assert outbox.publish(world.ledger, ended, runner="again")
    assert world.document("mistral/a.jsonl.receipt.json") == receipt


def test_a_file_that_did_not_run_to_its_end_is_not_moved(still: World) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    batches.end(still.ledger, still.only().batch_id, "canceled")
    still.janitor.tick()
    assert still.document("mistral/a.jsonl.receipt.json")["counts"]["canceled"] == 1
    assert still.document("mistral/a.jsonl.receipt.json")["input"]["moved_to"] is None
    assert still.store.head("inbox/mistral/a.jsonl") is not None


def test_settings_move_what_says_nothing_itself(still: World) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/b.batch.toml", b"move_done = false")
    for name in "ab":
        still.drop(f"mistral/{name}.jsonl", native(name))
    still.clock.sleep(10.0)
    janitor = Janitor(still.ledger, runner="s", inbox=Inbox(still.ledger, POOLS, move_done=True))
    janitor.tick()
    for batch in still.batches():
        still.run(batch)
    assert [entry.key for entry in still.store.list("inbox/")] == [
        "inbox/mistral/b.batch.toml",
        "inbox/mistral/b.jsonl",
    ]


def test_a_file_that_is_replaced_while_it_is_moved_stays_and_is_a_batch_of_its_own(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    still.drop("mistral/a.jsonl", native("old"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    stream = still.store.stream

    def replacing(key: str, *args: Any, match: str | None = None, **more: Any) -> Iterator[bytes]:
        yield from stream(key, *args, match=match, **more)
        is_moving = still.out("mistral/a.jsonl.results.jsonl") is not None
        if key == "inbox/mistral/a.jsonl" and is_moving and len(still.batches()) == 1:
            still.drop("mistral/a.jsonl", native("new"))

    monkeypatch.setattr(still.store, "stream", replacing)
    still.run(still.only())
    still.clock.sleep(10.0)
    still.janitor.tick()
    still.janitor.tick()
    still.run(still.batches()[-1])
    assert [batch.counts.succeeded for batch in still.batches()] == [1, 1]
    results = still.out("mistral/a.jsonl.results.jsonl")
    assert results is not None
    assert json.loads(results)["custom_id"] == "new"


def test_a_callback_is_kept_with_the_batch_and_its_event_names_the_file(still: World) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", b'callback = "https://example.com/done?x=1"')
    still.drop("mistral/a.jsonl", b"\n")
    still.clock.sleep(10.0)
    still.janitor.tick()
    batch = still.only()
    dropped = dropped_file(batch)
    assert dropped is not None
    assert dropped.callback == "https://example.com/done?x=1"
    event = event_of(batch)
    assert json.loads(event.body)["data"] == {
        "id": batch.batch_id,
        "path": "inbox/mistral/a.jsonl",
    }


def test_a_file_keeps_the_results_of_an_earlier_batch(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a", "one"), native("b", "two"))
    world.janitor.tick()
    first = world.run(world.only())
    for name, reuse in (("b", first.batch_id), ("c", "auto")):
        world.store.put(f"inbox/mistral/{name}.batch.toml", f'reuse = "{reuse}"'.encode())
        world.drop(f"mistral/{name}.jsonl", native("x", "two"), native("y", "three"))
        world.janitor.tick()
        world.run(world.batches()[-1])
        world.janitor.tick()
    receipt = world.document("mistral/b.jsonl.receipt.json")
    assert (receipt["reused"], receipt["reuse_note"]) == ({first.batch_id: 1}, None)
    assert receipt["usage"]["output_tokens"] == 1, "what was reused costs no tokens"
    results = world.out("mistral/b.jsonl.results.jsonl")
    assert results is not None
    assert [json.loads(row)["custom_id"] for row in results.splitlines()] == ["x", "y"]
    receipt = world.document("mistral/c.jsonl.receipt.json")
    assert receipt["reused"] == {}
    assert "it is unknown which model would run now" in receipt["reuse_note"]


def test_a_file_whose_source_is_gone_since_it_was_claimed_runs_as_a_whole(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    first = still.run(still.only())
    still.store.put("inbox/mistral/b.batch.toml", f'reuse = "{first.batch_id}"'.encode())
    still.drop("mistral/b.jsonl", native("b"))
    still.clock.sleep(10.0)

    def die(number: int, verb: str, key: str, phase: str) -> None:
        if phase == "before" and key.endswith("/batch.json"):
            raise Killed

    faulty = Ledger(store=FaultyStore(still.store, on_call=die), clock=still.clock, rng=random.Random(3))
    with pytest.raises(Killed):
        Inbox(faulty, POOLS).look(SetAside(faulty))
    retention.delete(still.ledger, first.batch_id)
    still.new_janitor("t").tick()
    (second,) = [batch for batch in still.batches() if batch.batch_id != first.batch_id]
    assert (second.state, second.reused) == ("open", {})
    assert second.reuse_note == (f"no result of {first.batch_id} was reused: it has expired or was deleted")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("prioritie = 1", "'prioritie' is an unknown option; the options are stage, priority"),
        ("priority = 10", "priority: must be a whole number from 0 (first) to 9, got '10'"),
        ("stage = 'poetry'", "stage 'poetry' in its options is unknown; use one of email"),
        ("results = 'csv'", "results: must be 'jsonl' or 'parquet', got 'csv'"),
        ("stage = ''", "stage: must be the name of a stage, got ''"),
        ("max_tokens = 99999999999999999999", "max_tokens: must be a whole number from 1 to"),
        ("max_tokens = 2147483648", "from 1 to 2147483647, got '2147483648'"),
        ("callback = 'ftp://example.com'", "callback: must be an http:// or https:// URL"),
        ("callback = 'https://ann@example.com/'", "without a user"),
        ("move_done = 'yes'", "move_done: must be true or false, got 'yes'"),
        ("deadline = 2099-01-01T00:00:00", "deadline: must be a time with its time zone"),
        ("reuse = ''", "reuse: must be the id of an ended batch, or 'auto', got ''"),
        ("reuse = 'batch_0'", "a.jsonl: in its options, reuse: there is no batch 'batch_0'"),
        ("priority 1", "inbox/mistral/a.batch.toml: is not valid TOML: "),
        ("stage = 'email'\npriority 1", "line 2, column 10); write `key = value` lines with text in double quotes"),
        ("priority = " + "[" * 5_000, "is too long or nested too deeply"),
        (f"# {'x' * 70_000}", "is larger than"),
    ],
)
def test_wrong_options_hold_their_file_back_until_they_are_mended(still: World, options: str, why: str) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", options.encode())
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    assert still.batches() == []
    assert why in still.document("mistral/a.jsonl.rejected.json")["message"]
    still.store.put("inbox/mistral/a.batch.toml", b"priority = 1")
    still.janitor.tick()
    assert still.only().priority == 1
    assert still.out("mistral/a.jsonl.rejected.json") is None
