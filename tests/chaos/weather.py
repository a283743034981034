"""What the network and the store do to each process: one fault proxy each, so that one alone can be cut off."""

import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random

from tests.contract.fault_proxy import Fault, FaultProxy, Headers, OnRequest, fault_proxy

# In 10,000 requests. A stalled request goes on after its sender has given it up: a write that comes late.
ODDS = {"late": 300, "reset": 80, "drop": 80, "503": 80, "503 done": 60, "500 done": 20, "cut": 30, "stall": 4}
LATE_S_MAX = 0.5
# What an ill object answers, to every process and for as long as it is ill. `foreign`: another body with status 200.
ILL_ANSWERS: tuple[Fault, ...] = (500, 403, 400, 405, 501, "foreign")
_OBJECT = re.compile(r"/batches/[^/]+/(batch|planning|assembly|plan-[^/]+|shards/[^?]+)\.json$")
SEEN_MAX = 200  # of the objects that were asked for last, one falls ill
STALL_S = 12.0  # the store's client waits 10 for what it writes on a condition


class Weather:
    """`is_calm`: nothing happens any more. `cut_off`: processes that reach nothing. `is_storm`: half of all is 503.

    `ill`: objects, by their path, that always answer the same.
    """

    def __init__(self, seed: int) -> None:
        self.is_calm = True
        self.is_storm = False
        self.cut_off: set[str] = set()
        self.ill: dict[str, Fault] = {}
        self._seen: deque[str] = deque(maxlen=SEEN_MAX)
        self.num_requests = 0
        self.faults: Counter[str] = Counter()
        self.stalls: Counter[str] = Counter()  # by process
        self._random = Random(seed)

    def over(self, name: str) -> OnRequest:
        def fault(method: str, path: str, headers: Headers) -> Fault:
            self.num_requests += 1
            place = path.partition("?")[0]
            if _OBJECT.search(place):
                self._seen.append(place)
            ill = None if self.is_calm else self.ill.get(place)
            if ill is not None and (ill != "foreign" or method == "GET"):
                self.faults[f"ill {ill}"] += 1
                return ill
            kind = self._draw(name)
            if kind is None:
                return "pass"
            self.faults[kind] += 1
            if kind == "late":
                time.sleep(self._random.random() * LATE_S_MAX)
                return "pass"
            if kind == "stall":
                self.stalls[name] += 1
                time.sleep(STALL_S)
                return "pass"
            known: dict[str, Fault] = {"503": 503, "503 done": (503, "done"), "500 done": (500, "done")}
            return known.get(kind, "reset" if kind == "cut off" else kind)

        return fault

    def fall_ill(self) -> str | None:
        """One of the records that were asked for lately; its path."""
        if not self._seen:
            return None
        place = self._random.choice(self._seen)
        self.ill[place] = self._random.choice(ILL_ANSWERS)
        return place

    def get_well(self, place: str) -> None:
        self.ill.pop(place, None)

    def _draw(self, name: str) -> str | None:
        if self.is_calm:
            return None
        if name in self.cut_off:
            return "cut off"
        if self.is_storm and self._random.random() < 0.5:
            return "503"
        number = self._random.random() * 10_000
        for kind, odds in ODDS.items():
            number -= odds
            if number < 0:
                return kind
        return None


@contextmanager
def proxies(weather: Weather, names: list[str], upstream: str) -> Iterator[dict[str, FaultProxy]]:
    with ExitStack() as stack:
        found = {name: stack.enter_context(fault_proxy(upstream)) for name in names}
        for name, proxy in found.items():
            proxy.fault = weather.over(name)
        yield found
