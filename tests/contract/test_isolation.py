"""One ill batch among healthy ones, in virtual time: what a store always refuses of it holds up no other."""

import json

import pytest

from batchfile.errors import ObjectChanged, StoreError, StoreUnavailable
from batchfile.testing import Ill
from tests.contract.isolation_kit import HEALTHY, ILL, REFUSALS, UNANSWERED, World
from tests.helpers.faults import IllAnswer
from tests.helpers.inbox import Janitor
from tests.helpers.ledger import UNANSWERED_MAX, batches, keys

ENDS_WITHIN_S = 75.0
WELL_AGAIN_WITHIN_S = 90.0  # the longest pause, and a janitor's or a finalizer's next look
READ_KEYS = ["batch.json", "input-*", "plan-*"]


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED, "nonsense"])
@pytest.mark.parametrize("name", [*READ_KEYS, "shards/*", "parts/*", "assembly.json", "results-*", "*"])
def test_healthy_batches_end_although_one_is_ill_and_it_ends_when_it_is_well(name: str, answer: IllAnswer) -> None:
    """Within a minute and a quarter, and within a minute and a half."""
    world = World()
    world.fall_ill(name, answer)
    if answer == "nonsense" and name in {"input-*", "parts/*"}:
        world.run(world.runner(), world.have_all_ended)
        return  # these are told from what was stored by their etag or digest, which such a proxy does not change
    took = world.run(
        world.runner(), world.have_all_ended, world.after(300.0), world.get_well, lambda: world.has_ended(ILL)
    )
    assert took[0] < ENDS_WITHIN_S
    assert took[-1] < WELL_AGAIN_WITHIN_S


@pytest.mark.parametrize("more", [None, {"version": 2}, {"fingerprint": "of a newer version"}])
def test_a_shard_record_that_is_damaged_while_it_is_held_ends_no_runner(more: dict[str, object] | None) -> None:
    world = World()
    runner = world.runner()
    kept: dict[str, bytes] = {}

    def damage() -> bool:
        held = [shard.held for shard in runner._state.shards if shard.batch_id == ILL]
        if held:
            kept[held[0].key] = data = world.read(held[0].key)
            world.store.put(held[0].key, b"\0" if more is None else json.dumps({**json.loads(data), **more}).encode())
        return bool(held)

    def restore() -> bool:
        for key, data in kept.items():
            world.store.put(key, data)
        return True

    world.run(runner, damage, world.have_all_ended, restore, lambda: world.has_ended(ILL))


def test_an_input_that_is_gone_from_a_batch_that_a_newer_version_wrote_ends_no_runner() -> None:
    world = World()
    key = keys.batch_key(ILL)
    data = json.dumps({**json.loads(world.read(key)), "fingerprint": "of a newer version"}).encode()
    world.store.put(key, data)
    world.store.delete(keys.input_key(ILL, "n"))
    runner = world.runner()
    world.run(runner, world.have_all_ended, world.after(300.0))
    assert "upgrade this process" in runner.set_aside()[ILL]
    assert world.read(key) == data


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("pattern", ["queue/*", "notifications/*", "index/*", "*"])
def test_a_refusal_of_what_belongs_to_no_batch_ends_no_runner(pattern: str, answer: IllAnswer) -> None:
    """However long it lasts, the runner waits with its engine loaded, and goes on soon after."""
    world = World()
    world.store.ills = [Ill(pattern=pattern, answer=answer)]
    took = world.run(world.runner(), world.after(1800.0), world.get_well, world.have_all_ended)
    assert took[-1] < 60.0


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("pattern", ["notifications/*", "index/*", "runners/*", "idempotency/*"])
def test_batches_end_without_what_is_only_a_hint(pattern: str, answer: IllAnswer) -> None:
    world = World()
    world.store.ills = [Ill(pattern=pattern, answer=answer)]
    assert world.run(world.runner(), world.have_all_ended)[0] < ENDS_WITHIN_S


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
def test_batches_that_are_known_end_while_the_queue_cannot_be_listed(answer: IllAnswer) -> None:
    world = World()
    runner = world.runner()

    def queue_falls_ill() -> bool:
        if not runner.shards_held(1):
            return False
        world.store.ills = [Ill(pattern="queue/*", answer=answer)]
        return True

    assert world.run(runner, queue_falls_ill, world.have_all_ended)[-1] < ENDS_WITHIN_S


