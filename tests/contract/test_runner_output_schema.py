"""The runner loop where answers must fit a schema: what is tried again, how often, and among whom."""

import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Finished, Prepared
from batchfile.errors import InvalidRequest
from batchfile.testing import EchoEngine, EchoFaults, FaultyEchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Choice, Completion, Defaults, Failure, Request, RoutingTable, Usage
from tests.helpers.engine import EchoPrepared
from tests.helpers.ledger import batches, input_key
from tests.helpers.plan import plan_input
from tests.helpers.store import Clock, SystemClock

BATCH = "b"
LOCAL = RoutingTable(everything="local")
SCHEMA = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}
GOOD = '{"subject": "hello"}'


def answers(
    texts: list[str], engine: Callable[[], EchoEngine], *, schema: dict[str, Any] | None = SCHEMA, **params: object
) -> tuple[Runner, list[dict[str, Any]]]:
    """Run a batch of these texts to its end; its runner and its result lines."""
    clock = ManualClock()
    ledger = ledger_of(texts, clock, schema=schema, **params)
    runner = Runner(ledger, engine, RunnerOptions(runner_id="r", pool="local", only=BATCH, is_janitor=False))
    ended = run_alone(runner)
    assert ended is not None
    assert ended.results is not None
    return runner, [json.loads(row) for row in b"".join(ledger.store.stream(ended.results.key)).splitlines()]


def ledger_of(
    texts: list[str], clock: Clock | None = None, *, schema: dict[str, Any] | None = SCHEMA, **params: object
) -> Ledger:
    """With an open batch of these texts."""
    clock = clock or SystemClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(3))
    rows = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": text}], "max_tokens": 9, **params}}
        for n, text in enumerate(texts)
    ]
    ledger.store.put(input_key(BATCH, "n"), "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, BATCH, input_key(BATCH, "n"), routing=LOCAL)
    defaults = Defaults(output_schema=schema)
    batches.create(ledger, batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=defaults), planned)
    return ledger


