"""One schedule from one seed: draw a world, let things go wrong, then calm, and every promise is checked."""

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Literal
from unittest.mock import patch

from tests.helpers.inbox import RELOOK_S, long_work
from tests.helpers.ledger import CRASHES_BEFORE_BISECT, CRASHES_OF_ONE_LINE, Limits
from tests.helpers.plan import ranges
from tests.helpers.settings import PoolSettings, Settings
from tests.sim import bodies, dropped, illness, receiver
from tests.sim.actors import Shape, Stage, seeded_secrets
from tests.sim.bodies import Sent
from tests.sim.clients import Client, CreateOptions
from tests.sim.dropped import Dropper, Files
from tests.sim.faults import Drawn, Fault, Given
from tests.sim.flood import SLOTS, Flood, words_until_served
from tests.sim.invariants import HEALTHY_S_MAX, Model
from tests.sim.receiver import Receiver
from tests.sim.world import START, World

TTL_S = 30.0
CHECKPOINT_S = 5.0
GHOST_S_MAX = 3 * TTL_S
# What a line that kills its process adds: every lease it ends runs out, and as long again may pass to the next claim.
KILLER_S = (CRASHES_BEFORE_BISECT + CRASHES_OF_ONE_LINE) * 2.5 * TTL_S
CALM_S_MAX = 3000.0  # in which everything must have ended; a line that kills its process takes the longest

