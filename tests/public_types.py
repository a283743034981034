"""What the type checker sees of the public API: it is checked by mypy, strictly, and run by nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, assert_type

import pydantic

import batchfile
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone


def local() -> None:
    receipt = batchfile.run("in.jsonl", "out.jsonl", model="m", temperature=0.2, limit=10, task="embed")
    assert_type(receipt, batchfile.Receipt)
    assert_type(receipt.counts, batchfile.Counts)
    assert_type(receipt.usage, batchfile.Usage)
    assert_type(receipt.is_all_succeeded, bool)
    assert_type(batchfile.run(["in.jsonl", Path("more")], "out/", engine="echo"), list[batchfile.Receipt])
    assert_type(batchfile.run(Path().glob("*.jsonl"), Path("out")), list[batchfile.Receipt])
    batchfile.run("in.jsonl", "out.jsonl", engine="ech")  # type: ignore[call-overload]
    batchfile.run("in.jsonl", "out.jsonl", "model")  # type: ignore[call-overload]


class Table:
    """As the checker sees a DataFrame."""

    shape = (2, 1)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class Stream:
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class Review(pydantic.BaseModel):
    label: str


def table() -> None:
    assert_type(batchfile.map(Table(), "{{ review }}", choices=["good", "bad"], into="label"), Table)
    assert_type(batchfile.map([{"review": "x"}], schema=Review), list[dict[str, Any]])
    assert_type(batchfile.map(Path("in.csv"), schema={"type": "object"}), list[dict[str, Any]])
    assert_type(batchfile.map(Stream()), Any)
    batchfile.map({"review": ["x"]})  # type: ignore[call-overload]
    batchfile.map(Table(), "x", engine="ech")  # type: ignore[call-overload]
    batchfile.map(Table(), "x", modell="m")  # type: ignore[call-overload]


def remote() -> None:
    with batchfile.connect("https://batch.example", api_key="key") as client:
        assert_type(client, batchfile.Connection)
        batch = client.submit("in.jsonl", stage="email", metadata={"team": "blue"})
        assert_type(batch, batchfile.Batch)
        client.submit("in.csv", prompt="{{ review }}", choices="good,bad", limit=10)
        client.submit("in.csv", promt="{{ review }}")  # type: ignore[call-arg]
        assert_type(client.batches(), Iterator[batchfile.Batch])
        status = batch.wait(timeout_s=60)
        assert_type(status, batchfile.BatchStatus)
        assert_type(status.reason, Literal["completed", "canceled", "expired", "failed", "input_changed"] | None)
        for result in batch.results():
            assert_type(result, batchfile.Result)
            assert_type(result.text, str | None)
            assert_type(result.status, Literal["succeeded", "errored", "canceled", "expired"])
            if result.error is not None:
                assert_type(result.error.code, str)
        assert_type(batch.tail(), Iterator[batchfile.Result])
        assert_type(batch.rerun_failed(), batchfile.Batch)
        batch.save("out.jsonl", format="csv")  # type: ignore[arg-type]


def foundations() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    ledger = batchfile.Ledger(store=store, clock=clock)
    engine: batchfile.Engine = EchoEngine(clock=clock)
    runner = batchfile.Runner(ledger, lambda: engine, batchfile.RunnerOptions(runner_id="r", pool="mistral"))
    run_alone(runner)
    batchfile.connect(store)
    batchfile.connect(batchfile.open_store("./store"))
