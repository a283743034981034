"""The runner loop, driven turn by turn over a memory store: what it does to engines and shards."""

import json
import random
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Engine, Finished, Prepared
from batchfile.errors import EngineDead, StoreUnavailable
from batchfile.testing import EchoEngine, EchoFaults, FaultyEchoEngine, FaultyStore, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, Request, RoutingTable
from tests.helpers.engine import EchoPrepared
from tests.helpers.inbox import Janitor
from tests.helpers.ledger import Limits, batches, ending, input_key
from tests.helpers.plan import plan_input
from tests.helpers.store import MeteredStore, Store

BATCH = "b"
LOCAL = RoutingTable(everything="local")


def world(texts: list[str], *, store: Store | None = None, limits: Limits | None = None) -> Ledger:
    clock = ManualClock()
    kept = store or MemoryStore(clock)
    ledger = Ledger(store=kept, clock=clock, rng=random.Random(3), limits=limits or Limits())
    rows = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": text}], "max_tokens": 9}}
        for n, text in enumerate(texts)
    ]
    ledger.store.put(input_key(BATCH, "n"), "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, BATCH, input_key(BATCH, "n"), routing=LOCAL)
    batches.create(ledger, batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=Defaults()), planned)
    return ledger


def runner(ledger: Ledger, engine: type[Engine] | object, runner_id: str = "r1") -> Runner:
    options = RunnerOptions(runner_id=runner_id, pool="local", only=BATCH, is_janitor=False)
    return Runner(ledger, engine, options)  # type: ignore[arg-type]


def results(ledger: Ledger) -> list[dict[str, dict[str, str]]]:
    batch = batches.read_batch(ledger, BATCH)
    assert batch is not None
    assert batch.results is not None
    return [json.loads(row) for row in b"".join(ledger.store.stream(batch.results.key)).splitlines()]


@pytest.mark.parametrize("place", [0, 17, 79])
def test_a_line_that_kills_the_engine_is_errored_and_all_others_succeed(place: int) -> None:
    texts = [f"hello {n}" for n in range(80)]
    texts[place] = "POISON"
    ledger = world(texts)
    run = runner(ledger, lambda: FaultyEchoEngine(num_slots=16, faults=EchoFaults(poison="POISON")))
    run_alone(run)
    errors = {n: row["error"]["type"] for n, row in enumerate(results(ledger)) if row["error"]}
    assert errors == {place: "engine_crash"}
    assert run.runner_stats.num_engine_deaths >= 3


def test_tidying_that_fails_does_not_end_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(janitor: Janitor) -> None:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(Janitor, "tick", failing)
    ledger = world([f"hello {n}" for n in range(40)])
    run_alone(Runner(ledger, EchoEngine, RunnerOptions(runner_id="r1", pool="local", only=BATCH)))
    assert len(results(ledger)) == 40


def test_two_poison_lines_are_both_found() -> None:
    texts = [f"hello {n}" for n in range(40)]
    texts[3] = texts[30] = "POISON"
    ledger = world(texts)
    run_alone(runner(ledger, lambda: FaultyEchoEngine(num_slots=16, faults=EchoFaults(poison="POISON"))))
    assert [n for n, row in enumerate(results(ledger)) if row["error"]] == [3, 30]


def test_an_engine_that_dies_before_it_serves_anything_ends_the_run() -> None:
    class Stillborn(EchoEngine):
        def step(self) -> list[Finished]:
            raise EngineDead("no GPU")

    ledger = world([f"hello {n}" for n in range(40)])
    with pytest.raises(EngineDead, match="no GPU"):
        run_alone(runner(ledger, Stillborn))


def test_an_engine_that_dies_while_it_is_filled_loses_no_request() -> None:
    deaths = iter([True, True])

    class Fragile(EchoEngine):
        num_added = 0

        def add(self, key: int, prepared: Prepared) -> None:
            self.num_added += 1
            if self.num_added == 3 and next(deaths, False):
                raise EngineDead("died while it was filled")
            super().add(key, prepared)

    ledger = world([f"hello {n}" for n in range(50)])
    run_alone(runner(ledger, lambda: Fragile(num_slots=8)))
    assert [row["custom_id"] for row in results(ledger)] == [f"r{n}" for n in range(50)]
    assert not any(row["error"] for row in results(ledger))


