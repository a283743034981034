"""The engine for an OpenAI-compatible endpoint. Runs an event loop in a separate thread.

Requests and responses are in wire.py, the connection is in connection.py.
"""

import asyncio
import queue
import random
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import structlog

from batchfile.engine.base import EngineInfo, EngineStats, Finished, Prepared, in_flight_for
from batchfile.engine.http.answer import expected_answer
from batchfile.engine.http.check import CHECK_SILENCE_S_MAX, CHECK_TIMEOUT_S, CheckResult, Subject, check
from batchfile.engine.http.connection import Connection
from batchfile.engine.http.dispatch import PROBES_AT_ONCE, Dispatcher, HttpPrepared, Pace
from batchfile.engine.http.wire import api_root, request_body
from batchfile.engine.prompts import prefix_of
from batchfile.errors import EngineDead, SettingsError
from batchfile.request_media import MediaUse
from batchfile.types import Completion, Failure, Outcome, Request

log = structlog.get_logger()

STEP_WAIT_S_MAX = 0.05
CLOSE_S = 10.0
PAUSED_MAX = 1_024  # requests that wait for their next attempt, in addition to those that fill the slots


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions(Pace):
    """`base_url`: with or without /v1. `model`: the name at the endpoint.

    `timeout_s`: for one attempt, from the connection to the last byte.
    `wait_for_endpoint`: also before its first success; otherwise a wrong address, key or model raises SettingsError.
    """

    base_url: str
    model: str
    api_key: str | None = None
    timeout_s: float = 600.0
    wait_for_endpoint: bool = True


def check_endpoint(options: HttpOptions, say: Callable[[str], None] = lambda line: None) -> None:
    """Checks the endpoint before any work. Blocks until it is known to be usable, or at least not unusable.

    `say` gets a line for people if that takes more than a moment.
    Raises: SettingsError that says what is wrong with the address, the key or the model.
    """
    root = api_root(options.base_url)

    def tell() -> None:
        log.info("endpoint.checking", endpoint=root, timeout_s=CHECK_TIMEOUT_S)
        say(f"checking the endpoint {root} ...")

    async def ask_all() -> str | None:
        notice = asyncio.get_running_loop().call_later(CHECK_SILENCE_S_MAX, tell)
        try:
            return (await _checked(options, is_planned=False)).problem
        finally:
            notice.cancel()

    problem = asyncio.run(ask_all())
    if problem is not None:
        raise SettingsError(problem)


async def _checked(options: HttpOptions, *, is_planned: bool) -> CheckResult:
    """`is_planned`: a run with this model exists already; otherwise it is enough that the endpoint lists the model."""
    root, key = api_root(options.base_url), _header_key(options)
    subject = Subject(root=root, model=options.model, has_key=bool(key), is_planned=is_planned)
    async with Connection(root, key, concurrency=1, timeout_s=CHECK_TIMEOUT_S) as connection:
        return await check(connection.ask, subject, is_listing_enough=not is_planned)


