"""A process's way to the store: every call is a switch, and may meet its fault there.

`SharedStore` is the truth that all processes share; it tells the model of every change.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from random import Random
from typing import Any, Protocol, Self, TypeVar

from batchfile.errors import PreconditionFailed, StoreError, StoreUnavailable
from batchfile.testing import Ill, MemoryStore
from tests.helpers.faults import NONSENSE
from tests.helpers.store import Clock, Entry, Object, Unchanged
from tests.sim.faults import Fault
from tests.sim.illness import Illness
from tests.sim.world import ANSWER_S_MAX, Gone, Process

T = TypeVar("T")
WRITES = frozenset({"put", "commit", "delete"})


class Watcher(Protocol):
    def put(self, key: str, old: Object | None, data: bytes) -> None: ...

    def deleted(self, key: str, old: Object) -> None: ...


class Faults(Protocol):
    struck: list[Fault]

    def at(self, process: str, call: int, verb: str, now: float) -> Fault | None: ...


class SharedStore(MemoryStore):
    """`illness`: what is wrong with one of its objects, no matter who asks for it."""

    watcher: Watcher
    illness: Illness | None = None

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.killers: set[bytes] = set()  # files whose reader dies

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        old = self._objects.get(key)
        etag = super().put(key, data, absent=absent, match=match)
        self.watcher.put(key, old, data)
        return etag

    def delete(self, key: str) -> None:
        old = self._objects.get(key)
        super().delete(key)
        if old is not None:
            self.watcher.deleted(key, old)

    def peek(self, key: str) -> bytes | None:
        found = self._objects.get(key)
        return None if found is None else found.data


class ProcessStore:
    """The Store of one process."""

    def __init__(self, process: Process, inner: SharedStore, faults: Faults) -> None:
        self._process = process
        self._inner = inner
        self._faults = faults

    @property
    def url(self) -> str:
        return "sim:"

    def get(self, key: str) -> Object | None:
        found = self._call("get", key, lambda: self._inner.get(key))
        return found

    def get_if_changed(self, key: str, etag: str) -> Object | Unchanged | None:
        return self._call("get", key, lambda: self._inner.get_if_changed(key, etag))

    def head(self, key: str) -> Entry | None:
        return self._call("head", key, lambda: self._inner.head(key))

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        chunks = self._call("stream", key, lambda: list(self._inner.stream(key, start, end, match=match)))
        if self._inner.killers and b"".join(chunks) in self._inner.killers:
            self._kill()
        yield from chunks

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        data = bytes(data)
        is_conditional = absent or match is not None
        write = lambda: self._inner.put(key, data, absent=absent, match=match)  # noqa: E731
        return self._call("put", key, write, is_conditional=is_conditional)

    def writer(self, key: str, *, is_new: bool = False) -> "ProcessWriter":
        return ProcessWriter(self, key)

    def commit(self, key: str, data: bytes) -> str:
        return self._call("commit", key, lambda: self._inner.put(key, data))

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        yield from self._call("list", prefix, lambda: list(self._inner.list(prefix, after=after)))

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._inner.delete(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        """One request: what is refused of it is said once the rest is gone."""

        def delete() -> None:
            ills = {key: ill for key in keys if (ill := self._illness(key, "delete")) is not None}
            self._inner.delete_many([key for key in keys if key not in ills])
            for key, ill in ills.items():
                raise ill.error(key)

        self._call("delete", f"{len(keys)} keys", delete)

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        return 0

    def link(self, key: str, path: str) -> str | None:
        return None

    def hold_process_lock(self, process: str) -> AbstractContextManager[None]:
        return self._inner.hold_process_lock(process)

    def is_process_dead(self, process: str) -> bool:
        return self._inner.is_process_dead(process)

    def check_locks(self) -> None:
        self._inner.check_locks()

    def _call(self, verb: str, key: str, do: Callable[[], T], *, is_conditional: bool = False) -> T:
        process, world = self._process, self._process.world
        if process.is_process_dead:
            raise Gone
        process.num_calls += 1
        world.num_calls += 1
        if world.now < process.cut_off_until:
            world.say(process.name, f"{process.num_calls:4d} {verb} {key}   !! unreachable")
            world.sleep(process.rng.random() * ANSWER_S_MAX)
            raise StoreUnavailable(f"{process.name} is cut off from the store")
        ill = self._illness(key, verb)
        if ill is not None:
            do = self._sick(ill, verb, key, do)
        fault = self._faults.at(process.name, process.num_calls, verb, world.now)
        if world.trace is not None:
            world.say(
                process.name,
                f"{process.num_calls:4d} {verb} {key}"
                + (f"   !! {fault.kind}" if fault else "")
                + (f"   !! {ill.answer}" if ill else ""),
            )
        if fault is None:
            travel = process.rng.random()
            if travel < 0.5:  # the way there is the long one
                world.sleep(travel * ANSWER_S_MAX)
                return do()
            done = do()
            world.sleep(travel * ANSWER_S_MAX)
            return done
        return self._strike(fault, verb, do, is_conditional=is_conditional)

    def _illness(self, key: str, verb: str) -> Ill | None:
        illness = self._inner.illness
        is_write = verb in WRITES
        return None if illness is None else illness.of(key, self._process.world.now, is_write=is_write)

    def _sick(self, ill: Ill, verb: str, key: str, do: Callable[[], T]) -> Callable[[], T]:
        """The call as it is answered while the object is ill."""

        def refuse() -> T:
            raise ill.error(key)

        def talk_nonsense() -> T:
            done: Any = do()
            if verb == "stream":
                return [NONSENSE]  # type: ignore[return-value]
            is_body = isinstance(done, Object) or done == "unchanged"
            return replace(self._inner.get(key) or done, data=NONSENSE, etag="nonsense") if is_body else done  # type: ignore[no-any-return]

        return talk_nonsense if ill.answer == "nonsense" else refuse

    def _strike(self, fault: Fault, verb: str, do: Callable[[], T], *, is_conditional: bool) -> T:
        process, world, kind = self._process, self._process.world, fault.kind
        process.disturbed_at = world.now
        if kind == "kill":
            self._kill()
        elif kind == "term":
            process.term()
        elif kind == "pause":
            process.pause(fault.amount)
        elif kind == "skew":
            process.clock.skew_s += fault.amount
        travel_s = process.rng.random() * ANSWER_S_MAX
        world.sleep(fault.amount if kind == "late" else travel_s)
        is_write = verb in WRITES
        if kind == "cut off":
            process.cut_off_until = process.disturbed_at = max(process.cut_off_until, world.now + fault.amount)
        if kind in {"ghost", "cut off"} and is_write:
            world.at(fault.amount, lambda: self._haunt(do))
        if kind in {"before", "ghost", "cut off"}:
            raise StoreUnavailable(f"{fault}: nothing happened")
        refusal = PreconditionFailed if is_conditional else StoreUnavailable
        if kind == "refused":
            raise refusal(f"{fault}: nothing happened")
        done = do()
        if kind == "kill after":
            self._kill()
        elif kind == "pause after":
            process.pause(fault.amount)
            world.sleep(0.0)
        elif kind == "slow":
            world.sleep(fault.amount)
        elif kind == "after":
            raise StoreUnavailable(f"{fault}: it happened")
        elif kind == "refused after":
            raise refusal(f"{fault}: it happened")
        return self._blur(fault, done)

    def _blur(self, fault: Fault, done: T) -> T:
        """What a hint may get wrong: ages, and what a listing shows."""
        if fault.kind == "old" and isinstance(done, Object):
            return replace(done, read_at=done.read_at + fault.amount)  # type: ignore[return-value]
        if fault.kind == "gaps" and isinstance(done, list):
            chance = Random(f"{fault.process}/{fault.call}")
            return [entry for entry in done if chance.random() < 0.5]  # type: ignore[return-value]
        return done

    def _kill(self) -> None:
        self._process.kill()
        raise Gone

    def _haunt(self, do: Callable[[], object]) -> None:
        self._process.world.say(self._process.name, "   a ghost of it writes")
        with suppress(StoreError):
            do()


class ProcessWriter:
    """Bytes are nothing before the commit, which is one call."""

    def __init__(self, store: ProcessStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self) -> str:
        return self._store.commit(self._key, bytes(self._data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