def test_the_engine_never_runs_dry_between_shards() -> None:
    """With 16 slots and 200 requests in 7 shards, every step but those of the tail finds the slots full."""
    clock_engines: list[EchoEngine] = []

    ledger = world([f"hello {n} " + "x " * (n % 5) for n in range(200)])

    def build() -> EchoEngine:
        engine = EchoEngine(num_slots=16, seconds_per_token=0.1, clock=ledger.clock)
        clock_engines.append(engine)
        return engine

    seen: list[tuple[int, int]] = []
    run = runner(ledger, build)
    run_alone(run, until=lambda: seen.append((run.num_in_flight, run.runner_stats.succeeded)) or False)  # type: ignore[func-returns-value]
    num_before_the_tail = 200 - 2 * run.info.max_in_flight  # type: ignore[union-attr]
    while_fed = [in_flight for in_flight, done in seen if 0 < done < num_before_the_tail]
    assert while_fed
    assert min(while_fed) >= 16


def test_only_time_with_requests_in_flight_counts_as_busy() -> None:
    ledger = world([f"hello {n}" for n in range(100)])
    options = RunnerOptions(runner_id="r1", pool="local", is_janitor=False)
    run = Runner(ledger, lambda: EchoEngine(num_slots=8, seconds_per_token=0.1, clock=ledger.clock), options)

    later_at = ledger.clock.monotonic() + 60

    def one_more_after_a_minute() -> bool:
        if ledger.clock.monotonic() >= later_at and batches.read_batch(ledger, "later") is None:
            assert run.is_idle
            planned = plan_input(ledger, "later", input_key(BATCH, "n"), routing=LOCAL)
            batches.create(ledger, batches.Draft(batch_id="later", routing=LOCAL, defaults=Defaults()), planned)
        return run.runner_stats.succeeded == 200

    run_alone(run, until=one_more_after_a_minute)
    assert run.runner_stats.busy_s == pytest.approx(run.runner_stats.num_steps * 0.2, abs=1e-3)  # two tokens each


def test_a_stop_finishes_what_is_in_flight_and_gives_back_the_rest() -> None:
    ledger = world([f"hello {n}" for n in range(100)])
    first = runner(ledger, lambda: EchoEngine(num_slots=8, seconds_per_token=0.1, clock=ledger.clock))

    def stop_soon() -> bool:
        if first.runner_stats.succeeded >= 20:
            first.stop()
        return False

    run_alone(first, until=stop_soon)
    assert first.num_in_flight == 0
    states = {
        json.loads(ledger.store.get(entry.key).data)["state"]  # type: ignore[union-attr]
        for entry in ledger.store.list(f"batches/{BATCH}/shards/")
    }
    assert states <= {"open", "done"}
    second = runner(ledger, lambda: EchoEngine(num_slots=8), "r2")
    run_alone(second)
    assert first.runner_stats.succeeded + second.runner_stats.succeeded == 100
    assert len(results(ledger)) == 100


def test_an_engine_that_dies_while_the_runner_stops_is_not_built_again_and_blames_nobody() -> None:
    """As when one signal reaches them all: systemd ends a whole control group, `timeout` a whole process group."""
    ledger = world([f"hello {n}" for n in range(100)])
    built: list[EchoEngine] = []

    class Mortal(EchoEngine):
        def step(self) -> list[Finished]:
            if first.is_stopping:
                raise EngineDead("The engine's process has ended.")
            return super().step()

    def build() -> EchoEngine:
        built.append(Mortal(num_slots=8, seconds_per_token=0.1, clock=ledger.clock))
        return built[-1]

    first = runner(ledger, build)

    def stop_soon() -> bool:
        if first.runner_stats.succeeded >= 20:
            first.stop()
        return False

    run_alone(first, until=stop_soon)
    assert (len(built), first.num_in_flight, first.is_building) == (1, 0, False)
    assert first.runner_stats.num_steps == built[0].stats().num_steps
    second = runner(ledger, lambda: EchoEngine(num_slots=8), "r2")
    run_alone(second)
    assert (first.runner_stats.succeeded + second.runner_stats.succeeded, second.runner_stats.failed) == (100, 0)
    assert [row["status"] for row in results(ledger)] == ["succeeded"] * 100


