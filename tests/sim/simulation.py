"""One schedule from one seed: draw a world, let things go wrong, then calm, and every promise is checked."""

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from unittest.mock import patch

from batchfile.ledger import cutter, long_work
from batchfile.ledger.base import Limits
from batchfile.ledger.steward import RELOOK_S
from batchfile.settings import Settings
from batchfile.settings_tables import Pool
from tests.sim import bodies, illness
from tests.sim.actors import Shape, Stage, seeded_secrets
from tests.sim.clients import Client, Wishes
from tests.sim.faults import Drawn, Fault, Given
from tests.sim.illness import Illness
from tests.sim.invariants import HEALTHY_S_MAX, Model
from tests.sim.world import START, World

TTL_S = 30.0
CHECKPOINT_S = 5.0
GHOST_S_MAX = 3 * TTL_S
CALM_S_MAX = 3000.0  # in which everything must have ended; a line that kills its process takes the longest

POOLS = ("one", "two")
WAYS: tuple[bodies.Way, ...] = ("upload", "upload", "upload", "local", "stored")
SETTINGS = Settings.model_construct(
    pools={name: Pool(model=f"model-{name}", engine="echo") for name in POOLS},
    stages={"work": "one"},
    api=Settings.model_fields["api"].default,
)


@dataclass(slots=True, kw_only=True)
class Outcome:
    seed: int | str
    error: BaseException | None
    struck: list[Fault]
    num_calls: int
    num_batches: int
    num_deaths: int
    virtual_s: float
    trace: list[str] = field(default_factory=list)


def run(seed: int | str, *, given: Sequence[Fault] | None = None, is_traced: bool = False) -> Outcome:
    """`given`: exactly these faults, in the world of this seed; None: those that the seed draws."""
    rng = Random(f"{seed}/scene")
    world = World(seed, is_traced=is_traced)
    troubled_s = rng.choice((40.0, 90.0, 200.0))
    drawn = Drawn(seed, ttl_s=TTL_S, ends_at=START + troubled_s)
    faults = drawn if given is None else Given(given)
    model = Model(world)
    error: BaseException | None = None
    gc.disable()  # a collection would end dead strands at any moment
    try:
        with ExitStack() as stack:
            stack.enter_context(seeded_secrets(seed))
            stack.enter_context(patch.object(cutter, "RANGE_LINES_MIN", rng.choice((1, 2, 3))))
            stack.enter_context(patch.object(long_work, "LONG_BYTES", rng.choice((0, long_work.LONG_BYTES))))
            stage = Stage(world, _shape(rng), SETTINGS, faults, model)
            model.store = stage.store
            num_clients, needs_key = rng.choice((1, 1, 2, 3)), not drawn.is_age_known
            clients = [_client(rng, stage, number, needs_key=needs_key) for number in range(num_clients)]
            stage.store.illness = illness.draw(rng, [client.sent for client in clients])
            try:
                _play(world, stage, clients, troubled_s, faults)
            except Exception as raised:
                error = raised
            num_deaths = sum(process.is_dead for process in world.processes)  # closing the world ends those that live
            world.close()
    finally:
        gc.enable()
    return Outcome(
        seed=seed,
        error=error,
        struck=faults.struck,
        num_calls=world.num_calls,
        num_batches=len(model.batches),
        num_deaths=num_deaths,
        virtual_s=world.now - START,
        trace=world.trace or [],
    )


def _play(world: World, stage: Stage, clients: list[Client], troubled_s: float, faults: Drawn | Given) -> None:
    model = stage.model

    def is_over() -> bool:
        if not all(client.is_done and client.num_asking == 0 for client in clients) or not model.is_settled():
            return False
        return not any(replica.is_serving for replica in stage.replicas)  # a create that nobody waits for, say

    if not world.run(is_over, for_s=troubled_s):
        model.calm_since = world.now + GHOST_S_MAX
        if stage.store.illness is not None:
            _end_all_but_the_ill(world, stage, clients, stage.store.illness)
        if not world.run(is_over, for_s=CALM_S_MAX):
            model.check_rest(is_quiet=False)
            waiting = [client.sent.key for client in clients if not client.is_done]
            model.fail(6, f"the clients of {waiting} wait for ever")
    is_quiet = not faults.struck and not any(client.wishes.hangs_up for client in clients)
    model.check_rest(is_quiet=is_quiet)
    gone = [batch_id for batch_id, known in model.batches.items() if known.record.state == "deleted"]
    if gone:
        _sleep_over_it(world, stage, gone)


