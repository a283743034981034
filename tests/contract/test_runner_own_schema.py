"""The runner loop where requests bring schemas of their own: every answer is checked, and none holds up others."""

import json
import random
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Engine
from batchfile.testing import EchoEngine, EchoFaults, FaultyEchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Choice, Completion, Defaults, Message, Request, RoutingTable, Sampling, Usage
from tests.contract import chat_server
from tests.helpers.endpoint import HttpEngine, HttpOptions
from tests.helpers.ledger import batches, input_key
from tests.helpers.lines import CheckProcess, Verdict, openai_chat
from tests.helpers.lines import check as check_module
from tests.helpers.plan import plan_input
from tests.helpers.runner import Demand, SharedState, UncheckedAnswer, check_next, output_schema
from tests.helpers.runner import runner as runner_module
from tests.helpers.store import SystemClock

BATCH = "b"
LOCAL = RoutingTable(everything="local")
# vLLM's compiler leaves out the look-ahead, as it leaves out `uniqueItems` in other versions.
AHEAD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!bad).*$"}}, "required": ["a"]}
SIMPLE = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
GOOD, BAD = '{"a":"fine"}', '{"a":"bad"}'


def bomb(num: int = 40) -> dict[str, Any]:
    """To check one number by it takes 2^num steps."""
    twice = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(num)}
    return {"$defs": twice | {f"d{num}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def params(text: str, schema: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    form = {} if schema is None else {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    return {"params": {"messages": [{"role": "user", "content": text}], "max_tokens": 50, **form, **more}}


def body(text: str, schema: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """The same in OpenAI's format."""
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}} if schema else None
    turns = [{"role": "user", "content": text}]
    return {
        "method": "POST",
        "url": openai_chat.URL,
        "body": {"model": "m", "messages": turns, "response_format": asked, "max_tokens": 50, **more},
    }


def ledger_of(rows: list[dict[str, Any]], *, is_manual: bool = False, **defaults: Any) -> Ledger:
    clock = ManualClock() if is_manual else SystemClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(3))
    lines = [json.dumps({"custom_id": f"r{n}"} | row) for n, row in enumerate(rows)]
    ledger.store.put(input_key(BATCH, "n"), "\n".join(lines).encode())
    planned = plan_input(ledger, BATCH, input_key(BATCH, "n"), routing=LOCAL)
    draft = batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=Defaults(**defaults))
    batches.create(ledger, draft, planned)
    return ledger


def runner_of(ledger: Ledger, engine: Callable[[], Engine]) -> Runner:
    return Runner(ledger, engine, RunnerOptions(runner_id="r", pool="local", only=BATCH, is_janitor=False))


def answers(
    rows: list[dict[str, Any]], engine: Callable[[], Engine] = EchoEngine, *, is_alone: bool = False, **defaults: Any
) -> list[dict[str, Any]]:
    """The result lines. `is_alone`: without threads, on virtual time."""
    ledger = ledger_of(rows, is_manual=is_alone, **defaults)
    runner = runner_of(ledger, engine)
    ended = run_alone(runner) if is_alone else runner.run()
    assert ended is not None
    assert ended.results is not None
    return [json.loads(row) for row in b"".join(ledger.store.stream(ended.results.key)).splitlines()]


def statuses(rows: list[dict[str, Any]]) -> list[str]:
    return [row["status"] for row in rows]


@pytest.mark.parametrize("form", [params, body])
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_pattern_that_no_guide_enforces_is_checked(form: Callable[..., dict[str, Any]], is_alone: bool) -> None:
    rows = answers([form(GOOD, AHEAD), form(BAD, AHEAD), form(BAD, None)] * 5, is_alone=is_alone)
    assert statuses(rows) == ["succeeded", "errored", "succeeded"] * 5
    assert rows[1]["error"]["type"] == "model_error"
    assert rows[1]["error"]["message"] == (
        "Output validation failed: answer.a does not fit properties/a/pattern (the request's JSON schema, 3 attempts). "
        "Describe the format in the prompt, simplify the schema, or name another model."
    )