def _header_key(options: HttpOptions) -> str:
    """The API key, which may be empty. Raises: SettingsError."""
    key = (options.api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(
            "the API key of the endpoint has characters that HTTP headers do not allow: check it for line breaks"
        )
    return key


UNFORESEEN = "An unexpected error occurred while the endpoint's answer was read; see the runner's log. Run it again."


class HttpEngine:
    """While the endpoint is down, requests wait inside and do not fail.

    Raises: SettingsError, also from `step` if the endpoint cannot serve requests and `wait_for_endpoint` is off.
    """

    def __init__(self, options: HttpOptions, rng: random.Random | None = None) -> None:
        self._root = api_root(options.base_url)
        if options.concurrency < 1:
            raise SettingsError(f"The concurrency of an HTTP engine is {options.concurrency}; set at least 1.")
        self._key = _header_key(options)
        self._options = options
        self._rng = rng or random.Random()
        self._info = EngineInfo(
            name="http",
            model=options.model,
            version="openai",
            num_slots=options.concurrency,
            max_in_flight=in_flight_for(options.concurrency),
            media=MediaUse(kinds=frozenset({"image", "audio"}), is_sent=True),
        )
        self._num_steps = 0
        self._num_full_steps = 0
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        # For the owner's thread. The serial distinguishes a late answer to an aborted request from that to its
        # successor.
        self._in_flight: dict[int, int] = {}
        self._serial = 0
        self._finished: queue.SimpleQueue[tuple[int, int, Outcome]] = queue.SimpleQueue()
        # For the loop's thread only.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, name="http-engine", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    @property
    def info(self) -> EngineInfo:
        """`max_in_flight` does not count requests that wait for their next attempt, because they need no slot."""
        num_paused = min(self._dispatcher.num_paused, PAUSED_MAX)
        return replace(self._info, max_in_flight=self._info.max_in_flight + num_paused) if num_paused else self._info

    def prepare(self, request: Request) -> HttpPrepared:
        sampling = request.sampling
        body = request_body(request, self._options.model, sampling.max_tokens)
        return HttpPrepared(
            prefix=prefix_of(request),
            cost=sampling.max_tokens,
            media_bytes=2 * len(body) if request.has_media else 0,
            body=body,
            body_without_limit=(
                None if sampling.is_max_tokens_given else request_body(request, self._options.model, None)
            ),
            wanted=expected_answer(request),
        )

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, HttpPrepared)
        self._check_alive()
        self._serial += 1
        self._in_flight[key] = self._serial
        self._loop.call_soon_threadsafe(self._start, key, self._serial, prepared)

    def step(self) -> list[Finished]:
        self._check_alive()
        if self._dispatcher.problem is not None:
            raise SettingsError(self._dispatcher.problem)
        if not self._in_flight:
            return []
        self._num_steps += 1
        self._num_full_steps += len(self._in_flight) >= self._info.num_slots
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
        """Tokens count when a request ends.

        `num_unserved`: failures since the endpoint's last success; `num_allowed`: the current limit on requests at
        once.
        """
        dispatcher, num_in_flight = self._dispatcher, len(self._in_flight)
        num_running = min(num_in_flight, dispatcher.num_running)
        since = dispatcher.down_since if num_in_flight else None  # unknown without requests
        return EngineStats(
            num_steps=self._num_steps,
            num_full_steps=self._num_full_steps,
            prompt_tokens=self._num_prompt_tokens,
            output_tokens=self._num_output_tokens,
            num_running=num_running,
            num_waiting=num_in_flight - num_running,
            down_s=0.0 if since is None else max(0.0, self._loop.time() - since),
            down_reason="" if since is None else f"{self._root}: {dispatcher.reason}",
            down_status=None if since is None else dispatcher.http_status,
            extra={"num_unserved": float(dispatcher.num_unserved), "num_allowed": float(dispatcher.num_allowed)},
        )

    def close(self) -> None:
        self._in_flight.clear()
        if not self._loop.is_closed():
            with suppress(RuntimeError):  # the loop has just ended
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
        async with self._connection() as kept, self._connection(is_kept=False) as anew:
            check_now = None if self._options.wait_for_endpoint else partial(_checked, self._options, is_planned=True)
            self._dispatcher = Dispatcher(
                self._root, kept.ask, anew.ask, self._options.model, self._options, self._rng, check_now
            )
            self._is_ready.set()
            await self._closing.wait()
            self._dispatcher.close()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _connection(self, *, is_kept: bool = True) -> Connection:
        concurrency, timeout_s = self._options.concurrency + PROBES_AT_ONCE, self._options.timeout_s
        return Connection(self._root, self._key, concurrency=concurrency, timeout_s=timeout_s, is_kept=is_kept)

    def _start(self, key: int, serial: int, prepared: HttpPrepared) -> None:
        task = self._loop.create_task(self._answer(key, serial, prepared))
        self._tasks[serial] = task
        task.add_done_callback(lambda _: self._tasks.pop(serial, None))

    def _cancel(self, serial: int) -> None:
        task = self._tasks.get(serial)
        if task is not None:
            task.cancel()

    async def _answer(self, key: int, serial: int, prepared: HttpPrepared) -> None:
        try:
            outcome = await self._dispatcher.outcome(serial, prepared)
        except Exception:  # the top of this task: a request without an outcome would block its batch forever
            log.exception("request.failed", url=self._root)
            outcome = Failure(type="model_error", message=UNFORESEEN)
        self._finished.put((key, serial, outcome))
