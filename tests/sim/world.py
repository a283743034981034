"""Virtual time and the processes in it: greenlets that take turns at every store call and every wait.

A process is a clock, a chance, a store of its own and some strands (its threads). It can be killed, paused, or given a
wrong clock at any of its calls. Knows nothing of batches.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from greenlet import getcurrent, greenlet

START = 1_800_000_000.0
ANSWER_S_MAX = 0.2  # of a store call, where nothing holds it up
TICK_S = 1e-6  # the shortest wait: a shorter one may not move a clock of this size at all


class Gone(BaseException):
    """The process is no more: nothing may catch this and go on."""


class Broken(AssertionError):
    """One of the promises does not hold. The message says which, and what was seen."""


@dataclass(slots=True, eq=False)
class Strand:
    """A greenlet of a process. `turn` tells a wake-up that is still wanted from one that came too late."""

    process: "Process"
    greenlet: greenlet
    turn: int = 0
    is_over: bool = False
    thread: object = None  # the library's own, if it is one
    waiters: list["Strand"] = field(default_factory=list)


class World:
    """`now` moves from one wake-up to the next. One world at a time: `World.current`."""

    current: "World"

    def __init__(self, seed: int | str, *, is_traced: bool = False) -> None:
        World.current = self
        self.seed = seed
        self.now = START
        self.rng = Random(f"{seed}/world")
        self.trace: list[str] | None = [] if is_traced else None
        self.strand: Strand | None = None  # that runs now
        self.processes: list[Process] = []
        self.broken: BaseException | None = None
        self.num_calls = 0
        self._heap: list[tuple[float, int, Strand | None, int, Callable[[], object] | None]] = []
        self._num_pushed = 0
        self._hub = getcurrent()
        self._dying: list[Process] = []

    # -- what runs inside a strand may do

    def sleep(self, seconds: float) -> None:
        self.park(seconds)

    def park(self, seconds: float | None) -> None:
        """Wait until woken, or for `seconds`."""
        strand = self.strand
        assert strand is not None, "only strands wait"
        if strand.process.is_process_dead:
            raise Gone
        strand.turn += 1
        if seconds is not None:
            self._push(self.now + max(seconds, TICK_S if seconds > 0.0 else 0.0), strand)
        self._hub.switch()
        if strand.process.is_process_dead:
            raise Gone

    def wake(self, strand: Strand) -> None:
        if not strand.is_over:
            self._push(self.now, strand)

    def join(self, strand: Strand, seconds: float | None = None) -> None:
        """Wait until it is over, or for `seconds`."""
        me = self.strand
        assert me is not None
        ends_at = None if seconds is None else self.now + seconds
        strand.waiters.append(me)
        try:
            while not strand.is_over and (ends_at is None or self.now < ends_at):
                self.park(None if ends_at is None else ends_at - self.now)
        finally:
            if me in strand.waiters:  # else it would be woken out of a later wait
                strand.waiters.remove(me)

    def say(self, who: str, what: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now - START:9.3f} {who:<10} {what}")

    # -- what moves it

    def at(self, seconds: float, do: Callable[[], object]) -> None:
        """Do something in `seconds` that needs no strand."""
        self._push(self.now + seconds, None, do)

    def spawn(self, process: "Process", run: Callable[..., object], *args: object) -> Strand:
        strand = Strand(process, None)  # type: ignore[arg-type]
        strand.greenlet = greenlet(lambda: self._run_strand(strand, run, args), self._hub)
        process.strands.append(strand)
        self._push(self.now, strand)
        return strand

    def run(self, until: Callable[[], bool], *, for_s: float) -> bool:
        """Until `until` or for so long; False where the time ran out. Raises what a strand broke on."""
        ends_at = self.now + for_s
        while not until():
            if not self._heap or self._heap[0][0] > ends_at:
                self.now = max(self.now, ends_at)
                return False
            at, _, strand, turn, do = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            if do is not None:
                do()
            elif strand is not None and strand.turn == turn and not strand.is_over:
                process = strand.process
                if process.paused_until > self.now and not process.is_process_dead:
                    self._push(process.paused_until, strand)
                    continue
                strand.turn += 1
                self._enter(strand)
            while self._dying:
                self._on_exit(self._dying.pop())
            if self.broken is not None:
                raise self.broken
        return True

    def close(self) -> None:
        """End every strand; whatever they try on their way out fails."""
        for process in self.processes:
            process.is_process_dead = True
            self._on_exit(process)

    def doom(self, process: "Process") -> None:
        self._dying.append(process)

    def _push(self, at: float, strand: Strand | None, do: Callable[[], object] | None = None) -> None:
        self._num_pushed += 1
        heapq.heappush(self._heap, (at, self._num_pushed, strand, strand.turn if strand else 0, do))

    def _enter(self, strand: Strand) -> None:
        self.strand = strand
        strand.greenlet.switch()
        self.strand = None

    def _on_exit(self, process: "Process") -> None:
        for strand in process.strands:
            if strand.greenlet:  # it has begun, and is not over
                self.strand = strand
                strand.greenlet.throw(Gone)
                self.strand = None
            self._end(strand)
        process.strands.clear()

    def _run_strand(self, strand: Strand, run: Callable[..., object], args: tuple[object, ...]) -> None:
        try:
            run(*args)
        except Gone:
            pass
        except BaseException as error:
            if not strand.process.is_process_dead:
                self.broken = self.broken or error
        finally:
            self._end(strand)

    def _end(self, strand: Strand) -> None:
        strand.is_over = True
        for waiter in strand.waiters:
            self.wake(waiter)
        strand.waiters.clear()


class Process:
    """What is killed, paused and restarted as a whole. `answer_s_max`: how long its store calls take at most."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng = Random(f"{world.seed}/{name}")
        self.num_calls = 0
        self.is_process_dead = False
        self.paused_until = 0.0
        self.cut_off_until = 0.0  # its calls of the store reach nothing
        self.disturbed_at = world.now  # when it was last held up
        self.strands: list[Strand] = []
        self.clock = ProcessClock(self)
        self.on_kill: list[Callable[[], object]] = []
        world.processes.append(self)

    def kill(self) -> None:
        """From now on it does nothing. A caller from inside raises Gone next."""
        if self.is_process_dead:
            return
        self.world.say(self.name, "is killed")
        self.is_process_dead = True
        self.world.doom(self)
        for tell in self.on_kill:
            tell()

    def term(self) -> None:
        """It is asked to end; by itself it takes no notice."""
        self.world.say(self.name, "is asked to end")

    def pause(self, seconds: float) -> None:
        self.world.say(self.name, f"stands still for {seconds:.1f} s")
        self.paused_until = max(self.paused_until, self.world.now + seconds)
        self.disturbed_at = self.paused_until


class ProcessClock:
    """A machine's clock: `skew_s` off, and its monotonic time began anywhere."""

    def __init__(self, process: Process) -> None:
        self._world = process.world
        self._offset = process.rng.random() * 1e5
        self.skew_s = 0.0

    def now(self) -> float:
        return self._world.now + self.skew_s

    def monotonic(self) -> float:
        return self._world.now - START + self._offset

    def sleep(self, seconds: float) -> None:
        self._world.sleep(seconds)