def _end_all_but_the_ill(world: World, stage: Stage, clients: list[Client], illness: Illness) -> None:
    """While one of its objects stays ill. Then it gets well."""
    model = stage.model

    def is_over() -> bool:
        is_done = all(client.is_done for client in clients if client.sent is not illness.sent)
        return is_done and model.is_settled(but=illness.sent)

    num_words = sum(line.num_words for client in clients for line in client.sent.lines)
    if not world.run(is_over, for_s=HEALTHY_S_MAX + num_words * stage.shape.token_s):
        model.check_rest(is_quiet=False, but=illness.sent)
        model.fail(9, f"a client waits, because of {illness}")
    illness.is_over = True
    world.say("", "the store is well")


def _sleep_over_it(world: World, stage: Stage, gone: list[str]) -> None:
    """Long after a delete nothing of the batch is left."""
    stage.is_night = True
    for process in stage.runners.values():
        process.kill()
    world.run(lambda: False, for_s=RELOOK_S + stage.shape.limits.tombstone_s + 100.0)
    for batch_id in gone:
        left = [entry.key for entry in stage.store.list(f"batches/{batch_id}/")]
        if left and left != [f"batches/{batch_id}/batch.json"]:  # two stewards may have put up its tombstone again
            stage.model.fail(3, f"{batch_id} was deleted long ago, and {left} are left")
    stage.model.check_rest(is_quiet=False)


def limits(*, completion_window_s: float, abandoned_s: float) -> Limits:
    """All of the protocol's times in the proportions of a bucket's, but smaller. A tombstone outlives every ghost."""
    return Limits(
        lease_ttl_s=TTL_S,
        checkpoint_s=CHECKPOINT_S,
        grace_s=10.0,
        completion_window_s=completion_window_s,
        retention_s=24 * 3600.0,
        abandoned_s=abandoned_s,
        download_grace_s=60.0,
        tombstone_s=600.0,
    )


def _shape(rng: Random) -> Shape:
    window_s, abandoned_s = rng.choice((24 * 3600.0,) * 9 + (60.0,)), rng.choice((45.0, 3600.0))
    return Shape(
        limits=limits(completion_window_s=window_s, abandoned_s=abandoned_s),
        pools=POOLS,
        runners_per_pool=rng.choice((1, 2, 2, 3)),
        num_slots=rng.choice((1, 2, 4)),
        token_s=rng.choice((0.5, 2.0, 6.0)),
        num_in_flight=rng.choice((1, 4)),
        knows_the_dead=rng.random() < 0.3,
    )


def _client(rng: Random, stage: Stage, number: int, *, needs_key: bool) -> Client:
    """`needs_key`: a create without one can not tell its own retry from one that came before it."""
    key, way = f"k{number}", rng.choice(WAYS)
    odd = rng.choice((0.0, 0.0, 0.0, 0.0, 0.1))
    pools, num_lines = POOLS[: rng.choice((1, 2, 2))], rng.randrange(2, 9)
    sent = bodies.draw(rng, key, pools, num_lines=num_lines, way=way, odd=odd)
    has_key = way != "upload" or rng.random() < 0.5 or needs_key
    may_refuse = way == "upload" and has_key and rng.random() < 0.2
    wishes = Wishes(
        begins_after_s=rng.random() * rng.choice((1.0, 30.0)),
        refusable=bodies.refusable(key, POOLS) if may_refuse else None,
        way=way,
        lines_per_range=rng.choice((1, 2, 3)),
        has_key=has_key,
        has_twin=has_key and rng.random() < 0.2,
        hangs_up=rng.choice((0.0, 0.0, 0.3)),
        cancels_after_s=rng.random() * 40.0 if rng.random() < 0.3 else None,
        repeats=has_key and rng.random() < 0.3,
        reads_live=rng.random() < 0.2,
        num_watchers=rng.choice((0,) * 19 + (2,)),
        deletes=rng.random() < 0.05,
        deletes_at_once=rng.random() < 0.05,
    )
    return Client(stage=stage, sent=sent, wishes=wishes)


def shrink(outcome: Outcome) -> Outcome:
    """The same promise broken by fewer faults: halves are left out, then quarters, at last one by one."""
    best = run(outcome.seed, given=outcome.struck)
    if not _is_alike(best, outcome):
        return outcome
    size = max(len(best.struck) // 2, 1)
    while True:
        at, before = 0, len(best.struck)
        while at < len(best.struck):
            found = run(outcome.seed, given=best.struck[:at] + best.struck[at + size :])
            if _is_alike(found, outcome) and len(found.struck) < len(best.struck):
                best = found
            else:
                at += size
        if size == 1 and len(best.struck) == before:
            return best
        size = max(size // 2, 1)


def _is_alike(one: Outcome, other: Outcome) -> bool:
    return str(one.error)[:10] == str(other.error)[:10] and one.error is not None
