"""Damaged and newer records over a store: when damage is believed, what replaces it, and what is never replaced."""

import json
from typing import Any

import pytest

from batchfile.errors import BatchDamaged, LeaseLost, RecordDamaged, RecordNewer
from tests.contract.test_status import World
from tests.helpers.client import StoreRemote
from tests.helpers.inbox import DAMAGED_S, Janitor
from tests.helpers.ledger import (
    READS_MAX,
    BatchRecord,
    Lost,
    SetAside,
    ShardRecord,
    batches,
    damage,
    ending,
    idempotency,
    keys,
    load,
    retention,
    shards,
    swap,
)
from tests.helpers.settings import load_settings
from tests.helpers.store import Object

BATCH_KEY = keys.batch_key("b")


def damaged(world: World, key: str = BATCH_KEY, data: bytes = b"\0\0\0") -> RecordDamaged:
    world.store.put(key, data)
    with pytest.raises(RecordDamaged) as caught:
        load(world.ledger, key, ShardRecord if "/shards/" in key else BatchRecord)
    return caught.value


def edit(world: World, key: str, **fields: Any) -> bytes:
    found = world.store.get(key)
    assert found is not None
    data = json.dumps(json.loads(found.data) | fields).encode()
    world.store.put(key, data)
    return data


def test_nonsense_that_a_store_answers_once_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.create("b", 4)
    answers = [b"<html>one moment</html>"] * (READS_MAX - 1)
    get = world.store.get

    def proxied(key: str) -> Object | None:
        found = get(key)
        if found is None or not answers:
            return found
        return Object(data=answers.pop(), etag="x", modified_at=found.modified_at, read_at=found.read_at)

    monkeypatch.setattr(world.store, "get", proxied)
    found = load(world.ledger, BATCH_KEY, BatchRecord)
    assert found is not None
    assert found.record.batch_id == "b"
    assert not answers


def test_the_error_names_the_object_and_the_store_to_the_operator() -> None:
    world = World()
    world.create("b", 4)
    error = damaged(world)
    assert (error.key, str(error).startswith("batches/b/batch.json in memory:")) == (BATCH_KEY, True)


def test_a_place_in_the_index_can_be_made_again_from_its_own_time() -> None:
    for millis in range(1_764_000_000_000, 1_764_000_002_000):
        place = keys.index_key("acme", millis / 1000, "b")
        assert keys.index_key(keys.index_tenant(place), keys.index_created_at(place), "b") == place


def test_a_damaged_batch_is_canceled_and_its_holders_lose_their_shards() -> None:
    world = World()
    world.create("b", 16)
    held = world.claim("b", "mistral", 0)
    place = damage.place_of(world.ledger, "default", "b")
    assert place is not None
    ended = damage.cancel(world.ledger, damaged(world), place)
    assert ended is not None
    assert (ended.state, ended.reason, ended.results) == ("ended", "canceled", None)
    with pytest.raises(LeaseLost):
        world.answer(held, 1)
    assert ending.finish(world.ledger, "b", runner="s") == ended, "it stays as it is"
    # A runner that still knows its plan can claim nothing more.
    batch = world.reader.read("b")
    assert batch is not None
    assert batch.batch == ended


def test_a_damaged_batch_is_deleted_like_any_other() -> None:
    world = World()
    world.create("b", 4)
    place = damage.place_of(world.ledger, "default", "b")
    assert place is not None
    gone = damage.delete(world.ledger, damaged(world), place)
    assert gone is not None
    assert batches.read_batch(world.ledger, "b") is None
    retention.remove_objects(world.ledger, gone)
    retention.remove_tombstone(world.ledger, gone)
    assert [entry.key for entry in world.store.list("batches/")] == []
    assert [entry.key for entry in world.store.list("index/")] == []


def test_what_was_restored_meanwhile_stands() -> None:
    world = World()
    whole = world.create("b", 4)
    place = damage.place_of(world.ledger, "default", "b")
    kept = world.store.get(BATCH_KEY)
    assert place is not None
    assert kept is not None
    error = damaged(world)
    world.store.put(BATCH_KEY, kept.data)
    assert damage.cancel(world.ledger, error, place) is None
    assert damage.delete(world.ledger, error, place) is None
    assert batches.read_batch(world.ledger, "b") == whole