def test_a_stop_that_comes_while_a_dead_engine_is_taken_apart_is_heard() -> None:
    ledger = world(["hello"])
    built: list[EchoEngine] = []

    class Mortal(EchoEngine):
        def step(self) -> list[Finished]:
            raise EngineDead("The engine's process has ended.")

        def close(self) -> None:
            first.stop()

    def build() -> EchoEngine:
        built.append(Mortal(num_slots=8, clock=ledger.clock))
        return built[-1]

    first = runner(ledger, build)
    run_alone(first)
    assert len(built) == 1


def test_requests_of_one_prefix_start_side_by_side_and_the_longest_first() -> None:
    started: list[str] = []

    class Recorder(EchoEngine):
        def prepare(self, request: Request) -> EchoPrepared:
            prepared = super().prepare(request)
            group = ord(request.messages[-1].content[0])
            return EchoPrepared(
                prefix=group,
                cost=len(request.messages[-1].content),
                request=prepared.request,
                completion=prepared.completion,
                work_s=0,
            )

        def add(self, key: int, prepared: Prepared) -> None:
            assert isinstance(prepared, EchoPrepared)
            started.append(prepared.completion.choices[0].text)
            super().add(key, prepared)

    ledger = world(["b", "a", "bbb", "aa"] * 40)
    run_alone(runner(ledger, lambda: Recorder(num_slots=4)))
    assert started[:16] == ["aa"] * 8 + ["a"] * 8 or started[0] in {"bbb", "aa"}
    assert sorted(started) == sorted(["b", "a", "bbb", "aa"] * 40)


def test_a_store_that_is_away_for_a_while_costs_time_and_nothing_else() -> None:
    clock, chance = ManualClock(), random.Random(11)
    inner = MemoryStore(clock)

    def sometimes(number: int, verb: str, key: str, phase: str) -> None:
        if chance.random() < 0.2:
            raise StoreUnavailable("503 slow down")

    ledger = world([f"hello {n}" for n in range(70)], store=inner)
    flaky = Ledger(
        store=FaultyStore(inner, on_call=sometimes), clock=ledger.clock, rng=ledger.rng, limits=Limits(checkpoint_s=0)
    )
    run = runner(flaky, lambda: EchoEngine(num_slots=4))
    run_alone(run)
    assert [row["custom_id"] for row in results(ledger)] == [f"r{n}" for n in range(70)]


def test_a_batch_that_is_cancelled_elsewhere_is_dropped_and_the_run_ends() -> None:
    ledger = world([f"hello {n}" for n in range(8)], limits=Limits(lease_ttl_s=10, checkpoint_s=1))
    first = runner(ledger, lambda: EchoEngine(num_slots=4, latency_s=6, clock=ledger.clock))
    is_cancelled = False

    def cancel_once() -> bool:
        nonlocal is_cancelled
        if first.num_in_flight and not is_cancelled:
            is_cancelled = True
            batches.end(ledger, BATCH, "canceled")
            ending.finish(ledger, BATCH, runner="someone")
        return False

    ended = run_alone(first, until=cancel_once)
    assert ended is not None
    assert ended.reason == "canceled"
    assert first.runner_stats.num_leases_lost == 0, "nobody has taken anything over"
    statuses = [str(row["status"]) for row in results(ledger)]
    assert "canceled" in statuses
    assert set(statuses) <= {"succeeded", "canceled"}


