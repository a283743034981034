"""Clients: each sends a body until it is answered, watches its batch, and reads what comes of it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from batchfile.errors import BatchDamaged, InvalidFile, KeyReused, StoreError
from tests.helpers.ledger import BatchSnapshot, Cursor, iter_live
from tests.helpers.service import Caller, Refusal
from tests.sim.actors import TENANT, NoAnswer, Replica, Stage
from tests.sim.bodies import Sent, Way
from tests.sim.world import Process

T = TypeVar("T")


class Refused(Exception):
    """Answered with 4xx."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """What a client does besides sending and reading."""

    begins_after_s: float = 0.0
    refusable: Sent | None = None  # is sent first, under the same key
    way: Way = "upload"
    has_key: bool = True  # else its attempts are numbered, as the official SDKs do
    lines_per_range: int = 2
    has_twin: bool = False  # the same create at the same time, by another replica
    hangs_up: float = 0.0  # how often it does not wait for an answer
    cancels_after_s: float | None = None
    repeats: bool = False  # the create, after it was answered
    reads_live: bool = False
    num_watchers: int = 0  # further ones that ask for the status all the time
    deletes: bool = False
    deletes_at_once: bool = False  # which is refused until it has ended
    tenant: str = TENANT  # of uploads; all others are of this one


@dataclass(slots=True, kw_only=True, eq=False)
class Client:
    stage: Stage
    sent: Sent
    create_options: CreateOptions
    is_done: bool = False
    num_asking: int = 0  # also for a twin, say, after it is done itself
    rng: Random = field(init=False)
    process: Process = field(init=False)

    @property
    def caller(self) -> Caller:
        return Caller(tenant=self.create_options.tenant, key="k")

    def __post_init__(self) -> None:
        self.process = Process(self.stage.world, f"client-{self.sent.key}")
        self.rng = self.process.rng
        self.stage.world.spawn(self.process, self._run)

    def _run(self) -> None:
        world, model, create_options, sent = self.stage.world, self.stage.model, self.create_options, self.sent
        model.sent[sent.sha256] = sent
        world.sleep(create_options.begins_after_s)
        if create_options.refusable is not None:
            self._send_refusable(create_options.refusable)
        if create_options.has_twin:
            world.spawn(self.process, self._create)
        batch_id = self._create()
        if batch_id is None:
            self.is_done = True
            return
        if create_options.reads_live:
            world.spawn(self.process, self._read_live, batch_id)
        for number in range(create_options.num_watchers):
            world.spawn(self.process, self._stare, batch_id, f"watcher-{number}")
        if create_options.deletes_at_once:
            world.spawn(self.process, self._delete_at_once, batch_id)
        try:
            self._follow(batch_id)
        except Refused as error:
            if not create_options.deletes_at_once:
                self.stage.model.fail(3, f"{batch_id} exists, and its client was told {error.__cause__!r}")
        self.is_done = True

    def _follow(self, batch_id: str) -> None:
        self._watch(batch_id)
        self._read(batch_id)
        if self.create_options.repeats:
            self._create()
        if self.create_options.deletes:
            self._delete(batch_id)

    def _send_refusable(self, body: Sent) -> None:
        self.stage.model.sent[body.sha256] = body
        try:
            self._ask(lambda api, num: api.create(body.data, body.key, num, tenant=self.create_options.tenant))
        except Refused:
            self.stage.model.refused(body)
        else:
            self.stage.model.fail(4, f"a body that cannot run was accepted with the key {body.key}")

    def _create(self) -> str | None:
        """The batch, however many attempts it takes; None where the key was used up by what was refused before."""
        sent, create_options = self.sent, self.create_options

        def create(api: Replica, num: int) -> str:
            if create_options.way == "stored":
                return api.create_of_stored(sent.data, sent.key).batch_id
            if create_options.way == "local":
                return api.create_from_file(sent.data, sent.key, create_options.lines_per_range).batch_id
            key, waits_s = sent.key if create_options.has_key else None, 20.0 * self.rng.random()
            waits_s = 0.0 if create_options.has_key else waits_s
            return api.create(sent.data, key, num, tenant=create_options.tenant, waits_s=waits_s).batch_id

        try:
            batch_id = self._ask(create)
        except Refused as error:
            self.stage.model.refused(sent, for_good=False)  # what a key stands for may be forgotten
            if create_options.refusable is None or not isinstance(error.__cause__, KeyReused):
                self.stage.model.fail(4, f"a good body was refused: {error.__cause__!r}")
            return None
        self.stage.world.say(self.process.name, f"has {batch_id}")
        self.stage.model.created(sent, batch_id)
        return batch_id

    def _watch(self, batch_id: str) -> None:
        """Until it has ended."""
        world, create_options, since = self.stage.world, self.create_options, self.stage.world.now
        is_canceled = create_options.cancels_after_s is None
        while True:
            if not is_canceled and world.now - since >= (create_options.cancels_after_s or 0.0):
                is_canceled = True
                self._ask(lambda api, num: api.service.cancel(self.caller, batch_id))
                self.stage.model.batches[batch_id].canceled_at = world.now
                world.say(self.process.name, f"canceled {batch_id}")
            if self._status(batch_id, self.process.name):
                return
            world.sleep(2.0 + 8.0 * self.rng.random())

    def _stare(self, batch_id: str, name: str) -> None:
        with suppress(Refused):  # it was deleted
            while not self._status(batch_id, f"{name} of {self.process.name}"):
                self.stage.world.sleep(0.2 * self.rng.random())

    def _status(self, batch_id: str, watcher: str) -> bool:
        def look(api: Replica, num: int) -> tuple[str, BatchSnapshot]:
            return api.name, api.service.read(self.caller, batch_id)

        replica, found = self._ask(look)
        status = found.status
        reader = f"{watcher} by {replica}"
        self.stage.model.seen(reader, batch_id, status.counts, status.total, has_ended=status.has_ended)
        return status.has_ended

    def _read(self, batch_id: str) -> None:
        for _ in range(2):
            data = self._ask(lambda api, num: b"".join(api.service.results(self.caller, batch_id)))
            self.stage.model.read(batch_id, data)

    def _read_live(self, batch_id: str) -> None:
        """One connection: where it breaks, so does this."""

        def follow(api: Replica) -> None:
            cursor = Cursor()
            while not cursor.is_over:
                for number, result in iter_live(api.service.ledger, batch_id, cursor):
                    self.stage.model.read_live(batch_id, number, result)
                api.world.sleep(3.0)
            known = self.stage.model.batches[batch_id]
            if known.record.state == "ended" and cursor.num_given != known.record.total:
                self.stage.model.fail(1, f"{batch_id}: {cursor.num_given} results were read live")

        try:
            self._replica().ask(follow, patience_s=1e6)
        except (NoAnswer, StoreError, BatchDamaged):
            return

    def _delete_at_once(self, batch_id: str) -> None:
        self.stage.world.sleep(10.0 * self.rng.random())
        self.stage.model.batches[batch_id].is_unwanted = True
        with suppress(Refused):
            self._ask(lambda api, num: api.service.delete(self.caller, batch_id))

    def _delete(self, batch_id: str) -> None:
        self.stage.model.batches[batch_id].is_unwanted = True
        with suppress(Refused):  # an earlier attempt did it
            self._ask(lambda api, num: api.service.delete(self.caller, batch_id))
        try:
            self._ask(lambda api, num: api.service.read(self.caller, batch_id))
        except Refused:
            return
        self.stage.model.fail(3, f"{batch_id} was deleted and is there")

    def _ask(self, do: Callable[[Replica, int], T]) -> T:
        """Again and again, of any replica, until there is an answer that is final. Raises: Refused."""
        self.num_asking += 1
        try:
            return self._ask_until_answered(do)
        finally:
            self.num_asking -= 1

    def _ask_until_answered(self, do: Callable[[Replica, int], T]) -> T:
        num = 0
        while True:
            patience_s = 300.0
            if self.rng.random() < self.create_options.hangs_up and self.stage.world.now < self.stage.model.calm_since:
                patience_s = 3.0 * self.rng.random()
            try:
                return self._replica().ask(lambda api, num=num: do(api, num), patience_s=patience_s)  # type: ignore[misc]
            except (InvalidFile, KeyReused) as error:
                if (
                    self.create_options.way == "upload"
                ):  # else it took so long that it counted as abandoned and was swept
                    raise Refused from error
            except Refusal as error:
                if error.status < 500:
                    raise Refused from error
            except (NoAnswer, StoreError, BatchDamaged) as error:
                self.stage.world.say(self.process.name, f"tries again after {error!r}")
            num += 1
            self.stage.world.sleep(1.0 + 4.0 * self.rng.random())

    def _replica(self) -> Replica:
        return self.rng.choice(self.stage.replicas)
