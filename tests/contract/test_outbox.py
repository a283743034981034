"""What is told of a dropped file, beside its path: its answers, its lines that failed, its receipt and its state."""

import hashlib
import io
import json
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchfile import Runner, RunnerOptions, __version__
from batchfile.engine.base import Finished
from batchfile.testing import ManualClock, run_alone
from batchfile.types import Counts, Usage
from tests.contract.inbox_kit import World, native, still, world
from tests.helpers.engine import engine_factory
from tests.helpers.inbox import INBOX_PREFIX, outbox, outbox_key, outbox_task_key
from tests.helpers.ledger import HeartbeatRecord, batches, write_heartbeat

__all__ = ["still", "world"]


def test_rubbish_lines_cost_only_themselves_and_their_file_drops_again(world: World) -> None:
    rubbish = b'{"custom_id": "r9", "params": \n'
    world.drop("mistral/a.jsonl", *(native(f"r{n}") for n in range(9)), rubbish, native("r0", "again"))
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    receipt = world.document("mistral/a.jsonl.receipt.json")
    assert (receipt["counts"]["succeeded"], receipt["counts"]["errored"]) == (9, 2)
    errors = world.out("mistral/a.jsonl.errors.jsonl")
    assert errors == rubbish + json.dumps(native("r0", "again")).encode() + b"\n"
    world.store.put("inbox/mistral/mended.jsonl", errors.replace(rubbish, json.dumps(native("r9")).encode() + b"\n"))
    world.janitor.tick()
    world.run(world.batches()[-1])
    world.janitor.tick()
    assert world.document("mistral/mended.jsonl.receipt.json")["counts"]["succeeded"] == 2
    assert world.out("mistral/mended.jsonl.errors.jsonl") is None


def test_a_file_that_is_replaced_after_its_end_replaces_what_is_in_the_outbox(world: World) -> None:
    world.drop("mistral/a.jsonl", native("old"), b"rubbish\n")
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    assert world.out("mistral/a.jsonl.errors.jsonl") == b"rubbish\n"
    world.drop("mistral/a.jsonl", native("new"))
    world.janitor.tick()
    world.run(world.batches()[-1])
    world.new_janitor("t").tick()
    results = world.out("mistral/a.jsonl.results.jsonl")
    assert results is not None
    assert json.loads(results)["custom_id"] == "new"
    assert world.out("mistral/a.jsonl.errors.jsonl") is None


