"""Files in the inbox: who drops, replaces and removes them, and what must come of each version in the outbox.

The last word on a file, a receipt or a rejection, comes once for each version that stays, and never goes back to an
older one.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NoReturn

from tests.helpers.inbox import documents, dropped_file, outbox
from tests.helpers.ledger import BatchRecord
from tests.helpers.store import Object
from tests.sim import bodies
from tests.sim.bodies import Sent
from tests.sim.store import SharedStore
from tests.sim.world import Process, World

# nothing: no line of it can run. nowhere: its folder is not a pool. killer: any process that reads it dies.
FileKind = Literal["good", "good", "nothing", "nowhere", "killer"]
KINDS: tuple[FileKind, ...] = ("good", "good", "good", "nothing", "nowhere", "killer")
LOOK_S = 5.0


@dataclass(slots=True, kw_only=True, eq=False)
class Version:
    """One version of one file. `number` counts them; `is_gone`: it was replaced or removed."""

    sent: Sent
    key: str
    number: int
    kind: FileKind
    etag: str
    modified_at: float
    is_gone: bool = False
    batch_ids: list[str] = field(default_factory=list)


class Files:
    """What is known of all that was dropped. `fail`: is told what must never happen."""

    def __init__(self, world: World, store: SharedStore, fail: Callable[[str], NoReturn]) -> None:
        self._fail = fail
        self._world = world
        self._store = store
        self._versions: dict[tuple[str, str], Version] = {}
        self._last_word: dict[str, int] = {}  # of a file: the number of the version that it is about

    def drop(self, sent: Sent, key: str, number: int, kind: FileKind) -> Version:
        etag = self._store.put(key, sent.data)
        self.gone(key)
        version = Version(sent=sent, key=key, number=number, kind=kind, etag=etag, modified_at=self._world.now)
        self._versions[key, etag] = version
        return version

    def gone(self, key: str) -> None:
        """All its versions so far."""
        for version in self._versions.values():
            version.is_gone = version.is_gone or version.key == key

    def made(self, batch: BatchRecord) -> Version:
        """A batch was made of a dropped file."""
        dropped = dropped_file(batch)
        assert dropped is not None
        version = self._versions.get((dropped.key, dropped.etag))
        if version is None:
            self._fail(f"{batch.batch_id} was made of a version of {dropped.key} that nobody dropped")
        self._must(int(version.modified_at) == int(dropped.modified_at), f"{batch.batch_id} is of another time")
        self._must(version.kind != "nowhere", f"{batch.batch_id} was made of {dropped.key}, which is for nobody")
        version.batch_ids.append(batch.batch_id)
        self._must(len(version.batch_ids) == 1, f"{version.batch_ids} were made of one version of {dropped.key}")
        return version

    def of(self, batch: BatchRecord) -> Version | None:
        dropped = dropped_file(batch)
        return None if dropped is None else self._versions[dropped.key, dropped.etag]

    def put(self, key: str, old: Object | None, data: bytes, states: dict[str, str]) -> None:
        """Something was written to the outbox. `states`: of all batches."""
        found = _last_word(key, data)
        if found is None:
            return
        name, document = found
        version = self._versions[document.input.path, document.input.etag]
        before = self._last_word.get(name, -1)
        self._must(version.number >= before, f"{key}: the last word is of version {version.number} after {before}")
        self._last_word[name] = version.number
        if document.batch_id is not None:
            state = states.get(document.batch_id)
            self._must(state in {"ended", "deleted"}, f"{key} tells of {document.batch_id}, which is {state}")
        is_rejected = isinstance(document, documents.OutboxRejection)
        wanted = {"good": False, "nothing": True, "nowhere": True, "killer": True}[version.kind]
        # Of three deaths that were chance nobody can tell that they were; what is gone is told of either way.
        is_late = isinstance(document, documents.OutboxReceipt) and document.reason == "expired"
        self._must(is_rejected == wanted or version.is_gone or version.kind == "good" or is_late, f"{key}: {data!r}")
        was = None if old is None else documents.read(old.data, type(document))
        if was is not None and was.batch_id == document.batch_id and isinstance(document, documents.OutboxReceipt):
            self._must(was.results == document.results, f"{key} was written again, with other results")  # type: ignore[union-attr]

    def is_told(self, version: Version) -> bool:
        """Is the last word about this version there, or nobody waits for it?"""
        return version.is_gone or self._last_word.get(version.key.removeprefix("inbox/")) == version.number

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            self._fail(what)

    def check_rest(self, results: dict[str, bytes | None], *, is_quiet: bool) -> None:
        """At the end. `results`: of each batch. `is_quiet`: nothing went wrong.

        Else a process may have been held up between its last look and a write that has no condition (see
        `inbox/outbox.py`): then the results of an older version lie there.
        """
        all_of = list(self._versions.values())
        for version in all_of:
            if version.is_gone:
                continue
            self._must(self.is_told(version), f"nothing came of version {version.number} of {version.key}")
            receipt = self._document(version.key, outbox.RECEIPT, documents.OutboxReceipt)
            if receipt is None or receipt.input.etag != version.etag or receipt.results is None:
                continue
            if not is_quiet and any(other.key == version.key and other is not version for other in all_of):
                continue
            published = self._store.peek(f"outbox/{version.key.removeprefix('inbox/')}.{outbox.RESULTS}")
            self._must(
                published == results.get(receipt.batch_id), f"{version.key}: other results than those of its batch"
            )
            self._must(
                hashlib.sha256(published or b"").hexdigest() == receipt.results.sha256, f"{version.key}: a wrong digest"
            )

    def _document(self, key: str, kind: str, of: type[documents.OutboxReceipt]) -> documents.OutboxReceipt | None:
        data = self._store.peek(f"outbox/{key.removeprefix('inbox/')}.{kind}")
        return None if data is None else documents.read(data, of)


def _last_word(key: str, data: bytes) -> tuple[str, documents.OutboxReceipt | documents.OutboxRejection] | None:
    for ending, kind in ((outbox.RECEIPT, documents.OutboxReceipt), (outbox.REJECTED, documents.OutboxRejection)):
        if key.endswith(f".{ending}"):
            document = documents.read(data, kind)
            assert document is not None, f"{key} cannot be read"
            return key.removeprefix("outbox/").removesuffix(f".{ending}"), document
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """`kinds`: of each version that is dropped, `pause_s` after the one before. `removes`: the last one too, then."""

    kinds: tuple[FileKind, ...]
    begins_s: float
    pause_s: float
    removes: bool
    num_lines: int
    odd: float


class Dropper:
    """Has a file of its own, and reads the outbox until the last word about it is there."""

    def __init__(self, world: World, files: Files, name: str, habits: Habits, pools: tuple[str, ...]) -> None:
        self.is_done = False
        self.key = f"inbox/{'nowhere' if 'nowhere' in habits.kinds else 'work'}/{name}.jsonl"
        self.sent: list[Sent] = []
        self._world, self._files, self._habits, self._pools = world, files, habits, pools
        self._store = files._store
        self._rng = Random(f"{world.seed}/{name}")
        process = Process(world, f"drops-{name}")
        for number, kind in enumerate(habits.kinds):
            self.sent.append(self._body(f"{name}v{number}", kind))
        world.spawn(process, self._run)

    @property
    def is_killer(self) -> bool:
        return "killer" in self._habits.kinds

    def _run(self) -> None:
        habits, version = self._habits, None
        self._world.sleep(habits.begins_s)
        for number, kind in enumerate(habits.kinds):
            if number:
                self._world.sleep(habits.pause_s)
            if kind == "killer":
                self._store.killers.add(self.sent[number].data)
            version = self._files.drop(self.sent[number], self.key, number, kind)
            self._world.say("dropper", f"drops version {number} of {self.key}: {kind}")
        if habits.removes:
            self._world.sleep(habits.pause_s)
            self._files.gone(self.key)
            self._store.delete(self.key)
            self._world.say("dropper", f"removes {self.key}")
        assert version is not None
        while not self._files.is_told(version):
            self._world.sleep(LOOK_S)
        self.is_done = True

    def _body(self, name: str, kind: FileKind) -> Sent:
        habits = self._habits
        if kind == "nothing":
            return Sent(key=name, lines=[bodies.line(name, "rejected", self._pools[0], 1)] * 2 + [_broken(name)])
        return bodies.draw(self._rng, name, self._pools, num_lines=habits.num_lines, way="local", odd=habits.odd)


def _broken(name: str) -> bodies.SentLine:
    """So that no two versions are the same bytes."""
    return bodies.SentLine(None, "rejected", "", f"no request: {name}".encode())


def habits(rng: Random) -> Habits:
    num = rng.choice((1, 1, 2, 3))
    kinds = tuple(rng.choice(KINDS) for _ in range(num))
    if "nowhere" in kinds:
        kinds = ("nowhere",)
    return Habits(
        kinds=kinds,
        begins_s=30.0 * rng.random(),
        pause_s=rng.choice((3.0, 20.0, 60.0)) * rng.random(),
        removes=rng.random() < 0.15,
        num_lines=rng.randrange(2, 6),
        odd=0.0,
    )