def test_a_damaged_shard_record_is_closed_with_its_batch_and_the_other_shards_keep_their_results() -> None:
    world = World()
    world.create("b", 16)
    world.answer(world.claim("b", "mistral", 0), 1, 2, 3)
    world.answer(world.claim("b", "mistral", 1), 1, 2, 3)
    key = keys.shard_key("b", "mistral", 0)
    damaged(world, key)
    seen = world.reader.read("b")
    assert seen is not None
    assert seen.status.counts.succeeded == 3, "of the shard that can be read"
    assert isinstance(seen.problem, RecordDamaged)
    batches.end(world.ledger, "b", "canceled")
    ended = ending.finish(world.ledger, "b", runner="s")
    assert ended is not None
    assert (ended.state, ended.counts.succeeded, ended.counts.finished) == ("ended", 3, 16)


def test_counts_do_not_go_back_where_a_record_is_damaged_later() -> None:
    world = World()
    world.create("b", 16)
    world.answer(world.claim("b", "mistral", 0), 1, 2, 3)
    before = world.reader.read("b")
    damaged(world, keys.shard_key("b", "mistral", 0))
    after = world.reader.read("b")
    assert before is not None
    assert after is not None
    assert after.status.counts == before.status.counts


def test_a_damaged_record_of_a_task_holds_up_nothing() -> None:
    world = World()
    world.create("b", 4)
    world.store.put(keys.assembly_key("b"), b"\0\0\0")
    assert not shards.is_held(world.ledger, keys.assembly_key("b"))
    batches.end(world.ledger, "b", "canceled")
    ended = ending.finish(world.ledger, "b", runner="s")
    assert ended is not None
    assert ended.state == "ended"


def test_a_batch_whose_plan_is_lost_waits_while_it_is_open_and_ends_when_it_is_asked_to() -> None:
    world = World()
    batch = world.create("b", 4)
    world.store.delete(batch.plan_key)
    with pytest.raises(BatchDamaged):
        ending.finish(world.ledger, "b", runner="s")
    batches.end(world.ledger, "b", "canceled")
    ended = ending.finish(world.ledger, "b", runner="s")
    assert ended is not None
    assert (ended.state, ended.reason, ended.results) == ("ended", "canceled", None)
    assert "plan" in (ended.detail or "")


@pytest.mark.parametrize("answer", [b"<html>one moment</html>", None], ids=["nonsense", "missing"])
def test_a_plan_that_only_a_proxy_denies_is_not_lost_however_often_it_is_read(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    """The batch would end without the results that it has."""
    world = World()
    batch = world.create("b", 4)
    batches.end(world.ledger, "b", "canceled")
    get = world.store.get

    def proxied(key: str) -> Object | None:
        found = get(key)
        if key != batch.plan_key or found is None:
            return found
        if answer is None:
            return None
        return Object(data=answer, etag="x", modified_at=found.modified_at, read_at=found.read_at)

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "get", proxied)
        with pytest.raises(BatchDamaged):
            ending.finish(world.ledger, "b", runner="s")
    ended = ending.finish(world.ledger, "b", runner="s")
    assert ended is not None
    assert ended.results is not None


@pytest.mark.parametrize("newer", [{"version": 2}, {"fingerprint": "abc"}])
def test_a_newer_batch_record_is_never_written_or_removed(newer: dict[str, Any]) -> None:
    world = World()
    world.create("b", 4)
    data = edit(world, BATCH_KEY, **newer)
    for reason in ("canceled", "expired"):
        with pytest.raises(RecordNewer, match="upgrade this process"):
            batches.end(world.ledger, "b", reason)
    found = world.store.get(BATCH_KEY)
    assert found is not None
    assert found.data == data


@pytest.mark.parametrize("newer", [{"version": 2}, {"fingerprint": "abc"}])
def test_a_newer_shard_record_is_never_claimed_rewritten_or_closed(newer: dict[str, Any]) -> None:
    world = World()
    world.create("b", 8)
    held = world.claim("b", "mistral", 0)
    shards.release(world.ledger, held)
    data = edit(world, held.key, **newer)
    with pytest.raises(RecordNewer, match="upgrade this process"):
        world.claim("b", "mistral", 0)
    batch = batches.read_batch(world.ledger, "b")
    assert batch is not None
    with pytest.raises(RecordNewer, match="upgrade this process"):
        shards.close(world.ledger, "b", batches.read_plan(world.ledger, batch), "mistral", 0, reason="canceled")
    found = world.store.get(held.key)
    assert found is not None
    assert found.data == data