POOLS = ("one", "two")
SceneKind = Literal["calls", "inbox", "flood"]
SCENES: tuple[SceneKind, ...] = ("calls",) * 14 + ("inbox",) * 5 + ("flood",)
WAYS: tuple[bodies.Way, ...] = ("upload", "upload", "upload", "local", "stored")
SETTINGS = Settings.model_construct(
    pools={name: PoolSettings(model=f"model-{name}", engine="echo") for name in POOLS},
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


@dataclass(slots=True, kw_only=True)
class Scene:
    """Who takes part in a schedule besides the processes of the service. `quiet`: all clients but a flood's."""

    world: World
    stage: Stage
    clients: list[Client]
    quiet: tuple[Client, ...]
    droppers: list[Dropper] = field(default_factory=list)
    flood: Flood | None = None

    def is_over(self) -> bool:
        model = self.stage.model
        if not all(client.is_done and client.num_asking == 0 for client in self.clients):
            return False
        if not all(dropper.is_done for dropper in self.droppers) or not model.is_settled() or not model.is_told():
            return False
        # A create that nobody waits for, say.
        return not any(replica.is_serving for replica in self.stage.replicas)

    def is_over_but(self, others: list[Sent]) -> bool:
        """For all whose batches are not of `others`."""
        return not self._waiting(others) and self.stage.model.is_settled(but=others)

    def waiting(self) -> list[str]:
        return self._waiting([])

    def _waiting(self, others: list[Sent]) -> list[str]:
        clients = [client.sent.key for client in self.clients if not client.is_done and client.sent not in others]
        files = [one.key for one in self.droppers if not one.is_done and not any(sent in others for sent in one.sent)]
        return clients + files


def run(
    seed: int | str, *, given: Sequence[Fault] | None = None, is_traced: bool = False, kind: SceneKind | None = None
) -> Outcome:
    """`given`: exactly these faults, in the world of this seed; None: those that the seed draws. So is `kind`."""
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
            stack.enter_context(patch.object(ranges, "RANGE_LINES_MIN", rng.choice((1, 2, 3))))
            stack.enter_context(patch.object(long_work, "LONG_BYTES", rng.choice((0, long_work.LONG_BYTES))))
            drawn_kind = rng.choice(SCENES)
            kind = kind or drawn_kind
            stage = Stage(world, _shape(rng, kind), SETTINGS, faults, model)
            model.store = stage.store
            num_clients, needs_key = rng.choice((1, 1, 2, 3)), not drawn.is_age_known
            clients = [_client(rng, stage, number, kind, needs_key=needs_key) for number in range(num_clients)]
            scene = Scene(world=world, stage=stage, clients=clients, quiet=tuple(clients))
            if kind == "flood":
                scene.flood = Flood(stage, clients, POOLS[0])
            elif num_clients > 1:
                stage.store.illness = illness.draw(rng, [client.sent for client in clients])
            if kind == "inbox":
                _add_inbox(rng, scene, stack, ends_at=START + troubled_s)
            try:
                _play(scene, troubled_s, faults)
            except Exception as raised:
                error = raised
            num_deaths = sum(
                process.is_process_dead for process in world.processes
            )  # closing the world ends those that live
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


def _add_inbox(rng: Random, scene: Scene, stack: ExitStack, *, ends_at: float) -> None:
    """Files are dropped too, and a tenant's server is told of every end."""
    world, model = scene.world, scene.stage.model
    model.files = Files(world, scene.stage.store, partial(model.fail, 10))
    for number in range(rng.choice((1, 1, 2))):
        scene.droppers.append(Dropper(world, model.files, f"d{number}", dropped.habits(rng), POOLS))
    trouble = rng.choice((0.0, 0.3, 0.8))
    model.receiver = Receiver(world, partial(model.fail, 8), trouble=trouble, is_well_at=ends_at)
    for patched in receiver.installed(model.receiver.post):
        stack.enter_context(patched)


def _play(scene: Scene, troubled_s: float, faults: Drawn | Given) -> None:
    world, stage, model = scene.world, scene.stage, scene.stage.model
    if not world.run(scene.is_over, for_s=troubled_s):
        model.calm_since = world.now + GHOST_S_MAX
        _serve_the_healthy(scene)
        if not world.run(scene.is_over, for_s=CALM_S_MAX):
            model.check_rest(is_quiet=False)
            model.is_told()
            model.fail(6, f"those wait for ever: {scene.waiting()}")
    _end_troubles(scene)
    is_disturbed = stage.store.illness is not None or any(dropper.is_killer for dropper in scene.droppers)
    is_quiet = not (faults.struck or is_disturbed or any(client.create_options.hangs_up for client in scene.clients))
    model.check_rest(is_quiet=is_quiet)
    gone = [batch_id for batch_id, known in model.batches.items() if known.record.state == "deleted"]
    if gone:
        _sleep_over_it(world, stage, gone)


def _serve_the_healthy(scene: Scene) -> None:
    """While something of another batch stays ill, a file kills what reads it, or another tenant floods their pool."""
    ill, flood, token_s = scene.stage.store.illness, scene.flood, scene.stage.shape.token_s
    others = [] if flood is None else flood.sent  # which grows
    others += [sent for dropper in scene.droppers if dropper.is_killer for sent in dropper.sent]
    others += [ill.sent] if ill is not None and ill.sent is not None else []
    if not others and ill is None:
        return
    lines = [line for client in scene.quiet for line in client.sent.lines]
    num_words = sum(line.num_words for line in lines)
    if flood is not None:
        batches = scene.stage.model.batches.values()
        num_words = words_until_served((known for known in batches if known.sent not in others), lines)
    num_killers = sum(line.kind == "killer" for line in lines)
    wait_s = HEALTHY_S_MAX + num_words * token_s + num_killers * KILLER_S
    if not scene.world.run(lambda: scene.is_over_but(others), for_s=wait_s):
        what = ill or flood or "a file that kills"
        scene.stage.model.fail(9, f"after {wait_s:.0f} s those still wait: {scene.waiting()}, because of {what}")
    _end_troubles(scene)
    scene.world.say("", "nothing is ill any more")


def _end_troubles(scene: Scene) -> None:
    """A flood too: it may rest for a moment when a schedule is over, and must not go on while no runner is alive."""
    if scene.stage.store.illness is not None:
        scene.stage.store.illness.is_over = True
    if scene.flood is not None:
        scene.flood.is_over = True


def _sleep_over_it(world: World, stage: Stage, gone: list[str]) -> None:
    """Long after a delete nothing of the batch is left."""
    stage.is_night = True
    for process in stage.runners.values():
        process.kill()
    world.run(lambda: False, for_s=RELOOK_S + stage.shape.limits.tombstone_s + 100.0)
    for batch_id in gone:
        left = [entry.key for entry in stage.store.list(f"batches/{batch_id}/")]
        if left and left != [f"batches/{batch_id}/batch.json"]:  # two janitors may have put up its tombstone again
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


def _shape(rng: Random, kind: SceneKind) -> Shape:
    window_s, abandoned_s = rng.choice((24 * 3600.0,) * 9 + (60.0,)), rng.choice((45.0, 3600.0))
    is_small = kind == "flood"  # so that there is always too much to do
    return Shape(
        limits=limits(completion_window_s=window_s, abandoned_s=abandoned_s),
        pools=POOLS,
        runners_per_pool=1 if is_small else rng.choice((1, 2, 2, 3)),
        num_slots=SLOTS if is_small else rng.choice((1, 2, 4)),
        token_s=rng.choice((0.5, 2.0, 6.0)),
        num_in_flight=rng.choice((1, 4)),
        knows_the_dead=rng.random() < 0.3,
        has_inbox=kind == "inbox",
        has_webhooks=kind == "inbox",
    )


def _client(rng: Random, stage: Stage, number: int, kind: SceneKind, *, needs_key: bool) -> Client:
    """`needs_key`: a create without one cannot tell its own retry from one that came before it.

    Next to a flood no line is odd: the time that a line takes which ends its process is not the flood's doing.
    """
    key, way = f"k{number}", rng.choice(WAYS)
    odd = rng.choice((0.0, 0.0, 0.0, 0.0, 0.1)) if kind != "flood" else 0.0
    pools, num_lines = POOLS[: rng.choice((1, 2, 2))], rng.randrange(2, 9)
    sent = bodies.draw(rng, key, pools, num_lines=num_lines, way=way, odd=odd)
    has_key = way != "upload" or rng.random() < 0.5 or needs_key
    may_refuse = way == "upload" and has_key and rng.random() < 0.2
    create_options = CreateOptions(
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
    return Client(stage=stage, sent=sent, create_options=create_options)


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
