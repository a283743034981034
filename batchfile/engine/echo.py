"""No model: the answer is a fixed function of the request. For tests, demos and host-overhead benches."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from batchfile.clock import Clock, SystemClock
from batchfile.engine.base import EngineInfo, EngineStats, Finished, Prepared
from batchfile.words import Choice, Completion, Request, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoPrepared(Prepared):
    request: Request


class EchoEngine:
    """Answers with the last turn's words, `max_tokens` of them at most. A word is a token."""

    def __init__(
        self,
        *,
        num_slots: int = 256,
        seconds_per_token: float = 0.0,
        latency_s: float = 0.0,
        clock: Clock | None = None,
        tokens: Callable[[Request], int] | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._seconds_per_token = seconds_per_token
        self._latency_s = latency_s
        self._tokens = tokens
        self._waiting: deque[tuple[int, EchoPrepared]] = deque()
        self._running: list[tuple[float, int, EchoPrepared]] = []
        self._num_steps = 0
        self.info = EngineInfo(
            name="echo", model="echo", version="1", num_slots=num_slots, max_in_flight=num_slots + max(16, num_slots // 4)
        )

    def prepare(self, request: Request) -> EchoPrepared:
        return EchoPrepared(request=request, cost=request.sampling.max_tokens)

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        self._waiting.append((key, prepared))

    def step(self) -> list[Finished]:
        self._num_steps += 1
        now = self._clock.monotonic()
        while self._waiting and len(self._running) < self.info.num_slots:
            key, prepared = self._waiting.popleft()
            num = self._tokens(prepared.request) if self._tokens else prepared.cost
            heapq.heappush(self._running, (now + self._latency_s + num * self._seconds_per_token, key, prepared))
        if self._running and self._running[0][0] > now:
            self._clock.sleep(self._running[0][0] - now)
            now = self._clock.monotonic()
        done = []
        while self._running and self._running[0][0] <= now:
            _, key, prepared = heapq.heappop(self._running)
            done.append(Finished(key, _answer(prepared.request)))
        return done

    def abort(self, keys: Iterable[int]) -> None:
        gone = set(keys)
        self._waiting = deque(item for item in self._waiting if item[0] not in gone)
        self._running = [item for item in self._running if item[1] not in gone]
        heapq.heapify(self._running)

    def stats(self) -> EngineStats:
        return EngineStats(num_steps=self._num_steps)

    def close(self) -> None:
        pass


def _answer(request: Request) -> Completion:
    words = request.messages[-1].content.split()
    cut = words[: request.sampling.max_tokens]
    num_in = sum(len(message.content.split()) for message in request.messages)
    reason = "end_turn" if len(cut) == len(words) else "max_tokens"
    return Completion(
        choices=(Choice(" ".join(cut), reason),), usage=Usage(input_tokens=num_in, output_tokens=max(1, len(cut)))
    )
