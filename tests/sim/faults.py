"""What goes wrong, and when: drawn from a seed, or given as a list. Decides; the store carries it out.

A fault is named by the process and the number of its store call, so that a list of faults means the same in every run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Kind = Literal[
    "kill",  # the process dies before the call
    "kill after",  # the process dies after the call happened, before its answer
    "term",  # the process is asked to end in order, as by SIGTERM
    "pause",  # the process stands still before the call, for `amount` seconds
    "pause after",  # ... after it, before the answer
    "skew",  # the process's clock jumps by `amount` seconds
    "before",  # 503, and nothing happened
    "after",  # 503 or a timeout, and it happened
    "refused",  # 409, 412 or 500 to a conditional write, and nothing happened
    "refused after",  # the same, and it happened
    "late",  # the call takes `amount` seconds on its way there
    "slow",  # the call happens at once and its answer takes `amount` seconds
    "ghost",  # a timeout, and the write happens `amount` seconds later
    "cut off",  # from here on the process reaches nothing for `amount` seconds; a write on its way may still arrive
    "gaps",  # a listing leaves out some of its entries
    "old",  # the store's clock says that the object is `amount` seconds older
]
READ_KINDS: tuple[Kind, ...] = ("before", "late", "slow", "old", "cut off")
WRITE_KINDS: tuple[Kind, ...] = ("before", "after", "refused", "refused after", "late", "slow", "ghost", "cut off")
PROCESS_KINDS: tuple[Kind, ...] = ("kill", "kill after", "pause", "pause after", "skew")
CUT_OFF_SHARE = 0.1  # of the schedules: nothing else goes wrong with their writes
OLDER_SHARES_OF_TTL = (0.9, 2.0)
WRONG_DATE_S = 60 * 24 * 3600.0  # how far off a clock may be: longer than anything is kept


@dataclass(frozen=True, slots=True)
class Fault:
    process: str
    call: int
    kind: Kind
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.process} call {self.call}: {self.kind} {self.amount:.1f}"


class Given:
    """Exactly these faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._by_call = {(fault.process, fault.call): fault for fault in faults}
        self.struck: list[Fault] = []

    def at(self, process: str, call: int, verb: str, now: float) -> Fault | None:
        fault = self._by_call.get((process, call))
        if fault is not None:
            self.struck.append(fault)
        return fault


class Drawn:
    """Faults by chance until `ends_at`. Each seed has its own mix of kinds and its own rate."""

    def __init__(self, seed: int | str, *, ttl_s: float, ends_at: float) -> None:
        rng = Random(f"{seed}/faults")
        self._seed = seed
        self._ttl_s = ttl_s
        self._ends_at = ends_at
        self._rngs: dict[str, Random] = {}
        # A third of the mixes are all kinds; most others a few, often: what each makes possible is then tried alone.
        self._store_rate = rng.choice((0.0, 0.01, 0.03, 0.08, 0.2))
        self._process_rate = rng.choice((0.0, 0.005, 0.01, 0.03))
        share = rng.choice((0.3, 0.6, 1.0))
        self._reads = _some(rng, (*READ_KINDS, "gaps"), share)
        self._writes = _some(rng, WRITE_KINDS, share)
        self._deeds = _some(rng, PROCESS_KINDS, share)
        if rng.random() < CUT_OFF_SHARE:  # what is repeated behind a write that is still on its way is rare else
            self._store_rate, self._writes, self._reads = 0.05, ["cut off"], []
        self.struck: list[Fault] = []

    @property
    def is_age_known(self) -> bool:
        """Is the store's clock right?"""
        return "old" not in self._reads

    def at(self, process: str, call: int, verb: str, now: float) -> Fault | None:
        if now >= self._ends_at:
            return None
        rng = self._rngs.get(process)
        if rng is None:
            rng = self._rngs[process] = Random(f"{self._seed}/{process}/faults")
        drawn = rng.random()
        if drawn >= self._store_rate + self._process_rate:
            return None
        if drawn < self._process_rate:
            kinds = self._deeds
        else:
            kinds = self._writes if verb in {"put", "commit", "delete"} else self._reads
        if not kinds:
            return None
        kind = rng.choice(kinds)
        if kind == "gaps" and verb != "list":
            return None
        amount = self._amount(kind, rng)
        if kind == "kill" and amount > self._ttl_s:  # of the kills about a quarter
            kind, amount = "term", 0.0
        fault = Fault(process, call, kind, amount)
        self.struck.append(fault)
        return fault

    def _amount(self, kind: Kind, rng: Random) -> float:
        ttl_s = self._ttl_s
        if kind in {"pause", "pause after"}:
            return rng.choice((0.3, 1.1, 1.5, 3.0)) * ttl_s * (0.8 + 0.4 * rng.random())
        if kind == "skew":
            sign, scale, share = rng.choice((-1, 1)), rng.choice((1.0, ttl_s, 40 * ttl_s)), rng.random()
            is_far = scale > ttl_s and share > 0.5
            return sign * share * (WRONG_DATE_S if is_far else scale)
        if kind == "old":
            return ttl_s * rng.choice(OLDER_SHARES_OF_TTL)
        if kind == "cut off":
            return ttl_s * rng.choice((0.2, 0.5, 1.2)) * rng.random()
        if kind in {"late", "slow"}:
            return rng.choice((1.0, 5.0, 1.2 * ttl_s)) * rng.random()
        return rng.choice((1.0, ttl_s, 3 * ttl_s)) * rng.random()


def _some(rng: Random, kinds: Sequence[Kind], share: float) -> list[Kind]:
    return [kind for kind in kinds if rng.random() < share]