def test_a_set_seed_is_another_one_in_each_attempt() -> None:
    seeds: list[int | None] = []

    class Recorder(EchoEngine):
        def add(self, key: int, prepared: Any) -> None:
            seeds.append(prepared.request.sampling.seed)
            super().add(key, prepared)

    assert statuses(answers([params("no json", SIMPLE, seed=3)], Recorder)) == ["errored"]
    assert seeds == [3, 4, 5]


def words(row: dict[str, Any]) -> str:
    error = row["error"]
    return "" if error is None else f"{error['type']}: {error['message']}"


def test_a_schema_that_takes_an_age_to_check_fails_alone_and_the_others_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_module, "TIME_S_MAX", 0.3)
    asked = [("7", bomb())] * 6 + [(GOOD, SIMPLE), (GOOD, AHEAD), (BAD, AHEAD), ("text", None)] * 10
    rows = answers([params(*one) for one in asked])
    assert statuses(rows) == ["errored"] * 6 + ["succeeded", "succeeded", "errored", "succeeded"] * 10
    for row in rows[:6]:
        assert words(row).startswith(
            "invalid_request_error: Checking the answer against the request's JSON schema takes more than 0.3 s. Make"
        )


def test_the_engine_goes_on_while_an_answer_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked is held until all others are done."""
    others_are_done = threading.Event()

    class Waiting(CheckProcess):
        def check(self, schema: bytes, text: str, owner: str = "") -> Verdict:
            assert others_are_done.wait(60)
            return super().check(schema, text, owner)

    monkeypatch.setattr(runner_module, "CheckProcess", Waiting)
    ledger = ledger_of([params(GOOD, AHEAD)] * 3 + [params(GOOD, SIMPLE)] * 400)
    runner = runner_of(ledger, lambda: EchoEngine(num_slots=2))
    thread = threading.Thread(target=runner.run)
    thread.start()
    deadline = time.monotonic() + 60
    while runner.runner_stats.succeeded < 400 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert runner.runner_stats.succeeded == 400
    assert not runner.is_idle
    runner.stop()
    assert thread.is_alive(), "a runner that stops finishes what is being checked"
    others_are_done.set()
    thread.join(60)
    assert runner.runner_stats.succeeded == 403


def test_batches_take_turns_at_being_checked() -> None:
    order: list[str] = []

    class Noting(CheckProcess):
        def check(self, schema: bytes, text: str, owner: str = "") -> Verdict:
            order.append(text)
            return Verdict("fits")

    clock = ManualClock()
    state = SharedState(Ledger(store=MemoryStore(clock), clock=clock), RunnerOptions(runner_id="r", pool="p"))
    for name in ("a", "a", "a", "b", "c", "b"):
        state.to_check.add(waiting_answer(name))
    while check_next(state, Noting()):
        pass
    assert order == ["a", "b", "c", "a", "b", "a"]
    assert [answer.batch_id for answer in state.checked] == order


def waiting_answer(batch_id: str) -> UncheckedAnswer:
    item: Any = SimpleNamespace(shard=SimpleNamespace(is_dropped=False, batch_id=batch_id))
    completion = Completion(choices=(Choice(batch_id, "end_turn"),), usage=Usage())
    request = Request(custom_id="r", messages=(Message("user", "x"),), sampling=Sampling(max_tokens=9))
    wanted = [Demand(b"{}", (batch_id,), True)]
    return UncheckedAnswer(
        item=item, request=request, completion=completion, demands=wanted, gpu_s=0.0, was_alone=False
    )


@pytest.mark.parametrize("schema", [SIMPLE, AHEAD])
@pytest.mark.parametrize(("schema_mismatches", "is_fit"), [(0, True), (2, True), (3, False)])
def test_what_does_not_fit_is_tried_three_times(schema: dict[str, Any], schema_mismatches: int, is_fit: bool) -> None:
    engine = FaultyEchoEngine(num_slots=4, guided=GOOD, faults=EchoFaults(schema_mismatches=schema_mismatches))
    runner_answers = answers([params("no json", schema, seed=3)] * 20, lambda: engine)
    assert set(statuses(runner_answers)) == {"succeeded" if is_fit else "errored"}


def test_each_is_told_what_was_wrong() -> None:
    rows = answers(
        [
            params("not json", SIMPLE),
            params("[1]", {}),
            params('{"a":3}', SIMPLE),
            params('{"a": "one two three"}', SIMPLE, max_tokens=2),
            params(GOOD, {"type": "nonsense"}),
            params(GOOD, {"$ref": "https://example.com/x"}),
        ]
    )
    assert [words(row).partition(" (")[0] for row in rows] == [
        "model_error: Output validation failed: the answer is not JSON",
        "model_error: Output validation failed: answer does not fit type",
        "model_error: Output validation failed: answer.a does not fit properties/a/type",
        "model_error: Output validation failed: the answer ends at max_tokens. Raise max_tokens.",
        words(rows[4]),
        words(rows[5]),
    ]
    for row in rows[4:]:
        assert words(row).startswith("invalid_request_error: The answer cannot be checked against the request's JSON")
        assert words(row).endswith("Fix the schema.")


def test_an_answer_fits_its_own_schema_and_its_stages() -> None:
    stage = {"properties": {"a": {"maxLength": 5}}}
    rows = answers([params(GOOD, SIMPLE), params('{"a":"longer"}', SIMPLE), params("{}", SIMPLE)], output_schema=stage)
    assert [words(row).partition(" (")[0] for row in rows] == [
        "",
        "model_error: Output validation failed",
        "model_error: Output validation failed: answer does not fit required",
    ]


def test_a_stages_schema_is_checked_where_it_may_take_long_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "TIME_S_MAX", 0.3)
    rows = answers([params(GOOD, None), params(BAD, None)], output_schema=AHEAD)
    assert [words(row) for row in rows] == ["", "model_error: Output validation failed"]
    rows = answers([params("7", None)] * 4, output_schema=bomb())
    assert {words(row).partition(" Make")[0] for row in rows} == {
        "model_error: Checking the answer against its stage's JSON schema takes more than 0.3 s."
    }


@pytest.mark.parametrize("seed", [{}, {"seed": 7}])
def test_one_that_runs_alone_and_does_not_fit_runs_alone_again(seed: dict[str, int]) -> None:
    """With a seed, another attempt is another request: it is prepared on the loop's thread."""
    asked = [params("POISON" if n == 5 else BAD if n % 2 else GOOD, AHEAD, **seed) for n in range(24)]
    rows = answers(asked, lambda: FaultyEchoEngine(num_slots=16, faults=EchoFaults(poison="POISON")))
    found = [row["error"] and row["error"]["type"] for row in rows]
    assert found == ["engine_crash" if n == 5 else "model_error" if n % 2 else None for n in range(24)]


@pytest.mark.parametrize("form", [params, body])
def test_an_http_pools_answers_are_checked(form: Callable[..., dict[str, Any]]) -> None:
    with chat_server.running() as server:
        options = HttpOptions(base_url=server.url, model="served", concurrency=4)
        rows = answers([form(text, AHEAD) for text in (GOOD, BAD)] * 3, lambda: HttpEngine(options))
    assert statuses(rows) == ["succeeded", "errored"] * 3
    assert len(server.seen) == 3 * (1 + 3)


def test_requests_without_a_schema_have_nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def demands(*args: object) -> Any:
        raise AssertionError("it looked")

    monkeypatch.setattr(output_schema, "demands", demands)
    assert statuses(answers([params("text", None)] * 9)) == ["succeeded"] * 9
