"""How often a request line is parsed as JSON on its way from the body of a create to the engine.

Its outside (custom_id, metadata, method, url) and what it carries (params or body) are counted apart. A decoder that
skips over a value builds nothing of it. A range that two pools share is also read by the runner of the other pool.
Detecting what a body is parses its first KIND_BYTES once more, whatever its size: the lines that count are behind them.
"""

import asyncio
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults
from tests.helpers.inbox import source_of_file as source
from tests.helpers.inbox import stored_files
from tests.helpers.ledger import batches
from tests.helpers.lines import KIND_BYTES, parse
from tests.helpers.plan import CreateOptions, pending
from tests.helpers.service import Contract, SpoolLimits, create_batch, spool
from tests.helpers.settings import PoolSettings, load_settings

CHAT = "/v1/chat/completions"
POOLS = {"mistral": PoolSettings(model="m"), "llama": PoolSettings(model="l")}
SETTINGS = load_settings().model_copy(update={"pools": POOLS, "stages": {"email": "mistral"}})
PARSES_MAX = 2
RUN_S = 60.0  # of the manual clock: more than it takes


class Counts:
    """How often which part of which request was parsed, by who did: the create with its plan, or a pool's runner."""

    def __init__(self) -> None:
        self.who = "plan"
        self.found: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)

    def note(self, data: Any) -> None:
        text = data if isinstance(data, str) else bytes(data).decode()
        for number in range(10):
            if f"ask {number}" in text and '"messages"' in text:  # not its result
                part = "outside" if f"id_{number}" in text else "carried"
                self.found[self.who][part, f"id_{number}"] += 1

    def check(self) -> None:
        for pool in POOLS:
            counts = self.found["plan"] + self.found[pool]
            assert {name for _, name in counts} == {f"id_{n}" for n in range(10)}
            assert max(counts.values()) <= PARSES_MAX, counts
        assert any(self.found[pool]["carried", "id_0"] for pool in POOLS), "the engine's request was built"


class Counting:
    """A decoder, or the `json` module, that notes what it is given."""

    def __init__(self, real: Any, note: Callable[[Any], None]) -> None:
        self._real = real
        self._note = note

    def decode(self, data: Any, **more: Any) -> Any:
        self._note(data)
        return self._real.decode(data, **more)

    def loads(self, data: Any, **more: Any) -> Any:
        self._note(data)
        return self._real.loads(data, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found = Counts()
    note = found.note

    for name, module in list(sys.modules.items()):
        # Those of split_document and json_scan only find where values end: all of them are Raw.
        if not name.startswith(("batchfile.", "api.")) or name.endswith((".split_document", ".json_scan")):
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, msgspec.json.Decoder) or value is json:
                monkeypatch.setattr(module, attribute, Counting(value, note))
    decode = msgspec.json.decode
    monkeypatch.setattr(msgspec.json, "decode", lambda data, **more: (note(data), decode(data, **more))[1])
    read_carried = parse.read_carried
    monkeypatch.setattr(parse, "read_carried", lambda *given: (note(given[0].carried), read_carried(*given))[1])
    return found


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(store=MemoryStore(self.clock), clock=self.clock, rng=random.Random(1))

    def post(self, body: bytes, content_type: str, contract: Contract, **asked: Any) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        async def go() -> str:
            limits = SpoolLimits(bytes_max=10**6, wait_s=60)
            async with spool(chunks(), content_encoding=None, content_length=None, limits=limits) as spooled:
                options = CreateOptions(**asked)
                return create_batch(
                    self.ledger, SETTINGS, spooled, options, content_type=content_type, contract=contract
                ).batch_id

        return asyncio.run(go())

    def post_file(self, body: bytes) -> str:
        file = stored_files.store_file(
            self.ledger, "default", [body], filename="f", purpose="batch", kept_s=86400.0, bytes_max=10**6
        )
        made_of = source(self.ledger, file, endpoint=CHAT, requests_max=100)
        draft = CreateOptions().draft("batch_f", self.clock.now(), SETTINGS.routing(), Defaults())
        batch = pending.create(self.ledger, draft, made_of)
        assert pending.plan(self.ledger, batch.batch_id, runner="r") is not None
        return batch.batch_id

    def run(self, batch_id: str, counts: Counts) -> None:
        batch = batches.read_batch(self.ledger, batch_id)
        assert batch is not None
        for pool in batches.read_plan(self.ledger, batch).pools:
            counts.who = pool
            options = RunnerOptions(runner_id=pool, pool=pool, only=batch_id)
            began_at = self.clock.now()
            run_alone(Runner(self.ledger, EchoEngine, options), lambda at=began_at: self.clock.now() > at + RUN_S)


def requests(**asked: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Ten of them, behind one as long as what is read to detect the kind. `asked`: more of the params of each."""
    contents = {"long": "x" * KIND_BYTES} | {f"id_{n}": f"ask {n}" for n in range(10)}
    return [
        {
            "custom_id": custom_id,
            "params": {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 4,
                **{key: of(n) for key, of in asked.items()},
            },
        }
        for n, (custom_id, content) in enumerate(contents.items())
    ]


def lines(requests: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def in_turn(number: int) -> str:
    return "ml"[number % 2]


LINES, JSON = "application/x-ndjson", "application/json"
BY_MODEL = requests(model=in_turn)
BY_HINT = [request | {"metadata": {"model_hint": in_turn(n)}} for n, request in enumerate(requests())]
BODIES: dict[str, tuple[bytes, str, Contract, dict[str, Any]]] = {
    "a stage, as lines": (lines(requests()), LINES, "native", {"stage": "email"}),
    "a stage, as a document": (json.dumps({"stage": "email", "requests": requests()}).encode(), JSON, "stage", {}),
    "a model each": (lines(BY_MODEL), LINES, "native", {}),
    "a hint each": (lines(BY_HINT), LINES, "native", {"stage": "email"}),
    "one pool": (lines(requests()), LINES, "native", {"pool": "llama", "is_strict": False}),
    "Anthropic's": (
        json.dumps({"requests": BY_MODEL}).encode(),
        JSON,
        "anthropic",
        {},
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_no_part_of_a_posted_line_is_parsed_more_than_twice(name: str, counts: Counts) -> None:
    world = World()
    body, content_type, contract, asked = BODIES[name]
    world.run(world.post(body, content_type, contract, **asked), counts)
    counts.check()


def test_no_part_of_a_stored_line_is_parsed_more_than_twice(counts: Counts) -> None:
    world = World()
    body = lines([{"custom_id": r["custom_id"], "method": "POST", "url": CHAT, "body": r["params"]} for r in BY_MODEL])
    world.run(world.post_file(body), counts)
    counts.check()
