"""An OpenAI-compatible endpoint as an engine. An event loop of its own, in a thread of its own.

Knows nothing of files, stores and shards. What it says and hears is in http_wire.py, the connection in
http_connection.py.
"""

import asyncio
import queue
import random
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from batchfile.engine.base import EngineInfo, EngineStats, Finished, Prepared, in_flight_for
from batchfile.engine.http_check import CHECK_TIMEOUT_S, Subject, check, is_refusal
from batchfile.engine.http_connection import RESPONSE_BYTES_MAX, Connection, NoAnswer
from batchfile.engine.http_wire import (
    MODELS_PATH,
    PATHS,
    Answer,
    Down,
    Failed,
    Said,
    Wanted,
    api_root,
    is_endpoints_own,
    is_max_tokens_complaint,
    may_be_a_proxys,
    read_answer,
    request_body,
    wanted_of,
)
from batchfile.engine.prefix import prefix_of
from batchfile.errors import EngineDead, SettingsError
from batchfile.words import Completion, Failure, Outcome, Request

log = structlog.get_logger()

STEP_WAIT_S_MAX = 0.05
CLOSE_S = 10.0
ATTEMPTS_MAX = 3
# Waits double from the first value to the second, each cut by up to half at random.
BACKOFF_S = 1.0
BACKOFF_S_MAX = 30.0
DOWNS_TOLD = 4  # pauses in a row after which it is said why: some 10 s
# What an endpoint may ask for with Retry-After.
RETRY_AFTER_S_MAX = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """`base_url` may lack its /v1. `model`: the name that the endpoint serves. `concurrency`: requests at once.

    `timeout_s`: for one attempt, from the connection to the last byte. `backoff_s`: the first wait.
    `wait_for_endpoint`: also for one that has answered nothing well yet; else a wrong address, key or model ends it.
    """

    base_url: str
    model: str
    api_key: str | None = None
    concurrency: int = 32
    timeout_s: float = 600.0
    backoff_s: float = BACKOFF_S
    wait_for_endpoint: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPrepared(Prepared):
    """`body` goes over the wire; `body_without_limit` if the endpoint refuses a max_tokens nobody asked for."""

    body: bytes
    body_without_limit: bytes | None
    wanted: Wanted


def check_endpoint(options: HttpOptions) -> None:
    """Before any work: blocks until the endpoint is known to be usable, or not known to be unusable.

    Raises: SettingsError with what is wrong with its address, the key or the model.
    """
    root, key = api_root(options.base_url), _header_key(options)

    async def ask_all() -> str | None:
        async with Connection(root, key, concurrency=1, timeout_s=CHECK_TIMEOUT_S) as connection:
            subject = Subject(root=root, model=options.model, has_key=bool(key), is_planned=False)
            return (await check(connection.ask, subject, is_listing_enough=True)).problem

    problem = asyncio.run(ask_all())
    if problem is not None:
        raise SettingsError(problem)


