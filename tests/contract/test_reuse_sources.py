"""Which earlier batches a create may reuse: those it names, or those that the same model made for the same user."""

import json
from dataclasses import replace
from typing import Any

import pytest

from batchfile import Runner, RunnerOptions
from batchfile.errors import InvalidFile, KeyReused, NotFound
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from tests.contract.create_kit import Service, document, lines, request
from tests.helpers.ledger import (
    BatchRecord,
    Draft,
    HeartbeatRecord,
    InputRef,
    Origin,
    PendingInput,
    PlanRules,
    RunnerState,
    batches,
    encode,
    ending,
    keys,
    remove_heartbeat,
    retention,
    update_batch,
    write_heartbeat,
)
from tests.helpers.plan import NONE_EQUAL, CreateOptions, pending, reuse_for, why_not, with_reuse

POOL = "mistral"
FINGERPRINT = EchoEngine().info.fingerprint
assert FINGERPRINT is not None


def rows(*numbers: int, **more: Any) -> list[Any]:
    made = [request(number) for number in numbers]
    for row in made:
        row["params"] |= {"temperature": 0, **more}
    return made


class World:
    def __init__(self) -> None:
        clock = ManualClock()
        self.service = Service(MemoryStore(clock), clock)
        self.ledger = self.service.ledger
        self.alive()

    def alive(
        self, fingerprint: str = FINGERPRINT or "", *, pool: str = POOL, name: str = "r", state: RunnerState = "idle"
    ) -> None:
        record = HeartbeatRecord(
            pool=pool, runner_id=name, model="m", engine="echo", state=state, started_at=0.0, fingerprint=fingerprint
        )
        write_heartbeat(self.ledger, record)

    def post(self, *numbers: int, requests: list[Any] | None = None, **more: Any) -> BatchRecord:
        self.service.clock.sleep(1)
        return self.service.post(document(requests or rows(*numbers)), **more)

    def run(self, batch: BatchRecord, pool: str = POOL, **engine: Any) -> BatchRecord:
        options = RunnerOptions(runner_id="r1", pool=pool, only=batch.batch_id, is_janitor=False)
        run_alone(Runner(self.ledger, lambda: EchoEngine(num_slots=8, **engine), options))
        ended = batches.read_batch(self.ledger, batch.batch_id)
        assert ended is not None
        assert ended.state == "ended"
        return ended

    def done(self, *numbers: int, **more: Any) -> BatchRecord:
        return self.run(self.post(*numbers, **more))


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("made", "now", "why"),
    [
        ({"p": ("a",)}, {"p": "a"}, None),
        ({"p": ("a",), "q": ("b",)}, {"p": "a", "q": "b", "r": None}, None),
        ({}, {"p": "a"}, "it is unknown which model made them"),
        ({"p": ("",)}, {"p": "a"}, "it is unknown which model made them"),
        ({"p": ("", "a")}, {"p": "a"}, "it is unknown which model made them"),
        ({"p": ("a", "b")}, {"p": "a"}, "they were made by several models, or with several settings"),
        ({"p": ("a",)}, {}, "it is unknown which model would run now"),
        ({"p": ("a",)}, {"p": None}, "it is unknown which model would run now"),
        ({"p": ("a",)}, {"p": "b"}, "the model or its settings have changed since"),
        ({"p": ("a",), "q": ("b",)}, {"p": "b", "q": "a"}, "the model or its settings have changed since"),
    ],
)
def test_results_are_certain_only_with_one_known_fingerprint_for_each_pool(
    made: dict[str, tuple[str, ...]], now: dict[str, str | None], why: str | None
) -> None:
    assert why_not(made, now) == why


def test_a_batch_that_is_named_gives_its_results_and_the_rest_runs(world: World) -> None:
    first = world.done(1, 2, 3)
    batch = world.post(3, 9, 1, reuse=first.batch_id)
    assert batch.reused == {first.batch_id: 2}
    ended = world.run(batch)
    assert (ended.counts.succeeded, ended.usage.output_tokens, ended.gpu_s) == (3, 2, 0.0)
    assert ended.fingerprints == {POOL: (FINGERPRINT,)}
    assert ended.results is not None
    results = [json.loads(row) for row in b"".join(world.ledger.store.stream(ended.results.key)).splitlines()]
    assert [row["custom_id"] for row in results] == ["lead_3_email", "lead_9_email", "lead_1_email"]
    assert world.post(3, reuse=ended.batch_id).reused == {ended.batch_id: 1}, "what was reused can be reused again"


def test_a_named_batch_gives_sampled_results_of_any_model_and_auto_does_not(world: World) -> None:
    sampled = rows(1, 2, temperature=1)
    first = world.run(world.post(requests=sampled), thinking="other")
    assert world.post(requests=sampled, reuse=first.batch_id).reused == {first.batch_id: 2}
    assert world.post(requests=sampled, reuse="auto").reused == {}
    same = world.run(world.post(requests=[*sampled, *rows(5)]))
    assert world.post(requests=[*sampled, *rows(5)], reuse="auto").reused == {same.batch_id: 1}
    none = world.post(requests=sampled, reuse="auto")
    assert (none.reused, none.reuse_note) == ({}, NONE_EQUAL)


def test_a_later_reader_sees_that_several_models_made_the_results(world: World) -> None:
    first = world.run(world.post(1), thinking="other")
    mixed = world.run(world.post(1, 2, reuse=first.batch_id))
    assert len(mixed.fingerprints[POOL]) == 2
    again = world.post(2, reuse="auto")
    assert again.reused == {}
    assert again.reuse_note is not None
    assert again.reuse_note.endswith("they were made by several models, or with several settings")