def test_a_deleted_batch_of_a_newer_version_is_not_swept() -> None:
    world = World()
    batch = world.create("b", 4)
    batches.end(world.ledger, "b", "canceled")
    ending.finish(world.ledger, "b", runner="s")
    retention.delete(world.ledger, "b")
    data = edit(world, BATCH_KEY, fingerprint="abc")
    janitor = Janitor(world.ledger, runner="s")
    for _ in range(8):
        world.clock.sleep(12 * 3600.0)
        janitor.tick()
    found = world.store.get(BATCH_KEY)
    assert found is not None
    assert found.data == data
    assert world.store.get(batch.plan_key) is not None


def test_a_janitor_shows_what_is_damaged_among_what_it_set_aside() -> None:
    world = World()
    world.create("b", 4)
    world.create("c", 4)
    damaged(world)
    aside = SetAside(world.ledger)
    janitor = Janitor(world.ledger, runner="s", aside=aside)
    janitor.tick()
    assert list(aside.reasons()) == ["b"]
    assert f"{BATCH_KEY} in memory:" in aside.reasons()["b"]
    damage.cancel(world.ledger, damaged(world), keys.index_key("default", world.clock.now(), "b"))
    world.clock.sleep(DAMAGED_S)
    janitor.tick()
    assert aside.reasons() == {}


def test_a_janitor_of_one_damaged_batch_goes_on_with_the_rest_of_its_tick() -> None:
    world = World()
    world.create("b", 4)
    damaged(world)
    Janitor(world.ledger, runner="s", aside=SetAside(world.ledger, only=("b",))).tick()


def test_an_operator_sees_the_key_and_cancels_over_the_store() -> None:
    world = World()
    world.create("b", 4)
    world.create("c", 4)
    damaged(world)
    remote = StoreRemote(world.ledger, load_settings(), "default")
    listed = {view.batch_id: view for view in remote.batches()}
    assert {batch_id: view.state for batch_id, view in listed.items()} == {"b": "damaged", "c": "open"}
    assert "batches/b/batch.json in memory:" in (listed["b"].detail or "")
    assert remote.batch("b").state == "damaged"
    assert remote.cancel("b").reason == "canceled"
    assert {view.state for view in remote.batches()} == {"ended", "open"}


def test_a_damaged_batch_of_another_tenant_is_not_canceled_over_the_store() -> None:
    world = World()
    world.create("b", 4)
    damaged(world)
    with pytest.raises(BatchDamaged):
        StoreRemote(world.ledger, load_settings(), "acme").cancel("b")


def test_swap_over_damage_replaces_exactly_these_bytes() -> None:
    world = World()
    batch = world.create("b", 4)
    error = damaged(world)
    other = damaged(world, data=b"other nonsense")
    with pytest.raises(RecordDamaged):
        swap(world.ledger, BATCH_KEY, batch, error)
    assert not isinstance(swap(world.ledger, BATCH_KEY, batch, other), Lost)


def test_a_body_whose_record_is_damaged_can_be_created_and_a_key_says_that_it_is() -> None:
    """A body has no other name to be created by; a key stands for one batch, and nobody knows which."""
    world = World()
    world.store.put(keys.idempotency_key("body", "t\nd"), b"\0\0\0")
    world.store.put(keys.idempotency_key("key", "t\nk"), b"\0\0\0")

    def retry(batch_id: str) -> idempotency.KeyedBatch:
        now = world.ledger.clock.monotonic()
        return idempotency.get_or_create_retry(
            world.ledger, tenant="t", digest="d", batch_id=batch_id, is_retry=True, arrived_at=now
        )

    first, second = retry("one"), retry("two")
    assert (first.batch_id, first.is_first) == ("one", True)
    assert (second.batch_id, second.is_first) == ("one", False)
    with pytest.raises(RecordDamaged):
        idempotency.get_or_create(world.ledger, kind="key", tenant="t", value="k", digest="d", batch_id="three")