def test_waiting_for_another_pool_costs_no_read_of_every_record() -> None:
    """A runner with nothing left of a batch looks every few seconds whether the others are done."""
    clock = ManualClock()
    store = MeteredStore(MemoryStore(clock))
    ledger = Ledger(store=store, clock=clock, rng=random.Random(3))
    pools = RoutingTable(pools={"one": ("m",), "two": ("n",)})
    rows = [
        {
            "custom_id": f"r{n}",
            "params": {"messages": [{"role": "user", "content": "hello"}]},
            "metadata": {"model_hint": ("one", "two")[n % 2]},
        }
        for n in range(80)
    ]
    ledger.store.put(input_key(BATCH, "n"), "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, BATCH, input_key(BATCH, "n"), routing=pools, lines_per_range=2)
    batches.create(ledger, batches.Draft(batch_id=BATCH, routing=pools, defaults=Defaults()), planned)
    options = RunnerOptions(runner_id="r", pool="one", is_janitor=False)
    run = Runner(ledger, lambda: EchoEngine(num_slots=64), options)
    run_alone(run, until=lambda: run.runner_stats.succeeded == 40 and run.is_idle)
    waiting_since, before = clock.now(), sum(figure.num for figure in store.figures().values())
    run = Runner(ledger, lambda: EchoEngine(num_slots=64), options)
    run_alone(run, until=lambda: clock.now() - waiting_since >= 300)
    spent = sum(figure.num for figure in store.figures().values()) - before
    assert spent / 300 < 5, "requests a second"


class AdaptedEcho(EchoEngine):
    """The model of a request is its adapter."""

    loaded: ClassVar = ("sql", "polish")

    def __init__(self) -> None:
        super().__init__()
        self.info = replace(self.info, adapters=self.loaded)

    def prepare(self, request: Request) -> EchoPrepared:
        return replace(super().prepare(request), model=request.model if request.model in self.loaded else "")


class OneAdapterLess(AdaptedEcho):
    loaded = ("sql",)


def adapted(engine: type[EchoEngine], stage: str | None = None, *models: str) -> list[dict[str, Any]]:
    """The results of requests for adapters, or for these models, with this engine."""
    adapters = {"sql": "local", "polish": "local"}
    ledger, routing = world(["hi"]), RoutingTable(pools={"local": ("m",)}, adapters=adapters, stages={"email": "local"})
    turn = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    rows = [
        {"custom_id": "model", "params": {**turn, "model": "sql"}},
        {"custom_id": "hint", "params": turn, "metadata": {"model_hint": "polish"}},
        {"custom_id": "pool", "params": turn, "metadata": {"model_hint": "local"}},
        {"custom_id": "unknown", "params": {**turn, "model": "sqll"}},
    ]
    if models:
        rows = [{"custom_id": name, "params": {**turn, "model": name}} for name in models]
    key = input_key("c", "n")
    ledger.store.put(key, "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, "c", key, routing=routing, stage=stage)
    batches.create(ledger, batches.Draft(batch_id="c", routing=routing, defaults=Defaults(), stage=stage), planned)
    run_alone(Runner(ledger, engine, RunnerOptions(runner_id="r1", pool="local", only="c", is_janitor=False)))
    batch = batches.read_batch(ledger, "c")
    assert batch is not None
    assert batch.results is not None
    return [json.loads(row) for row in b"".join(ledger.store.stream(batch.results.key)).splitlines()]


def test_a_model_or_a_hint_that_names_an_adapter_gets_to_the_engine_and_into_the_result() -> None:
    found = adapted(AdaptedEcho)
    assert [row["model"] for row in found[:3]] == ["sql", "polish", "echo"]
    assert (
        "'sqll' is not a pool, model or alias; pools are local; adapters are polish, sql"
        in found[3]["error"]["message"]
    )


def test_a_request_for_an_adapter_that_was_removed_fails_instead_of_being_answered_by_the_model() -> None:
    sql, polish, *_ = adapted(OneAdapterLess)
    assert (sql["status"], polish["status"]) == ("succeeded", "errored")
    assert "the pool no longer has the adapter 'polish'" in polish["error"]["message"]


def test_a_stage_ignores_models_of_others_but_no_misspelled_adapter() -> None:
    hosted, own, wrong = adapted(AdaptedEcho, "email", "claude-sonnet-4-5", "m", "polsih")
    assert (hosted["status"], own["status"], wrong["status"]) == ("succeeded", "succeeded", "errored")
    assert wrong["error"]["message"] == "model: 'polsih' is unknown; did you mean the adapter 'polish'?"
