"""From a body to a committed batch, over every kind of store: what is refused, what exists, and what a repeat finds."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from api.create import create_batch
from api.http.errors import Refusal
from api.http.spool import Spooled, SpoolLimits, spool
from batchfile import janitor
from batchfile.clock import ManualClock
from batchfile.engine.echo import EchoEngine
from batchfile.errors import BatchDamaged, InvalidFile, KeyReused, RequestRefused, StoreUnavailable, TooLarge
from batchfile.ledger import batches, ending, idempotency, retention
from batchfile.ledger import keys as ledger_keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import StatusReader
from batchfile.plan.submit import CreateOptions
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.settings import load_settings
from batchfile.settings_tables import Api, Pool
from batchfile.store.base import Store
from batchfile.store.memory import MemoryStore
from batchfile.testing import run_alone
from batchfile.testing.faulty_store import FaultyStore

STAGES = {"sales_intel": "llama-70b", "subject": "mistral", "email": "mistral", "polish": "llama-70b"}
SETTINGS = load_settings().model_copy(
    update={
        "pools": {"mistral": Pool(model="m"), "llama-70b": Pool(model="l", aliases=("big",))},
        "stages": STAGES,
        "api": Api(requests_max=50_000),
    }
)
JSON = "application/json"
LINES = "application/x-ndjson"


def request(number: int, **more: object) -> dict[str, Any]:
    params = {"messages": [{"role": "user", "content": f"lead {number}"}], "max_tokens": 4}
    return {"custom_id": f"lead_{number}_email", "params": params, **more}


def document(requests: list[Any], **more: object) -> bytes:
    return json.dumps({"stage": "email", "requests": requests, **more}, indent=1).encode()


def lines(requests: list[Any]) -> bytes:
    return b"\n".join(json.dumps(item).encode() for item in requests)


@dataclass
class Service:
    """Takes bodies as the route does."""

    store: Store
    clock: ManualClock = field(default_factory=ManualClock)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(3))

    def post(
        self, body: bytes, content_type: str | None = JSON, *, ledger: Ledger | None = None, **more: Any
    ) -> BatchRecord:
        options = CreateOptions(tenant="t", arrived_at=self.clock.monotonic())

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        async def go() -> BatchRecord:
            limits = SpoolLimits(bytes_max=100_000_000, wait_s=60)
            async with spool(chunks(), content_encoding=None, content_length=None, limits=limits) as spooled:
                return take(spooled)

        def take(spooled: Spooled) -> BatchRecord:
            return create_batch(
                ledger or self.ledger, SETTINGS, spooled, replace(options, **more), content_type=content_type
            )

        return asyncio.run(go())

    def keys(self, prefix: str = "") -> list[str]:
        return [entry.key for entry in self.store.list(prefix)]

    def input(self, batch: BatchRecord) -> list[Any]:
        data = b"".join(self.store.stream(batch.input.key, match=batch.input.etag))
        assert len(data) == batch.input.size
        return [json.loads(row) for row in data.splitlines()]

    def pools(self, batch: BatchRecord) -> dict[str, int]:
        return {pool: sum(ranges.values()) for pool, ranges in batches.read_plan(self.ledger, batch).pools.items()}


@pytest.fixture
def service() -> Service:
    return Service(MemoryStore(ManualClock()))


# -- what exists afterwards


@pytest.mark.parametrize("content_type", [JSON, LINES])
def test_a_body_becomes_a_batch_in_any_store(store: Store, content_type: str) -> None:
    service = Service(store)
    requests = [request(number, metadata={"note": "é\n😀"}) for number in range(500)]
    body = document(requests) if content_type == JSON else lines(requests)
    batch = service.post(body, content_type, stage=None if content_type == JSON else "email")
    standing = batches.read_batch(service.ledger, batch.batch_id)
    assert standing == batch
    assert service.input(batch) == requests
    assert (batch.total, batch.stage, batch.tenant) == (500, "email", "t")
    assert (batch.defaults.max_tokens, batch.defaults.temperature) == (2048, 0.2)
    assert service.pools(batch) == {"mistral": 500}
    assert ledger_keys.check_batch_id(batch.batch_id).startswith("batch_")
    assert len(batch.batch_id) == len("batch_") + 12


def test_the_plan_of_an_upload_covers_its_input_exactly(service: Service) -> None:
    batch = service.post(document([request(number) for number in range(1000)]))
    ranges = batches.read_plan(service.ledger, batch).ranges
    assert (ranges[0].start, ranges[-1].end) == (0, batch.input.size)
    assert all(one.end == two.start for one, two in pairwise(ranges))
    assert [span.first for span in ranges] == list(range(0, 1000, 32))


@pytest.mark.parametrize("content_type", [None, "", JSON, "application/json; charset=utf-8", "application/vnd.x+json"])
def test_json_is_read_under_its_names(service: Service, content_type: str | None) -> None:
    assert service.post(document([request(1)]), content_type).total == 1


@pytest.mark.parametrize("content_type", [LINES, "application/jsonl", "APPLICATION/NDJSON; charset=utf-8"])
def test_lines_are_read_under_their_names(service: Service, content_type: str) -> None:
    assert service.post(lines([request(1)]), content_type, stage="email").total == 1


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_another_content_type_is_415(service: Service, content_type: str) -> None:
    with pytest.raises(Refusal, match="send application/json or application/x-ndjson") as refused:
        service.post(document([request(1)]), content_type)
    assert refused.value.status == 415


def test_what_is_wrong_inside_params_refuses_nothing(service: Service) -> None:
    batch = service.post(document([{"custom_id": "a", "params": {"max_tokens": "many", "nonsense": 1}}, request(1)]))
    assert service.pools(batch) == {"mistral": 2}


@pytest.mark.parametrize("content_type", [JSON, LINES])
def test_half_of_a_character_is_an_error_of_its_request_alone(service: Service, content_type: str) -> None:
    """As JavaScript sends a string that was cut inside an emoji."""
    cut = {"custom_id": "cut", "params": {"messages": [{"role": "user", "content": "Hi \ud83d"}]}}
    requests = [request(1), cut, request(2)]
    body = document(requests) if content_type == JSON else lines(requests)
    batch = service.post(body, content_type, stage="email")
    assert service.input(batch) == requests, "as it was sent"
    options = RunnerOptions(runner_id="r", pool="mistral", only=batch.batch_id, is_janitor=False)
    run_alone(Runner(service.ledger, EchoEngine, options), until=lambda: finished(service, batch) == 3)
    ended = ending.finish(service.ledger, batch.batch_id, runner="end")
    assert ended is not None
    assert ended.results is not None
    rows = [json.loads(row) for row in b"".join(service.store.stream(ended.results.key)).splitlines()]
    assert [row["status"] for row in rows] == ["succeeded", "errored", "succeeded"]
    assert rows[1]["error"]["message"] == r"params: \ud83d is half of a character; cut strings between characters"


# -- what is refused, and where it says the error is


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "not valid JSON"),
        (document([request(1)], stage=None), "stage: is missing; give one of email, polish, sales_intel, subject"),
        (document([request(1)], stage="emial"), "stage: 'emial' is not known; stages are email, polish"),
        (document([]), "requests: there is none"),
        (document([request(1)], model_hint="gpt"), "model_hint: 'gpt' is no pool, model or alias; pools are"),
        (document([request(1), 5]), r"requests\[1\]: must be an object"),
        (document([request(1), {"params": {}}]), r"requests\[1\].custom_id: is missing"),
        (document([{"custom_id": "", "params": {}}]), r"requests\[0\].custom_id: is empty"),
        (
            document([{"custom_id": 7.5, "params": {}}]),
            r"requests\[0\].custom_id: must be a string or a whole",
        ),
        (document([request(1), {"custom_id": "a\ud83d", "params": {}}]), r"requests\[1\]: .*\\ud83d is half of a char"),
        (document([{"custom_id": "a"}]), r"requests\[0\].params: is missing"),
        (document([{"custom_id": "a", "params": []}]), r"requests\[0\].params: must be an object, got a list"),
        (document([{"custom_id": "a", "body": {}}]), r"requests\[0\].params: is missing"),
        (document([request(1, metdata={})]), r"requests\[0\].metdata: unknown key, did you mean metadata"),
        (
            document([request(1), request(2, metadata={"model_hint": "gpt"})]),
            r"requests\[1\].metadata.model_hint: 'gpt' is no pool, model or alias; pools are llama-70b, mistral",
        ),
        (
            document([request(number) for number in [1, 2, 3, 4, 5, 6, 7, 4]]),
            r"requests\[7\].custom_id: 'lead_4_email' was used by requests\[3\]; make it unique",
        ),
    ],
)
def test_a_refused_document_says_where_and_leaves_nothing(service: Service, body: bytes, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        service.post(body)
    assert service.keys() == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "holds no request"),
        (b"\n \n", "holds no request"),
        (lines([request(1)]) + b"\n\n\n{rubbish", "line 4: is not valid JSON"),
        (b'\n\n{"custom_id": 5.5, "params": {}}', "line 3: custom_id: must be a string or a whole number, got 5.5"),
        (lines([request(1), request(2), request(1)]), "line 3: custom_id: 'lead_1_email' was used on line 1"),
        (lines([request(1)]) + b'\n{"custom_id": "\xff", "params": {}}', "line 2: is not valid UTF-8"),
    ],
)
def test_refused_lines_say_where_and_leave_nothing(service: Service, body: bytes, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        service.post(body, LINES, stage="email")
    assert service.keys() == []


def test_a_refusal_knows_which_request_it_is_about(service: Service) -> None:
    with pytest.raises(RequestRefused) as refused:
        service.post(document([request(1), request(2), {}]))
    assert refused.value.index == 2


def test_lines_need_their_stage_in_the_query(service: Service) -> None:
    with pytest.raises(InvalidFile, match=r"stage: is missing; give it in the query, as \?stage=NAME, one of email, "):
        service.post(lines([request(1)]), LINES)


def test_two_different_stages_are_refused(service: Service) -> None:
    with pytest.raises(InvalidFile, match="say it once"):
        service.post(document([request(1)]), stage="polish")


def test_more_requests_than_the_limit_are_too_large(service: Service) -> None:
    rows = b",".join(b'{"custom_id":"%d","params":{}}' % number for number in range(50_001))
    with pytest.raises(TooLarge, match="more than 50,000 requests"):
        service.post(b'{"stage":"email","requests":[%b]}' % rows)
    assert service.keys() == []


def test_blank_lines_are_no_way_around_the_limit(service: Service) -> None:
    with pytest.raises(TooLarge, match="more than 50,000 lines"):
        service.post(b"\n" * 50_001, LINES, stage="email")
    assert service.keys() == []


def test_a_store_that_fails_commits_nothing_and_the_same_again_completes(service: Service) -> None:
    def fail(number: int, verb: str, key: str, phase: str) -> None:
        if key.startswith("queue/"):
            raise StoreUnavailable("away")

    broken = Ledger(store=FaultyStore(service.store, on_call=fail), clock=service.clock)
    body = document([request(1)])
    with pytest.raises(StoreUnavailable):
        service.post(body, ledger=broken, idempotency_key="k")
    assert not any(key.endswith("batch.json") for key in service.keys("batches/"))
    batch = service.post(body, idempotency_key="k")
    assert service.keys(ledger_keys.QUEUE_PREFIX) == [
        ledger_keys.queue_key("mistral", batch.priority, batch.created_at, batch.batch_id)
    ]


# -- routing


def test_a_hint_of_the_whole_is_for_requests_that_say_none(service: Service) -> None:
    requests = [request(1), request(2, metadata={"model_hint": "mistral"}), request(3, metadata={"other": 1})]
    batch = service.post(document(requests, model_hint="big"))
    assert service.pools(batch) == {"llama-70b": 2, "mistral": 1}


def test_planner_and_runners_route_a_hinted_batch_alike(service: Service) -> None:
    requests = [request(n, **({"metadata": {"model_hint": "mistral"}} if n % 3 else {})) for n in range(100)]
    batch = service.post(document(requests, model_hint="big"))
    for pool in ("mistral", "llama-70b"):
        options = RunnerOptions(runner_id=pool, pool=pool, only=batch.batch_id, is_janitor=False)
        runner = Runner(service.ledger, lambda: EchoEngine(num_slots=4), options)
        done = {"mistral": 66, "llama-70b": 100}[pool]
        run_alone(runner, until=lambda done=done: finished(service, batch) == done)  # type: ignore[misc]
    ended = ending.finish(service.ledger, batch.batch_id, runner="end")
    assert ended is not None
    assert ended.results is not None
    rows = [json.loads(row) for row in b"".join(service.store.stream(ended.results.key)).splitlines()]
    assert [row["custom_id"] for row in rows] == [item["custom_id"] for item in requests]
    assert {row["status"] for row in rows} == {"succeeded"}


def finished(service: Service, batch: BatchRecord) -> int:
    status = StatusReader(service.ledger).read(batch.batch_id)
    assert status is not None
    return status.counts.finished


# -- creates that are repeated


def test_the_same_key_and_body_are_the_same_batch(store: Store) -> None:
    service = Service(store)
    body, key = document([request(1)]), random.randbytes(8).hex()
    first = service.post(body, idempotency_key=key)
    assert service.post(body, idempotency_key=key) == first
    assert service.post(body, idempotency_key=key, tenant="other").batch_id != first.batch_id
    with pytest.raises(KeyReused, match=first.batch_id):
        service.post(document([request(2)]), idempotency_key=key)


def test_a_key_of_a_refused_create_is_free_again(service: Service) -> None:
    with pytest.raises(InvalidFile):
        service.post(document([{}]), idempotency_key="k")
    assert service.post(document([request(1)]), idempotency_key="k").total == 1


def test_a_key_whose_batch_was_deleted_creates_anew(service: Service) -> None:
    body = document([request(1)])
    first = service.post(body, idempotency_key="k")
    batches.end(service.ledger, first.batch_id, "canceled")
    ending.finish(service.ledger, first.batch_id, runner="r")
    retention.delete(service.ledger, first.batch_id)
    again = service.post(body, idempotency_key="k")
    assert again.batch_id != first.batch_id
    assert service.post(body, idempotency_key="k") == again


def test_creates_with_one_key_at_once_make_one_batch(store: Store) -> None:
    service = Service(store)
    body, key = document([request(number) for number in range(100)]), random.randbytes(8).hex()
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: service.post(body, idempotency_key=key, tenant=key), range(6)))
    assert len({batch.batch_id for batch in found}) == 1
    batch = found[0]
    assert [ledger_keys.index_batch_id(entry) for entry in service.keys(ledger_keys.index_prefix(key))] == [
        batch.batch_id
    ]


def test_a_batch_of_the_same_create_that_is_committed_already_stands(service: Service) -> None:
    first = service.post(document([request(1)]))
    plan = batches.read_plan(service.ledger, first)
    draft = batches.Draft(
        batch_id=first.batch_id,
        routing=first.routing,
        defaults=first.defaults,
        stage=first.stage,
        tenant=first.tenant,
        created_at=first.created_at,
    )
    planned = Planned(input=first.input, plan=plan, plan_key="another", total=1, num_rejected=0)
    before = service.keys()
    assert batches.create(service.ledger, draft, planned) == first
    assert service.keys() == before
    with pytest.raises(BatchDamaged, match="send this one again"):
        batches.create(service.ledger, replace(draft, tenant="other"), planned)


def test_a_retry_without_a_key_is_recognised_by_its_body(service: Service) -> None:
    body = document([request(1)])
    first = service.post(body, retry_count=0)
    assert service.post(body, retry_count=1) == first
    assert service.post(body, retry_count=2, tenant="other").batch_id != first.batch_id
    second = service.post(body, retry_count=0)
    assert second.batch_id != first.batch_id, "a first attempt is a new batch, whatever was sent before"
    assert service.post(body, retry_count=1) == second
    assert service.post(document([request(2)]), retry_count=1).batch_id not in {first.batch_id, second.batch_id}


def test_a_first_attempt_that_waited_adopts_the_batch_of_its_own_retry() -> None:
    """Its client had given it up, and another replica was faster."""
    clock = ManualClock()
    service = Service(MemoryStore(clock), clock)
    body, arrived_at = document([request(1)]), clock.monotonic()
    clock.sleep(5)
    retried = service.post(body, retry_count=1)
    clock.sleep(30)
    assert service.post(body, retry_count=2) == retried
    assert service.post(body, retry_count=0, arrived_at=arrived_at) == retried
    again = service.post(body, retry_count=0)
    assert again.batch_id != retried.batch_id, "what arrives after a retry is a create of its own"
    assert service.post(body, retry_count=0, arrived_at=arrived_at).batch_id != again.batch_id, "so is a first attempt"


@pytest.mark.parametrize("when", ["before", "after"])
def test_attempts_of_one_create_at_once_make_one_batch(when: str) -> None:
    """The retry overtakes just before, or just after, the first attempt writes down its batch."""
    clock = ManualClock()
    service = Service(MemoryStore(clock), clock)
    body, arrived_at = document([request(1)]), clock.monotonic()
    clock.sleep(1)
    retried: list[BatchRecord] = []

    def overtake(number: int, verb: str, key: str, phase: str) -> None:
        if key.startswith(ledger_keys.IDEMPOTENCY_PREFIX) and phase == when and not retried:
            with ThreadPoolExecutor(1) as replica:
                retried.append(replica.submit(service.post, body, retry_count=1).result())

    slow = Ledger(store=FaultyStore(service.store, on_call=overtake), clock=clock)
    assert [service.post(body, ledger=slow, retry_count=0, arrived_at=arrived_at)] == retried


def test_a_late_retry_is_a_new_batch() -> None:
    clock = ManualClock()
    service = Service(MemoryStore(clock), clock)
    body = document([request(1)])
    first = service.post(body, retry_count=0)
    clock.sleep(idempotency.RETRY_S)
    assert service.post(body, retry_count=1).batch_id != first.batch_id


def test_the_same_lines_for_another_stage_are_another_request(service: Service) -> None:
    body = lines([request(1)])
    first = service.post(body, LINES, stage="email", retry_count=0)
    assert service.post(body, LINES, stage="subject", retry_count=1).batch_id != first.batch_id


def test_a_create_that_died_is_completed_by_its_retry_under_the_same_id(service: Service) -> None:
    def cut_off(number: int, verb: str, key: str, phase: str) -> None:
        if key.endswith("batch.json") and verb == "put":
            raise KeyboardInterrupt

    body = document([request(1)])
    dying = Ledger(store=FaultyStore(service.store, on_call=cut_off), clock=service.clock)
    with pytest.raises(KeyboardInterrupt):
        service.post(body, ledger=dying, retry_count=0)
    (begun,) = {key.split("/")[1] for key in service.keys("batches/")}
    assert service.post(body, retry_count=1).batch_id == begun


def test_a_create_that_died_long_ago_is_made_anew() -> None:
    """Its time is over: under the old id it might be born expired."""
    clock = ManualClock()
    service = Service(MemoryStore(clock), clock)

    def cut_off(number: int, verb: str, key: str, phase: str) -> None:
        if key.endswith("batch.json") and verb == "put":
            raise KeyboardInterrupt

    body = document([request(1)])
    dying = Ledger(store=FaultyStore(service.store, on_call=cut_off), clock=clock)
    with pytest.raises(KeyboardInterrupt):
        service.post(body, ledger=dying, idempotency_key="k")
    (begun,) = {key.split("/")[1] for key in service.keys("batches/")}
    clock.sleep(service.ledger.limits.abandoned_s)
    batch = service.post(body, idempotency_key="k")
    assert batch.batch_id != begun
    assert batch.created_at == clock.now()


def test_what_a_dead_create_left_is_swept(service: Service) -> None:
    """From its first write on: the janitor finds it in the index."""

    def cut_off(number: int, verb: str, key: str, phase: str) -> None:
        if "/plan-" in key:
            raise KeyboardInterrupt

    store = MemoryStore(service.clock)
    service = Service(store, service.clock)
    dying = Ledger(store=FaultyStore(store, on_call=cut_off), clock=service.clock)
    with pytest.raises(KeyboardInterrupt):
        service.post(document([request(1)]), ledger=dying, idempotency_key="k")
    assert any("/input-" in key for key in service.keys("batches/"))
    service.clock.sleep(service.ledger.limits.abandoned_s)
    janitor.Janitor(service.ledger, runner="s").tick()
    assert not any("/input-" in key for key in service.keys("batches/"))


def test_records_are_swept_when_their_batch_is_gone() -> None:
    clock = ManualClock()
    service = Service(MemoryStore(clock), clock)
    lives, gone = (service.post(document([request(number)]), idempotency_key=f"k{number}") for number in (1, 2))
    clock.sleep(service.ledger.limits.retention_s + service.ledger.limits.tombstone_s + 1)
    service.store.delete(ledger_keys.batch_key(gone.batch_id))
    assert idempotency.sweep_idempotency(service.ledger) == 1
    assert service.keys("idempotency/") == [ledger_keys.idempotency_key("key", "t\nk1")]
    assert batches.read_batch(service.ledger, lives.batch_id) is not None
