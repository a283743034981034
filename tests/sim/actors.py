"""Who takes part: runners and API replicas that a supervisor starts again, and what is asked of a replica.

All of them run the real code. Knows no promise and no fault.
"""

import hashlib
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar
from unittest.mock import patch

from pydantic import SecretStr

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import BatchfileError, StoreError
from batchfile.types import Defaults
from tests.helpers.inbox import FileRecord, Inbox, Janitor, LongWork
from tests.helpers.inbox import source_of_file as source
from tests.helpers.ledger import BatchRecord, Limits, batches, idempotency, keys
from tests.helpers.lines import URL
from tests.helpers.plan import CreateOptions, pending, plan_input
from tests.helpers.service import Refusal, Service, WebhookSender
from tests.helpers.service import create as api_create
from tests.helpers.settings import Settings, Webhook
from tests.sim.engine import SimEngine
from tests.sim.green import Event
from tests.sim.invariants import Model
from tests.sim.store import Faults, ProcessStore, SharedStore
from tests.sim.world import Process, World

T = TypeVar("T")
TENANT = "default"
HOOKS = {
    TENANT: Webhook(url="https://receiver.example/hook", secret=SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
}


class NoAnswer(Exception):
    """The connection broke: whether the request was served is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a world is. `token_s`: what a word costs the engine."""

    limits: Limits
    pools: tuple[str, ...] = ("one", "two")
    runners_per_pool: int = 2
    num_replicas: int = 2
    num_slots: int = 2
    token_s: float = 2.0
    restart_s_max: float = 40.0
    num_in_flight: int = 1  # calls of the store that one verb makes at once
    knows_the_dead: bool = False  # as a directory does: a killed runner's leases are free at once
    has_inbox: bool = False
    has_webhooks: bool = False


class Stage:
    """The store, the processes over it, and the supervisor that starts them again."""

    def __init__(self, world: World, shape: Shape, settings: Settings, faults: Faults, model: Model) -> None:
        self.world, self.shape, self.settings, self.faults, self.model = world, shape, settings, faults, model
        self.is_night = False  # nobody is started again
        self.store = SharedStore(ProcessClockOfTheStore(world))
        self.store.watcher = model
        model.limits = shape.limits
        self.runners: dict[str, RunnerProcess] = {}
        self.replicas: list[Replica] = []
        self.supervisor = Process(world, "supervisor")
        for pool in shape.pools:
            for number in range(shape.runners_per_pool):
                self.start_runner(f"{pool}-{number}", pool, 0)
        for number in range(shape.num_replicas):
            self.replicas.append(Replica(self, f"api-{number}", 0))

    def start_runner(self, name: str, pool: str, life: int) -> None:
        process = self.runners[name] = RunnerProcess(self, name, pool, life)
        process.on_kill.append(lambda: self._buried(process))

    def _buried(self, process: "RunnerProcess") -> None:
        if self.shape.knows_the_dead:
            self.store.kill(process.name)
        if self.is_night:
            return
        delay_s = process.rng.random() * self.shape.restart_s_max
        self.world.at(delay_s, lambda: self.start_runner(process.role, process.pool, process.life + 1))

    def replace_replica(self, replica: "Replica") -> None:
        place = self.replicas.index(replica)

        def start() -> None:
            self.replicas[place] = Replica(self, replica.role, replica.life + 1)

        self.world.at(replica.rng.random() * self.shape.restart_s_max / 4, start)

    def ledger_of(self, process: Process) -> Ledger:
        store = ProcessStore(process, self.store, self.faults)
        rng = Random(f"{self.world.seed}/{process.name}/ledger")
        return Ledger(
            store=store, clock=process.clock, rng=rng, limits=self.shape.limits, num_in_flight=self.shape.num_in_flight
        )

    def inbox_of(self, ledger: Ledger) -> Inbox | None:
        return Inbox(ledger, self.settings.routing()) if self.shape.has_inbox else None


class ProcessClockOfTheStore:
    """The store's own clock: right."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.now

    def monotonic(self) -> float:
        return self._world.now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a store does not sleep")


class RunnerProcess(Process):
    """`runner.run()` with its threads as strands. Ends with an error: it is started again, as after a kill."""

    def __init__(self, stage: Stage, role: str, pool: str, life: int) -> None:
        super().__init__(stage.world, f"{role}.{life}")
        self.role, self.pool, self.life = role, pool, life
        self._stage = stage
        ledger = stage.ledger_of(self)
        options = RunnerOptions(runner_id=self.name, pool=pool, is_janitor=life % 2 == 0, inbox=stage.inbox_of(ledger))
        self.runner = Runner(ledger, self._engine, options)
        stage.world.spawn(self, self._run)

    def term(self) -> None:
        super().term()
        self.runner.stop()

    def _engine(self) -> SimEngine:
        shape = self._stage.shape
        return SimEngine(self, self._started, num_slots=shape.num_slots, token_s=shape.token_s)

    def _started(self, key: int, custom_id: str) -> None:
        item = self.runner._state.in_flight[key]  # the simulator looks where no other test has to
        self._stage.model.started(self, item.shard.held, item.line, custom_id)

    def _run(self) -> None:
        try:
            self.runner.run()
        except StoreError as error:
            self._stage.model.fail(9, f"{self.name} ended with {error!r}")
        except BatchfileError as error:
            self.world.say(self.name, f"ended with {error!r}")
        self.kill()


class Replica(Process):
    """One API process: its janitor, and whatever it is asked."""

    def __init__(self, stage: Stage, role: str, life: int) -> None:
        super().__init__(stage.world, f"{role}.{life}")
        self.role, self.life = role, life
        self._stage = stage
        self._calls: list[Call] = []
        self.arrived_at = 0.0  # the call that begins just now
        self.service = Service(stage.ledger_of(self), stage.settings, self.name)
        ledger = self.service.ledger
        long_work = LongWork(ledger, self.name)
        webhook_sender = WebhookSender(ledger, HOOKS if stage.shape.has_webhooks else {})
        janitor = Janitor(
            ledger,
            runner=self.name,
            reader=self.service.reader,
            on_ended=webhook_sender.on_ended,
            inbox=stage.inbox_of(ledger),
            defer=long_work.take,
        )
        self._background = [stage.world.spawn(self, janitor.run, Event())]
        if stage.shape.has_webhooks:
            self._background.append(stage.world.spawn(self, webhook_sender.run, Event()))
        self.on_kill.append(self._hang_up)

    @property
    def is_serving(self) -> bool:
        """Is a request under way, or an attempt to tell somebody?"""
        return any(not strand.is_over and strand not in self._background for strand in self.strands)

    def create(
        self, body: bytes, key: str | None, retry_count: int, *, tenant: str, waits_s: float = 0.0
    ) -> BatchRecord:
        """`waits_s`: for others whose bodies become batches."""
        arrived_at = self.arrived_at
        if waits_s:
            self.world.sleep(waits_s)
        options = CreateOptions(
            tenant=tenant, stage="work", idempotency_key=key, retry_count=retry_count, arrived_at=arrived_at
        )
        return api_create.create_batch(
            self.service.ledger,
            self._stage.settings,
            Body(body),  # type: ignore[arg-type]  # what is asked of a spooled body
            options,
            content_type="application/x-ndjson",
        )

    def create_from_file(self, body: bytes, key: str, lines_per_range: int) -> BatchRecord:
        """As a local run does: the input is stored first, and what cannot run is rejected line by line."""
        ledger, routing = self.service.ledger, self._stage.settings.routing()
        keyed = idempotency.get_or_create(
            ledger, kind="file", tenant=TENANT, value=key, digest=key, batch_id=f"file_{ledger.new_id()[:12]}"
        )
        standing = None if keyed.is_first else batches.read_batch(ledger, keyed.batch_id)
        if standing is not None:
            return standing
        draft = batches.Draft(
            batch_id=keyed.batch_id, routing=routing, defaults=Defaults(), created_at=keyed.created_at
        )
        batches.announce(ledger, draft)
        input_key = keys.input_key(draft.batch_id, ledger.new_id()[:12])
        ledger.store.put(input_key, body)
        planned = plan_input(ledger, draft.batch_id, input_key, routing=routing, lines_per_range=lines_per_range)
        return batches.create(ledger, draft, planned)

    def create_of_stored(self, body: bytes, key: str) -> BatchRecord:
        """Of a file that was stored before: the batch exists at once and is planned by the first process that comes."""
        ledger = self.service.ledger
        keyed = idempotency.get_or_create(
            ledger,
            kind="stored",
            tenant=TENANT,
            value=key,
            digest=key,
            batch_id=f"stored_{ledger.new_id()[:12]}",
        )
        standing = None if keyed.is_first else batches.read_batch(ledger, keyed.batch_id)
        if standing is not None:
            return standing
        file = FileRecord(
            file_id=key,
            tenant=TENANT,
            filename=key,
            purpose="batch",
            key=f"files/{key}",
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            created_at=0.0,
            expires_at=0.0,
        )
        if ledger.store.head(file.key) is None:
            ledger.store.put(file.key, body)
        draft = batches.Draft(
            batch_id=keyed.batch_id,
            routing=self._stage.settings.routing(),
            defaults=Defaults(),
            created_at=keyed.created_at,
        )
        return pending.create(ledger, draft, source(ledger, file, endpoint=URL, requests_max=100))

    def ask(self, do: Callable[["Replica"], T], *, patience_s: float) -> T:
        """From a client's strand. Raises: what `do` raises; NoAnswer, and `do` may go on all the same."""
        if self.is_process_dead:
            raise NoAnswer
        call: Call[T] = Call(self, do)
        self._calls.append(call)
        answer = call.wait(patience_s)
        if call in self._calls:
            self._calls.remove(call)
        return answer

    def _hang_up(self) -> None:
        for call in self._calls:
            call.done.set()
        self._stage.replace_replica(self)


class Call(Generic[T]):
    """A request on its way."""

    def __init__(self, replica: Replica, do: Callable[[Replica], T]) -> None:
        self.done = Event()
        self._answer: T | None = None
        self._error: Exception = NoAnswer()
        self._has_answer = False
        self._do = do
        replica.world.spawn(replica, self._serve, replica, replica.clock.monotonic())

    def wait(self, patience_s: float) -> T:
        self.done.wait(patience_s)
        if not self._has_answer:
            raise self._error
        return self._answer  # type: ignore[return-value]

    def _serve(self, replica: Replica, arrived_at: float) -> None:
        replica.arrived_at = arrived_at
        try:
            self._answer = self._do(replica)
            self._has_answer = True
        except (BatchfileError, Refusal) as error:
            self._error = error
        except Exception as error:  # no route expects it
            replica.world.broken = replica.world.broken or error
        self.done.set()


class Body:
    """A spooled body in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()

    def view(self) -> memoryview:
        return memoryview(self._data)


def seeded_secrets(seed: int | str) -> AbstractContextManager[object]:
    rng = Random(f"{seed}/secrets")
    return patch.object(secrets, "token_hex", lambda num: rng.randbytes(num).hex())
