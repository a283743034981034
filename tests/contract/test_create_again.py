"""Creates that are repeated, with a key or without, at once or after a death, make one batch."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from batchfile import Ledger
from batchfile.errors import BatchDamaged, InvalidFile, KeyReused
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from tests.contract.create_kit import LINES, Service, document, lines, request, service
from tests.helpers.inbox import janitor
from tests.helpers.ledger import BatchRecord, Planned, batches, ending, idempotency, retention
from tests.helpers.ledger import keys as ledger_keys
from tests.helpers.store import Store

__all__ = ["service"]


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
    with pytest.raises(BatchDamaged, match="submit this batch again"):
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