@pytest.mark.parametrize(
    ("alive", "why"),
    [
        ([], "it is unknown which model would run now"),
        ([("", "idle")], "it is unknown which model would run now"),
        ([("other", "idle")], "the model or its settings have changed since"),
        ([("other", "idle"), (FINGERPRINT, "running")], "it is unknown which model would run now"),
        ([("", "loading"), (FINGERPRINT, "running")], None),
    ],
)
def test_auto_needs_live_runners_that_are_all_known_and_the_same(
    world: World, alive: list[tuple[str, RunnerState]], why: str | None
) -> None:
    first = world.done(1)
    remove_heartbeat(world.ledger, POOL, "r")
    for number, (fingerprint, state) in enumerate(alive):
        world.alive(fingerprint, name=f"r{number}", state=state)
    batch = world.post(1, reuse="auto")
    if why is None:
        assert (batch.reused, batch.reuse_note) == ({first.batch_id: 1}, None)
    else:
        assert batch.reused == {}
        assert batch.reuse_note == f"nothing was reused: the results of {first.batch_id} were not used: {why}"


def test_auto_takes_from_several_batches_of_the_same_stage_and_tenant(world: World) -> None:
    first, second = world.done(1), world.done(2)
    world.done(3, tenant="other")
    subject = world.service.post(document(rows(4), stage="subject"))
    world.run(subject)
    world.post(5)  # not ended
    batch = world.post(1, 2, 3, 4, 5, reuse="auto")
    assert batch.reused == {second.batch_id: 1, first.batch_id: 1}
    nothing = world.post(1, tenant="new", reuse="auto")
    assert nothing.reuse_note == "nothing was reused: there is no earlier batch of this kind with results"


def test_a_request_of_another_pool_never_gets_a_result_of_this_one(world: World) -> None:
    """Also where both serve the same model, as far as is known."""
    world.alive(pool="llama-70b")
    world.done(1)
    hinted = [{**row, "metadata": {"model_hint": "llama-70b"}} for row in rows(1)]
    batch = world.post(requests=hinted, reuse="auto")
    assert set(batch.reused.values()) <= {0}
    assert world.service.pools(batch) == {"llama-70b": 1}


def test_what_cannot_be_reused_is_rejected_by_name(world: World) -> None:
    first = world.done(1)
    for name, tenant in (("batch_000000000000", "t"), (first.batch_id, "other"), ("../etc", "t"), ("", "t")):
        with pytest.raises(NotFound, match="reuse: there is no batch"):
            world.post(1, reuse=name, tenant=tenant)
    running = world.post(7)
    with pytest.raises(InvalidFile, match=f"from {running.batch_id}: it has not ended"):
        world.post(1, reuse=running.batch_id)
    update_batch(world.ledger, keys.batch_key(running.batch_id), lambda record: replace(record, state="ended"))
    with pytest.raises(InvalidFile, match="it ended before it had results"):
        world.post(1, reuse=running.batch_id)
    plan = batches.read_plan(world.ledger, first)
    assert plan.hashes is not None
    world.ledger.store.put(first.plan_key, encode(replace(plan, hashes=None)))
    with pytest.raises(InvalidFile, match="kept no hashes"):
        world.post(1, reuse=first.batch_id)
    world.ledger.store.delete(first.plan_key)
    with pytest.raises(InvalidFile, match="its plan is damaged"):
        world.post(1, reuse=first.batch_id)
    retention.delete(world.ledger, first.batch_id)
    with pytest.raises(InvalidFile, match=f"from {first.batch_id}: it was deleted"):
        world.post(1, reuse=first.batch_id)
    world.alive()
    assert world.post(1, reuse="auto").reused == {}


def test_a_repeated_create_finds_its_batch_after_its_source_is_gone(world: World) -> None:
    first = world.done(1)
    made = world.post(1, reuse=first.batch_id, idempotency_key="k")
    retention.delete(world.ledger, first.batch_id)
    assert world.post(1, reuse=first.batch_id, idempotency_key="k").batch_id == made.batch_id
    with pytest.raises(KeyReused):
        world.post(1, idempotency_key="k")


def test_results_that_a_batch_has_reused_outlive_their_source(world: World) -> None:
    first = world.done(1, 2)
    batch = world.post(1, 2, reuse=first.batch_id)
    retention.delete(world.ledger, first.batch_id)
    retention.purge(world.ledger, first.batch_id)
    ended = ending.finish(world.ledger, batch.batch_id, runner="r")
    assert ended is not None
    assert ended.counts.succeeded == 2


def test_a_source_that_expires_before_a_later_plan_is_said_and_its_requests_run(world: World) -> None:
    first = world.done(1)
    body = lines(rows(1, 2))
    key = "files/input.jsonl"
    world.ledger.store.put(key, body)
    entry = world.ledger.store.head(key)
    assert entry is not None
    options = CreateOptions(tenant="t", stage="email", reuse=first.batch_id)
    rules = with_reuse(PlanRules(), reuse_for(world.ledger, options))
    pinned = InputRef(key=key, etag=entry.etag, size=len(body), sha256="", format="native")
    origin = Origin(kind="file", name="f", facts={})
    draft = Draft(
        batch_id="batch_later",
        routing=first.routing,
        defaults=first.defaults,
        stage="email",
        tenant="t",
        created_at=1.0,
    )
    pending.create(world.ledger, draft, PendingInput(input=pinned, origin=origin, rules=rules))
    retention.delete(world.ledger, first.batch_id)
    opened = pending.plan(world.ledger, "batch_later", runner="r")
    assert opened is not None
    assert (opened.state, opened.total, opened.reused) == ("open", 2, {})
    assert opened.reuse_note == f"no result of {first.batch_id} was reused: it has expired or was deleted"