def test_a_store_that_was_away_costs_no_batch_a_long_pause() -> None:
    world = World()
    world.store.is_down = True

    def is_back() -> bool:
        world.store.is_down = False
        return True

    took = world.run(world.runner(), world.after(1800.0), is_back, world.have_all_ended)
    assert took[-1] < 10.0


def test_an_ill_batch_costs_less_and_less() -> None:
    world = World()
    asked = 0

    class Counted(Ill):
        __slots__ = ()

        def error(self, key: str) -> StoreError:
            nonlocal asked
            asked += 1
            return super().error(key)

    world.store.ills = [Counted(pattern=f"batches/{ILL}/input-*", answer="500")]
    world.run(world.runner(), world.have_all_ended, world.after(3600.0))
    assert asked <= 80, "one try a minute, once it lasts"


def test_what_is_set_aside_can_be_seen_with_its_reason_until_it_works_again() -> None:
    world = World()
    world.fall_ill("input-*", "403")
    runner = world.runner()
    seen: list[dict[str, str]] = []

    def look() -> bool:
        seen.append(runner.set_aside())
        return world.have_all_ended()

    world.run(runner, look, world.get_well, lambda: world.has_ended(ILL))
    assert seen[-1] == {ILL: f"batches/{ILL}/input-n.jsonl: 403 on purpose"}
    assert runner.set_aside() == {}


def test_the_input_that_a_store_denies_to_have_in_one_way_only_ends_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    class Denied(Ill):
        __slots__ = ()

        def error(self, key: str) -> StoreError:
            return ObjectChanged(f"{key}: 412 on purpose")

    world.store.ills = [Denied(pattern=f"batches/{ILL}/input-*", answer="400")]
    head = world.store.head
    monkeypatch.setattr(world.store, "head", lambda key: world.store._inner.head(key) if "input-" in key else head(key))
    world.run(world.runner(), world.have_all_ended, world.get_well, lambda: world.has_ended(ILL))
    batch = batches.read_batch(world.ledger, ILL)
    assert batch is not None
    assert batch.reason == "completed"


@pytest.mark.parametrize("answer", [*REFUSALS, *UNANSWERED])
@pytest.mark.parametrize("name", [*READ_KEYS, "shards/*", "*"])
def test_a_janitor_looks_after_the_others(name: str, answer: IllAnswer) -> None:
    world = World()
    janitor = Janitor(world.ledger, runner="s")
    for batch_id in [*HEALTHY, ILL]:
        batches.end(world.ledger, batch_id, "canceled")
    world.fall_ill(name, answer)
    for _ in range(4):
        janitor.tick()
        world.clock.sleep(15.0)
    world.store.ills = []
    states = {batch_id: found.state for batch_id in HEALTHY if (found := batches.read_batch(world.ledger, batch_id))}
    assert set(states.values()) == {"ended"}
    assert len(states) == len(HEALTHY)
    world.clock.sleep(60.0)
    janitor.tick()
    ill = batches.read_batch(world.ledger, ILL)
    assert ill is not None
    assert ill.state == "ended"


def test_a_janitor_does_not_ask_for_each_batch_where_the_store_answers_nobody() -> None:
    world = World()
    janitor = Janitor(world.ledger, runner="s")
    asked = 0

    class Counted(Ill):
        __slots__ = ()

        def error(self, key: str) -> StoreError:
            nonlocal asked
            asked += 1
            return super().error(key)

    world.store.ills = [Counted(pattern="batches/*", answer="500")]
    with pytest.raises(StoreUnavailable):
        janitor.tick()
    assert asked == UNANSWERED_MAX
    world.store.ills = []