def chat(custom_id: str, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_requests_in_openais_format_get_answers_in_it(world: World) -> None:
    world.drop("org/m/a.jsonl", chat("a", "org/m"), b"rubbish\n", chat("b", "whatever"))
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    results = world.out("org/m/a.jsonl.results.jsonl")
    assert results is not None
    first, second, third = map(json.loads, results.splitlines())
    assert first["response"]["body"]["choices"][0]["message"]["content"]
    assert second["response"]["status_code"] == 400
    assert (third["custom_id"], third["response"]["status_code"]) == ("b", 200)
    assert world.out("org/m/a.jsonl.errors.jsonl") == b"rubbish\n"


def test_a_file_of_which_no_line_can_run_is_rejected_with_its_lines_and_nothing_else(world: World) -> None:
    world.drop("mistral/a.jsonl", b'{"custom_id": "", "params": {}}\n', b"\n", b'{"custom_id": "a", "params": {}\n')
    world.janitor.tick()
    world.new_janitor("t").tick()
    told = world.document("mistral/a.jsonl.rejected.json")
    assert told["message"] == "inbox/mistral/a.jsonl: none of its 2 lines is a valid request"
    assert [error["line"] for error in told["errors"]] == [None, 1, 3]
    assert "custom_id" in told["errors"][1]["message"]
    assert "is not valid JSON" in told["errors"][2]["message"]
    assert world.only().reason == "failed"
    assert world.outbox() == ["mistral/a.jsonl.rejected.json", "mistral/a.jsonl.status.json"]


def test_a_rejection_names_no_more_than_the_first_hundred_lines(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", *(b'{"custom_id": "", "params": {}}\n' for _ in range(5000)))
    still.clock.sleep(10.0)
    still.janitor.tick()
    lines = [error["line"] for error in still.document("mistral/a.jsonl.rejected.json")["errors"]]
    assert lines == [None, *range(1, batches.REJECTED_READ_MAX + 1)]


def test_what_a_reader_takes_out_of_the_outbox_does_not_come_back(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    world.run(world.only())
    for name in world.outbox():
        world.store.delete(f"outbox/{name}")
    world.new_janitor("t").tick()
    assert world.outbox() == []


def test_a_damaged_record_of_whose_turn_it_is_holds_back_no_answers_and_keeps_no_batch(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    options = RunnerOptions(runner_id="r", pool="mistral", only=still.only().batch_id, is_janitor=False)
    ended = run_alone(Runner(still.ledger, engine_factory("echo", model="echo"), options))
    assert ended is not None
    still.store.delete(outbox_key(INBOX_PREFIX + "mistral/a.jsonl", outbox.RECEIPT))
    still.store.put(outbox_task_key(ended.batch_id), b"\0\0")
    still.janitor.tick()
    assert still.document("mistral/a.jsonl.receipt.json")["batch_id"] == ended.batch_id
    for _ in range(4):
        still.clock.sleep(12 * 3600.0)
        still.janitor.tick()
    assert still.batches() == []


def test_the_outbox_has_the_same_bytes_when_it_is_written_twice(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a"), b"rubbish\n")
    world.janitor.tick()
    ended = world.run(world.only())
    first = {name: world.out(name) for name in world.outbox()}
    world.store.delete(outbox_task_key(ended.batch_id))
    assert outbox.publish(world.ledger, ended, runner="again")
    assert {name: world.out(name) for name in world.outbox()} == first
    assert len(first) == 5
    assert json.loads(world.out("mistral/a.jsonl.reasons.jsonl"))["line"] == 2


def test_progress_is_told_at_most_every_fifteen_seconds_and_never_goes_back(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", *(native(f"r{n}") for n in range(3)))
    still.clock.sleep(10.0)
    still.janitor.tick()
    batch = still.only()
    path = "mistral/a.jsonl.status.json"

    def counts_told() -> int:
        done: int = still.document(path)["counts"]["succeeded"]
        return done

    outbox.report(still.ledger, batch, Counts(succeeded=1), Usage())
    still.clock.sleep(1.0)
    outbox.report(still.ledger, batch, Counts(succeeded=1), Usage())
    assert counts_told() == 0
    still.clock.sleep(outbox.STATUS_S)
    outbox.report(still.ledger, batch, Counts(succeeded=2), Usage())
    assert counts_told() == 2
    still.clock.sleep(outbox.STATUS_S)
    outbox.report(still.ledger, batch, Counts(succeeded=1), Usage())
    assert counts_told() == 2


def test_results_come_as_parquet_too_when_that_is_asked_for(world: World) -> None:
    world.store.put("inbox/mistral/a.batch.toml", b'results = "parquet"')
    world.drop("mistral/a.jsonl", *(native(f"r{n}", f"text {n}") for n in range(40)), b"rubbish\n")
    world.janitor.tick()
    ended = world.run(world.only())
    world.janitor.tick()
    data = world.out("mistral/a.jsonl.results.parquet")
    assert data is not None
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    lines = [json.loads(line) for line in (world.out("mistral/a.jsonl.results.jsonl") or b"").splitlines()]
    assert [row["custom_id"] for row in rows] == [line["custom_id"] for line in lines]
    assert [row["status"] for row in rows] == ["succeeded"] * 40 + ["errored"]
    assert rows[7]["text"] == lines[7]["message"]["content"][0]["text"]
    receipt = world.document("mistral/a.jsonl.receipt.json")
    path = "outbox/mistral/a.jsonl.results.parquet"
    digest = hashlib.sha256(data).hexdigest()
    assert receipt["results_parquet"] == {"path": path, "bytes": len(data), "sha256": digest, "lines": 41}
    world.store.delete(outbox_task_key(ended.batch_id))
    assert outbox.publish(world.ledger, ended, runner="again")
    assert world.out("mistral/a.jsonl.results.parquet") == data
    world.store.delete("inbox/mistral/a.batch.toml")
    world.drop("mistral/a.jsonl", native("new"))
    world.janitor.tick()
    world.run(world.batches()[-1])
    assert world.out("mistral/a.jsonl.results.parquet") is None


def test_a_receipt_names_the_pools_their_models_and_what_ran_them(world: World) -> None:
    told = HeartbeatRecord(
        pool="mistral",
        runner_id="r",
        model="org/m",
        engine="vllm",
        engine_version="9.9",
        state="idle",
        started_at=1.0,
        commits={"org/m": "a1" * 20},
    )
    write_heartbeat(world.ledger, told)
    world.drop("mistral/a.jsonl", native("a"), b"rubbish\n")
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    receipt = world.document("mistral/a.jsonl.receipt.json")
    told_there = {"engines": ["vllm 9.9"], "commits": ["org/m@" + "a1" * 20]}
    assert receipt["pools"] == {"mistral": {"model": "org/m", "requests": 1, **told_there}}
    assert receipt["batchfile_version"] == __version__


class GpuEcho:
    """The echo engine, on two GPUs by its own account, where a step takes ten seconds."""

    def __init__(self, clock: ManualClock) -> None:
        self._inner = engine_factory("echo", model="echo")()
        self._clock = clock
        self.info = replace(self._inner.info, num_gpus=2)

    def step(self) -> list[Finished]:
        self._clock.sleep(10.0)
        return self._inner.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_receipt_counts_the_seconds_of_the_gpus_that_worked_for_its_file_alone(still: World) -> None:
    assert still.clock is not None
    clock = still.clock
    for name in "ab":
        still.drop(f"mistral/{name}.jsonl", *(native(f"{name}{n}") for n in range(40)))
    clock.sleep(10.0)
    still.janitor.tick()
    options = RunnerOptions(runner_id="r", pool="mistral")
    engines: list[GpuEcho] = []

    def build() -> GpuEcho:
        engines.append(GpuEcho(clock))
        return engines[-1]

    run_alone(Runner(still.ledger, build, options), lambda: all(batch.state == "ended" for batch in still.batches()))
    still.janitor.tick()
    told = [still.document(f"mistral/{name}.jsonl.receipt.json")["gpu_seconds"] for name in "ab"]
    assert told[0] == pytest.approx(told[1], rel=0.6)
    assert sum(told) == pytest.approx(2 * 10.0 * engines[0].stats().num_steps, rel=0.01)


def test_without_a_gpu_a_receipt_says_that_none_is_known(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    still.run(still.only())
    assert still.document("mistral/a.jsonl.receipt.json")["gpu_seconds"] is None