class Recorder(EchoEngine):
    """Remembers what it was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.added: list[EchoPrepared] = []
        self.keys: dict[int, EchoPrepared] = {}

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        self.added.append(prepared)
        self.keys[key] = prepared
        super().add(key, prepared)


def test_answers_that_fit_pass_and_others_are_errored_after_three_attempts() -> None:
    engine = Recorder(num_slots=4)
    texts = [GOOD, "no json", '{"subject": 3}', GOOD] * 20
    runner, rows = answers(texts, lambda: engine)
    for text, row in zip(texts, rows, strict=True):
        if text == GOOD:
            assert row["message"]["content"][0]["text"] == GOOD
        else:
            assert row["error"] == {"type": "model_error", "message": "Output validation failed"}
    assert len(engine.added) == 40 + 3 * 40
    assert (runner.runner_stats.succeeded, runner.runner_stats.failed) == (40, 40)


@pytest.mark.parametrize(("schema_mismatches", "is_fit"), [(0, True), (1, True), (2, True), (3, False)])
def test_the_third_attempt_is_the_last(schema_mismatches: int, is_fit: bool) -> None:
    _, rows = answers(
        ["hello"] * 40,
        lambda: FaultyEchoEngine(num_slots=4, guided=GOOD, faults=EchoFaults(schema_mismatches=schema_mismatches)),
    )
    assert {row["status"] for row in rows} == {"succeeded" if is_fit else "errored"}


def test_a_result_shows_the_usage_of_its_last_attempt_and_the_tally_what_was_spent() -> None:
    runner, rows = answers(
        ["one two three"], lambda: FaultyEchoEngine(guided=GOOD, faults=EchoFaults(schema_mismatches=2))
    )
    assert rows[0]["usage"] == {"input_tokens": 3, "output_tokens": 3, "cached_tokens": 0}
    assert runner.runner_stats.output_tokens == 9


def test_a_set_seed_is_another_one_in_each_attempt() -> None:
    engine = Recorder()
    answers(["no json"], lambda: engine, seed=7)
    assert [prepared.request.sampling.seed for prepared in engine.added] == [7, 8, 9]


def test_without_a_schema_nothing_is_checked_or_guided() -> None:
    engine = Recorder(guided=GOOD)
    _, rows = answers(["no json"], lambda: engine, schema=None)
    assert rows[0]["message"]["content"][0]["text"] == "no json"
    assert engine.added[0].request.sampling.json_schema is None


class Unwilling(Recorder):
    """Refuses everything."""

    def step(self) -> list[Finished]:
        refused = Completion(choices=(Choice("I cannot.", "refusal"),), usage=Usage(input_tokens=3, output_tokens=2))
        return [Finished(one.key, refused) for one in super().step()]


def test_a_refusal_is_no_mismatch_it_fails_at_once_and_says_why() -> None:
    engine = Unwilling()
    runner, rows = answers(["one two three"], lambda: engine)
    assert rows[0]["error"] == {"type": "refusal", "message": "The model refused to answer: I cannot."}
    assert (len(engine.added), runner.runner_stats.failed, runner.runner_stats.output_tokens) == (1, 1, 2)
    _, rows = answers(["one two three"], Unwilling, schema=None)
    assert (rows[0]["status"], rows[0]["stop_reason"]) == ("succeeded", "refusal")


REFUSED = "this grammar has features that are not supported"


class RefusesAtOnce(Recorder):
    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        if prepared.request.sampling.json_schema is not None:
            raise InvalidRequest(REFUSED)
        super().add(key, prepared)


class RefusesLater(Recorder):
    """As an HTTP endpoint does: with its answer."""

    def step(self) -> list[Finished]:
        guided = {key for key, prepared in self.keys.items() if prepared.request.sampling.json_schema is not None}
        refused = Failure(type="invalid_request_error", message=REFUSED)
        return [Finished(one.key, refused if one.key in guided else one.outcome) for one in super().step()]


class RefusesAhead(Recorder):
    """As vLLM does with a schema that costs too much to compile."""

    def prepare(self, request: Request) -> EchoPrepared:
        if request.sampling.json_schema is not None:
            raise InvalidRequest(REFUSED)
        return super().prepare(request)


@pytest.mark.parametrize("kind", [RefusesAhead, RefusesAtOnce, RefusesLater])
def test_an_engine_that_refuses_the_schema_answers_without_it_and_is_checked(kind: type[Recorder]) -> None:
    engine = kind(num_slots=4)
    schema = SCHEMA | {"title": f"a schema of this test alone: {kind.__name__}"}
    _, rows = answers([GOOD, "no json"] * 100, lambda: engine, schema=schema)
    assert [row["status"] for row in rows] == ["succeeded", "errored"] * 100
    guided = [prepared for prepared in engine.added if prepared.request.sampling.json_schema is not None]
    assert len(guided) < 100, "after the first answer without it, what comes in is not guided any more"


def test_a_request_that_is_refused_for_itself_is_errored_with_what_the_engine_said() -> None:
    class Choosy(Recorder):
        def add(self, key: int, prepared: Prepared) -> None:
            assert isinstance(prepared, EchoPrepared)
            if "BAD" in prepared.request.messages[-1].content:
                raise InvalidRequest("too long")
            super().add(key, prepared)

    engine = Choosy(guided=GOOD)
    _, rows = answers(["BAD", "good"] * 20, lambda: engine, schema=SCHEMA | {"title": "of this test alone"})
    assert [row["error"] and row["error"]["message"] for row in rows] == ["too long", None] * 20
    assert all(prepared.request.sampling.json_schema is not None for prepared in engine.added)


def test_the_engine_is_not_drained_for_another_attempt() -> None:
    """With 4 slots and enough to do, a step finds the slots full although every request runs three times."""
    clock = ManualClock()
    engine = EchoEngine(num_slots=4, seconds_per_token=1.0, clock=clock)
    answers(["no json at all"] * 100, lambda: engine)
    stats = engine.stats()
    assert stats.num_full_steps >= 0.95 * stats.num_steps


def test_a_poison_line_is_found_among_others_that_are_tried_again() -> None:
    texts = ["POISON" if n == 11 else "no json" if n % 2 else GOOD for n in range(40)]
    _, rows = answers(texts, lambda: FaultyEchoEngine(num_slots=16, faults=EchoFaults(poison="POISON")))
    errors = [row["error"] and row["error"]["type"] for row in rows]
    assert errors == ["engine_crash" if n == 11 else "model_error" if n % 2 else None for n in range(40)]


def test_another_attempt_is_prepared_on_no_thread_that_turns_the_engine() -> None:
    """Preparing a long prompt takes long: the engine must not wait for it."""
    prepared_by: set[int] = set()

    class Noting(FaultyEchoEngine):
        def prepare(self, request: Request) -> EchoPrepared:
            prepared_by.add(threading.get_ident())
            return super().prepare(request)

    ledger = ledger_of(["hello"] * 40, seed=7)
    options = RunnerOptions(runner_id="r", pool="local", only=BATCH, is_janitor=False)
    runner = Runner(ledger, lambda: Noting(num_slots=4, guided=GOOD, faults=EchoFaults(schema_mismatches=2)), options)
    ended = runner.run()
    assert ended is not None
    assert ended.counts.succeeded == 40
    assert threading.get_ident() not in prepared_by