def _header_key(options: HttpOptions) -> str:
    """Empty where there is none. Raises: SettingsError."""
    key = (options.api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("The API key of the HTTP engine has characters that no header can carry; set it anew.")
    return key


class HttpEngine:
    """While the endpoint is down, requests wait inside and spend no attempt.

    Raises: SettingsError, also from `step` where it shall not wait for an endpoint that serves no request.
    """

    def __init__(self, options: HttpOptions, rng: random.Random | None = None) -> None:
        self._root = api_root(options.base_url)
        if options.concurrency < 1:
            raise SettingsError(f"The concurrency of an HTTP engine is {options.concurrency}; set at least 1.")
        self._key = _header_key(options)
        self._options = options
        self._rng = rng or random.Random()
        self.info = EngineInfo(
            name="http",
            model=options.model,
            version="openai",
            num_slots=options.concurrency,
            max_in_flight=in_flight_for(options.concurrency),
        )
        self._num_steps = 0
        self._num_full_steps = 0
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        # The owner's side. A serial tells an aborted request's late answer from that of its successor.
        self._in_flight: dict[int, int] = {}
        self._serial = 0
        self._finished: queue.SimpleQueue[tuple[int, int, Outcome]] = queue.SimpleQueue()
        # The loop's side: touched by its thread only.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._resume_at = 0.0
        self._num_downs = 0
        self._down_since: float | None = None
        self._down_reason = ""
        self._is_proven = False  # something was answered well
        self._problem: str | None = None  # why no request can succeed; for the owner's side
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, name="http-engine", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def prepare(self, request: Request) -> HttpPrepared:
        sampling = request.sampling
        return HttpPrepared(
            prefix=prefix_of(request),
            cost=sampling.max_tokens,
            body=request_body(request, self._options.model, sampling.max_tokens),
            body_without_limit=(
                None if sampling.is_max_tokens_given else request_body(request, self._options.model, None)
            ),
            wanted=wanted_of(request),
        )

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, HttpPrepared)
        self._check_alive()
        self._serial += 1
        self._in_flight[key] = self._serial
        self._loop.call_soon_threadsafe(self._start, key, self._serial, prepared)

    def step(self) -> list[Finished]:
        self._check_alive()
        if self._problem is not None:
            raise SettingsError(self._problem)
        if not self._in_flight:
            return []
        self._num_steps += 1
        self._num_full_steps += len(self._in_flight) >= self.info.num_slots
        done: list[Finished] = []
        with suppress(queue.Empty):
            self._take(done, *self._finished.get(timeout=STEP_WAIT_S_MAX))
            while True:
                self._take(done, *self._finished.get_nowait())
        return done

    def abort(self, keys: Iterable[int]) -> None:
        for key in keys:
            serial = self._in_flight.pop(key, None)
            if serial is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._cancel, serial)

    def stats(self) -> EngineStats:
        """`num_downs`: pauses since the endpoint last answered; 0 while it is up. Tokens count when a request ends."""
        num_running = min(len(self._in_flight), self.info.num_slots)
        since = self._down_since if self._in_flight else None  # without requests nobody knows
        return EngineStats(
            num_steps=self._num_steps,
            num_full_steps=self._num_full_steps,
            prompt_tokens=self._num_prompt_tokens,
            output_tokens=self._num_output_tokens,
            num_running=num_running,
            num_waiting=len(self._in_flight) - num_running,
            down_s=0.0 if since is None else max(0.0, self._loop.time() - since),
            down_reason="" if since is None else f"{self._root}: {self._down_reason}",
            extra={"num_downs": float(self._num_downs)},
        )

    def close(self) -> None:
        self._in_flight.clear()
        if not self._loop.is_closed():
            with suppress(RuntimeError):  # it has just ended by itself
                self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(CLOSE_S)

    def _check_alive(self) -> None:
        if not self._thread.is_alive():
            raise EngineDead("The HTTP engine's thread has ended. Build another engine.")

    def _take(self, done: list[Finished], key: int, serial: int, outcome: Outcome) -> None:
        if self._in_flight.get(key) == serial:
            del self._in_flight[key]
            if isinstance(outcome, Completion):
                self._num_prompt_tokens += outcome.usage.input_tokens
                self._num_output_tokens += outcome.usage.output_tokens
            done.append(Finished(key, outcome))

    # From here on: the loop's thread.

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._closing = asyncio.Event()
        self._slots = asyncio.Semaphore(self._options.concurrency)
        self._checking = asyncio.Lock()
        options = self._options
        async with Connection(
            self._root, self._key, concurrency=options.concurrency, timeout_s=options.timeout_s
        ) as self._connection:
            self._is_ready.set()
            await self._closing.wait()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, key: int, serial: int, prepared: HttpPrepared) -> None:
        task = self._loop.create_task(self._answer(key, serial, prepared))
        self._tasks[serial] = task
        task.add_done_callback(lambda _: self._tasks.pop(serial, None))

    def _cancel(self, serial: int) -> None:
        task = self._tasks.get(serial)
        if task is not None:
            task.cancel()

    async def _answer(self, key: int, serial: int, prepared: HttpPrepared) -> None:
        async with self._slots:
            try:
                outcome = await self._outcome(prepared)
            except Exception as error:  # the top of this task: a request without an outcome holds its batch for good
                log.exception("request.failed", url=self._root)
                outcome = Failure(type="model_error", message=f"The request to the endpoint failed: {error!r}")
        self._finished.put((key, serial, outcome))

    async def _outcome(self, prepared: HttpPrepared) -> Outcome:
        """One request until it has an outcome: waits out a down endpoint, tries failures again."""
        body, num_failures = prepared.body, 0
        while True:
            await self._until_resumed()
            answer = await self._attempt(body, prepared.wanted)
            if isinstance(answer, Down):
                self._pause(answer)
                continue
            self._num_downs, self._down_since = 0, None
            self._is_proven = self._is_proven or isinstance(answer, Completion)
            if not isinstance(answer, Failed):
                if prepared.body_without_limit not in (None, body) and is_max_tokens_complaint(answer):
                    body = prepared.body_without_limit or body
                    continue
                return answer
            num_failures += 1
            if num_failures >= ATTEMPTS_MAX:
                return Failure(type="model_error", message=f"{answer.message} ({num_failures} attempts)")
            await asyncio.sleep(max(answer.retry_after_s, self._backoff_s(num_failures)))

    async def _attempt(self, body: bytes, wanted: Wanted) -> Answer:
        said = await self._connection.ask("POST", PATHS[wanted.kind], body)
        if not (self._is_proven or self._options.wait_for_endpoint):
            await self._check(said)
        if isinstance(said, NoAnswer):
            match said.kind:
                case "unreachable" | "untrusted":
                    return Down(reason=said.reason)
                case "late":
                    return Failed(f"The endpoint did not answer within {self._options.timeout_s:g} s.")
                case "broken":
                    return Failed(f"The connection to the endpoint broke: {said.reason}")
        is_proven = self._is_proven or wanted.kind != "chat"  # not every endpoint has the other paths
        if is_proven and may_be_a_proxys(said):
            listed = await self._connection.ask("GET", MODELS_PATH)
            is_proven = not isinstance(listed, NoAnswer) and is_endpoints_own(listed)
        return read_answer(said, RESPONSE_BYTES_MAX, wanted, is_proven=is_proven)

    async def _check(self, said: Said | NoAnswer) -> None:
        """Nothing was answered well yet, and this was not either: is it the endpoint, or the request alone?"""
        if said.kind == "late" if isinstance(said, NoAnswer) else not is_refusal(said):
            return
        async with self._checking:  # one for all requests that met it
            if self._is_proven or self._problem is not None:
                return
            subject = Subject(root=self._root, model=self._options.model, has_key=bool(self._key), is_planned=True)
            async with Connection(self._root, self._key, concurrency=1, timeout_s=CHECK_TIMEOUT_S) as connection:
                checked = await check(connection.ask, subject, is_listing_enough=False)
            self._is_proven = self._is_proven or checked.is_proven
            if not self._is_proven:
                self._problem = checked.problem

    async def _until_resumed(self) -> None:
        while (wait_s := self._resume_at - self._loop.time()) > 0:
            await asyncio.sleep(wait_s)

    def _pause(self, answer: Down) -> None:
        """Stop dispatch for all. Of the many requests that find an endpoint down at once, the first counts."""
        now = self._loop.time()
        if now < self._resume_at:
            return
        self._num_downs += 1
        self._down_reason = answer.reason
        if self._num_downs == DOWNS_TOLD:
            log.warning("endpoint.down", url=self._root, reason=answer.reason)
        self._down_since = now if self._down_since is None else self._down_since
        wait_s = max(min(answer.retry_after_s, RETRY_AFTER_S_MAX), self._backoff_s(self._num_downs))
        self._resume_at = now + wait_s

    def _backoff_s(self, num: int) -> float:
        longest: float = min(BACKOFF_S_MAX, self._options.backoff_s * 2 ** min(num - 1, 16))
        return longest * (0.5 + self._rng.random() / 2)
