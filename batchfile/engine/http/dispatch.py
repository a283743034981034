"""Sends each request until it has an outcome: slots, attempts, probes, and waiting for an endpoint that is down.

Runs in one event loop and on its clock. The caller provides the connections as two `Ask` functions.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from batchfile.engine.base import Prepared
from batchfile.engine.http.answer import ExpectedAnswer
from batchfile.engine.http.check import CheckResult, has_read, is_refusal, smallest_body
from batchfile.engine.http.connection import RESPONSE_BYTES_MAX, Ask, NoAnswer
from batchfile.engine.http.retry import FRESH_TRIES, THROTTLE_S, WINDOW_S, Judge, Tries, Verdict
from batchfile.engine.http.slots import Limit, Slots
from batchfile.engine.http.wire import (
    PATHS,
    Answer,
    Failed,
    Said,
    Throttled,
    Unserved,
    is_max_tokens_complaint,
    read_answer,
    with_newer_limit,
)
from batchfile.types import Completion, Failure, Kind, Outcome

log = structlog.get_logger()

FAILED_ATTEMPTS_MAX = 3  # server errors, invalid responses, timeouts: the request was worked on
# Pauses double from the first value to the second, each shortened by up to half at random.
BACKOFF_S = 1.0
BACKOFF_S_MAX = 30.0
# How many requests at their third or a later attempt may be sent per allowed slot during a first pause.
RETRIES_PER_SLOT = 2.0
CROWD_S_MAX = 300.0
# The endpoint counts as down, and requests wait until a probe succeeds, after this many different requests in a row
# failed at their first attempts, or after this many first pauses without a success and without a first attempt in
# flight.
DOWN_REQUESTS = 8
DOWN_BACKOFFS = 2.0
REPORTED_BACKOFFS = 10.0  # first pauses after which an endpoint that is down is logged
PROBES_AT_ONCE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPrepared(Prepared):
    """`body` is sent as it is. If the endpoint rejects a max_tokens that the request did not set, the limit is sent
    under its newer name if the endpoint asks for that, and left out (`body_without_limit`) otherwise.
    """

    body: bytes
    body_without_limit: bytes | None
    wanted: ExpectedAnswer


@dataclass(frozen=True, slots=True)
class _Probed:
    """`is_telling`: it showed whether the endpoint serves requests, which a 429 or a timeout does not."""

    is_telling: bool
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """`concurrency`: requests at once, at most. `backoff_s`: the first pause. The rest: see retry.py."""

    concurrency: int = 32
    backoff_s: float = BACKOFF_S
    window_s: float = WINDOW_S
    throttle_s: float = THROTTLE_S


class Dispatcher:
    """`ask` may reuse a connection; `ask_anew` opens a new one, so that a load balancer can choose another replica.

    `root` names the endpoint in the log. `check` finds out what is wrong with an endpoint without any success so far;
    None: wait for it.
    """

    def __init__(
        self,
        root: str,
        ask: Ask,
        ask_anew: Ask,
        model: str,
        pace: Pace,
        rng: random.Random,
        check: Callable[[], Awaitable[CheckResult]] | None = None,
    ) -> None:
        self.problem: str | None = None  # why no request can succeed, if that ends the run
        self.num_paused = 0  # requests that wait for their next attempt, without a slot
        self.num_unserved = 0  # failures since the endpoint's last success
        self.reason = ""  # the message of the last failure
        self.http_status: int | None = None  # of the last failure
        self._root = root
        self._ask = ask
        self._ask_anew = ask_anew
        self._model = model
        self._pace = pace
        self._rng = rng
        self._check = check
        self._checking = asyncio.Lock()
        self._probing = asyncio.Lock()
        self._judge = Judge(pace.window_s, pace.throttle_s)
        self._limit = Limit(pace.concurrency)
        self._slots = Slots(self._limit)
        self._kind: Kind = "chat"  # of the last request; probes use the same kind
        self._is_proven = False  # the endpoint has answered a request successfully
        self._unserved_since: float | None = None
        self._unserved: set[int] = set()  # the requests, by order; probes have negative ones
        self._num_probes = 0
        self._num_first_tries = 0  # in flight
        self._is_down = False  # a probe failed too
        self._is_reported = False
        self._trial: asyncio.Task[None] | None = None

    @property
    def down_since(self) -> float | None:
        """Since when the endpoint has been down, on the loop's clock; None if it is not."""
        return self._unserved_since if self._is_down else None

    @property
    def num_allowed(self) -> int:
        return self._limit.allowed

    @property
    def num_running(self) -> int:
        """Requests that the endpoint is working on."""
        return self._slots.num_taken

    def close(self) -> None:
        if self._trial is not None:
            self._trial.cancel()

    async def outcome(self, order: int, prepared: HttpPrepared) -> Outcome:
        """The outcome of one request. `order` is unique; lower ones go first."""
        body, tries, num_failed, num_unserved = prepared.body, Tries(), 0, 0
        while True:
            answer = await self._attempt(order, body, prepared.wanted, tries)
            if isinstance(answer, Unserved):
                if failure := await self._unserved_failure(tries, answer):
                    return failure
                num_unserved += 1
                await self._pause(num_unserved, answer.retry_after_s)
            elif isinstance(answer, Throttled):
                if failure := await self._throttled_failure(tries, answer):
                    return failure
                await self._pause(tries.num_throttled, answer.retry_after_s)
            elif isinstance(answer, Failed):
                num_failed += 1
                if num_failed >= FAILED_ATTEMPTS_MAX:
                    message = f"{answer.message} ({num_failed} attempts)"
                    return Failure(type="model_error", message=message, http_status=answer.http_status)
                await self._pause(num_failed, answer.retry_after_s)
            elif is_max_tokens_complaint(answer) and (other := _other_limit(prepared, body, answer)) is not None:
                body = other
            else:
                return answer

    async def _attempt(self, order: int, body: bytes, wanted: ExpectedAnswer, tries: Tries) -> Answer:
        await self._slots.take(order)
        is_first = not tries.num
        self._num_first_tries += is_first
        try:
            self._kind = wanted.kind
            asked_at = self._now()
            said = await (self._ask_anew if tries.num else self._ask)("POST", PATHS[wanted.kind], body)
            await self._look_for_a_problem(said)
            answer = self._read(said, wanted)
            self._note(order, tries, answer, asked_at)
            return answer
        finally:
            self._num_first_tries -= is_first
            self._slots.give()

    def _read(self, said: Said | NoAnswer, wanted: ExpectedAnswer) -> Answer:
        if isinstance(said, Said):
            # Not every endpoint has the other paths, so a 404 there is final from the start.
            is_proven = self._is_proven or wanted.kind != "chat"
            return read_answer(said, RESPONSE_BYTES_MAX, wanted, is_proven=is_proven)
        match said.kind:
            case "late":
                return Failed(f"The endpoint did not answer {said.reason}.", is_late=True)
            case "broken":
                broke = f"connection broke: {said.reason}"
                return Unserved(f"the {broke}", f"The endpoint's {broke}")
            case "unreachable" | "untrusted":
                return Unserved(said.reason, said.reason, is_sent=False)

    def _note(self, order: int, tries: Tries, answer: Answer, asked_at: float) -> None:
        now = self._now()
        match answer:
            case Unserved(is_sent=True):
                self._judge.note_bad(tries, now)
                self._note_unserved(order, answer, is_fresh=tries.is_fresh)
            case Unserved():
                self._judge.note(tries, "bad", now)
                self._note_unserved(order, answer, is_fresh=tries.is_fresh)
            case Throttled():
                self._judge.note_throttled(tries, now)
                self._note_unserved(order, answer, is_fresh=tries.is_fresh)
                if tries.is_fresh or self.num_paused > self._limit.allowed:  # otherwise it is about this request only
                    self._limit.lower(asked_at, now)
            case Failed() if answer.is_late:
                tries.num += 1
            case _:
                self._judge.note(tries, "good", now)
                self._note_served(answer)

    def _note_served(self, answer: Answer) -> None:
        self._is_proven = self._is_proven or isinstance(answer, Completion)
        self._limit.raise_()
        self.num_unserved, self._unserved_since = 0, None
        self._is_down = self._is_reported = False
        self._unserved.clear()
        if self._trial is not None and self._trial is not asyncio.current_task():
            self._trial.cancel()
        self._trial = None
        self._slots.open()

    def _note_unserved(self, order: int, answer: Unserved | Throttled, *, is_fresh: bool = True) -> None:
        """`is_fresh`: the failure says something about the endpoint, not only about a request with many attempts."""
        now = self._now()
        self.num_unserved += 1
        self.reason = answer.reason
        self.http_status = 429 if isinstance(answer, Throttled) else answer.http_status
        self._unserved_since = now if self._unserved_since is None else self._unserved_since
        if is_fresh:
            self._unserved.add(order)
        silent_s = now - self._unserved_since
        is_long = silent_s >= DOWN_BACKOFFS * self._pace.backoff_s and not self._num_first_tries
        if (is_long or len(self._unserved) >= DOWN_REQUESTS) and self._slots.is_open:
            self._slots.shut()
            self._trial = asyncio.get_running_loop().create_task(self._try_until_served())

    async def _try_until_served(self) -> None:
        """While the endpoint is down: sends one small probe at a time, which cannot be the cause, unlike a request."""
        num, wait_s = 0, 0.0  # the first one at once, in case only some requests are the cause
        while not self._slots.is_open:
            await asyncio.sleep(wait_s)
            num += 1
            wait_s = self._backoff_s(num)
            try:
                wait_s = max(wait_s, (await self._probe()).retry_after_s)
                self._report_down()
            except Exception:  # the top of this task: otherwise all requests would wait forever
                log.exception("probe.failed", url=self._root)

    def _report_down(self) -> None:
        """After a probe: notes whether the endpoint is down, and logs it once."""
        self._is_down = self._unserved_since is not None
        if self._unserved_since is None or self._is_reported:
            return
        if self._now() - self._unserved_since >= REPORTED_BACKOFFS * self._pace.backoff_s:
            self._is_reported = True
            log.warning("endpoint.down", url=self._root, reason=self.reason)

    async def _unserved_failure(self, tries: Tries, answer: Unserved) -> Failure | None:
        if not answer.is_sent or await self._verdict(lambda: self._judge.verdict(tries, self._now())) != "fail":
            return None
        message = f"{answer.message} ({tries.num_bad} attempts)"
        return Failure(type="model_error", message=message, http_status=answer.http_status)

    async def _throttled_failure(self, tries: Tries, answer: Throttled) -> Failure | None:
        if answer.is_too_large:
            return Failure(type="rate_limit_error", message=answer.message, http_status=429)
        if await self._verdict(lambda: self._judge.throttle_verdict(tries, self._now())) != "fail":
            return None
        since_s = self._now() - (tries.throttled_since or 0.0)
        period = f"for {since_s:.0f} s and {tries.num_throttled} attempts, while other requests were served"
        return Failure(type="rate_limit_error", message=f"{answer.message} ({period})", http_status=429)

    async def _verdict(self, judge: Callable[[], Verdict]) -> Verdict:
        """The verdict, after as many probes as it needs."""
        while judge() == "probe":
            async with self._probing:
                if judge() != "probe":
                    break
                num = min(PROBES_AT_ONCE, self._limit.allowed)
                probed = await asyncio.gather(*(self._probe() for _ in range(num)))
                if not any(probe.is_telling for probe in probed):
                    return "wait"
        return judge()

    async def _probe(self) -> _Probed:
        """Sends one small request to see whether the endpoint serves it."""
        self._num_probes += 1
        kind = self._kind
        said = await self._ask_anew("POST", PATHS[kind], smallest_body(kind, self._model))
        self._is_proven = self._is_proven or (isinstance(said, Said) and has_read(said))
        answer, now = (
            self._read(said, ExpectedAnswer(kind=kind, num_vectors=int(kind not in ("chat", "completion")))),
            self._now(),
        )
        match answer:
            case Unserved():
                self._judge.note(None, "bad", now)
                self._note_unserved(-self._num_probes, answer)
                return _Probed(True, answer.retry_after_s)
            case Throttled():
                self._judge.note(None, "throttled", now)
                self._note_unserved(-self._num_probes, answer)
                return _Probed(False, answer.retry_after_s)
            case Failed() if answer.is_late:
                return _Probed(False)
        self._judge.note(None, "good", now)
        self._note_served(answer)
        return _Probed(True)

    async def _look_for_a_problem(self, said: Said | NoAnswer) -> None:
        """After a failure without any success so far: checks whether the endpoint is the cause, or only the request."""
        if self._check is None or self._is_proven:
            return
        if said.kind == "late" if isinstance(said, NoAnswer) else not is_refusal(said):
            return
        async with self._checking:  # one check for all requests that failed
            if self._is_proven or self.problem is not None:
                return
            checked = await self._check()
            self._is_proven = self._is_proven or checked.is_proven
            if not self._is_proven:
                self.problem = checked.problem

    async def _pause(self, num: int, retry_after_s: float) -> None:
        self.num_paused += 1
        try:
            await asyncio.sleep(max(retry_after_s, self._backoff_s(num), self._crowd_s(num)))
        finally:
            self.num_paused -= 1

    def _backoff_s(self, num: int) -> float:
        longest: float = min(BACKOFF_S_MAX, self._pace.backoff_s * 2 ** min(num - 1, 16))
        return self._jittered(longest)

    def _crowd_s(self, num: int) -> float:
        """Spreads the attempts of paused requests: otherwise a thousand of them would keep an endpoint at its limit."""
        if num <= FRESH_TRIES:
            return 0.0
        each_s = self._pace.backoff_s / (RETRIES_PER_SLOT * self._limit.allowed)
        return min(CROWD_S_MAX, self._jittered(self.num_paused * each_s))

    def _jittered(self, longest: float) -> float:
        return longest * (0.5 + self._rng.random() / 2)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _other_limit(prepared: HttpPrepared, body: bytes, answer: Outcome) -> bytes | None:
    """What to send instead of `body`, whose max_tokens the endpoint rejected; None if nothing is left to try."""
    if prepared.body_without_limit in (None, body):
        return None
    is_first = body is prepared.body
    if is_first and isinstance(answer, Failure) and "max_completion_tokens" in answer.message:
        return with_newer_limit(body)
    return prepared.body_without_limit
