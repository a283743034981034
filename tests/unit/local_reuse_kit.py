"""What the tests of reuse in local runs share: an output of which a run was killed after some of its requests."""

import json
from dataclasses import replace
from pathlib import Path

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.ledger import shards
from batchfile.ledger.cas import load
from batchfile.ledger.shards import Lease
from batchfile.testing import EchoEngine, run_alone
from batchfile.types import Choice, Completion, Usage
from tests.helpers.engine import EngineIdentity, engine_factory
from tests.helpers.ledger import BatchRecord, IdempotencyRecord, batches, ending, keys
from tests.helpers.lines import FinishedLine, encode_result
from tests.helpers.local import Opened, RunOptions, inspect, open_batch
from tests.helpers.store import DirectoryStore

ENGINE = engine_factory("echo", model="echo").identity()
assert ENGINE is not None
OTHER = EngineIdentity({**ENGINE.parts, "the chat template": "sha256:0"})
NUM = 40
KEPT = 20  # what the old batch had finished


def lines(*numbers: int) -> bytes:
    rows = ({"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"hi {n}"}]}} for n in numbers)
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class World:
    """An output in a folder of its own, of which a run was killed after `KEPT` of `NUM` requests."""

    def __init__(self, folder: Path, data: bytes = b"", name: str = "in.jsonl", **options: object) -> None:
        folder.mkdir(exist_ok=True)
        self.input = folder / name
        self.input.write_bytes(data or lines(*range(NUM)))
        self.ledger = Ledger(store=DirectoryStore(folder / "store", fsync=False))
        self.options = RunOptions(output=str(folder / "out.jsonl"), engine="echo", model="echo", **options)  # type: ignore[arg-type]
        self.old = self.open().batch
        self.finish_some(self.old, min(KEPT, self.old.total))

    def open(self, ledger: Ledger | None = None, engine: EngineIdentity | None = ENGINE, **options: object) -> Opened:
        chosen = replace(self.options, **options)  # type: ignore[arg-type]
        source = replace(inspect(str(self.input)), limit=chosen.limit)
        return open_batch(ledger or self.ledger, source, chosen, engine=engine)

    def finish_some(
        self, batch: BatchRecord, num: int, custom_id: str = "r%d", engine: EngineIdentity | None = ENGINE
    ) -> None:
        plan = batches.read_plan(self.ledger, batch)
        held = shards.claim(self.ledger, batch, plan, "local", 0, runner="killed")
        assert isinstance(held, Lease)
        outcome = Completion(choices=(Choice("kept", "end_turn"),), usage=Usage(input_tokens=2, output_tokens=1))
        done = [
            FinishedLine(n, "succeeded", encode_result(custom_id % n, outcome, "echo"), outcome.usage)
            for n in range(num)
        ]
        made_by = "" if engine is None else engine.fingerprint
        shards.checkpoint(self.ledger, held, done, has_dispatched=True, fingerprints=(made_by,))
        if held.record.state != "done":
            shards.release(self.ledger, held)

    def append(self, data: bytes) -> None:
        with self.input.open("ab") as file:
            file.write(data)

    def run(self, batch: BatchRecord) -> list[tuple[str | None, str]]:
        """The custom_id and the answer of each result, once all have one."""
        options = RunnerOptions(runner_id="r2", pool="local", only=batch.batch_id, is_janitor=False)
        ended = ending.finish(self.ledger, batch.batch_id, runner="r2")
        if ended is None:
            run_alone(Runner(self.ledger, lambda: EchoEngine(num_slots=8), options))
            ended = batches.read_batch(self.ledger, batch.batch_id)
        assert ended is not None
        assert ended.results is not None
        rows = [json.loads(row) for row in b"".join(self.ledger.store.stream(ended.results.key)).splitlines()]
        return [
            (row["custom_id"], row["message"]["content"][0]["text"] if row["message"] else row["error"]["type"])
            for row in rows
        ]

    @property
    def pointer(self) -> IdempotencyRecord:
        found = load(self.ledger, keys.idempotency_key("output", self.options.output or ""), IdempotencyRecord)
        assert found is not None
        return found.record

    def batch_ids(self) -> set[str]:
        return {keys.index_batch_id(entry.key) for entry in self.ledger.store.list(keys.INDEX_PREFIX)}


def wanted(*numbers: int, kept: int = KEPT) -> list[tuple[str | None, str]]:
    return [(f"r{n}", "kept" if n < kept else f"hi {n}") for n in numbers]
