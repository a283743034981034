"""The echo engine: without a model, the answer is a fixed function of the request. For tests, demos and benchmarks.

Tokens are separated by single spaces. The answer is the text of the last user turn, in which images and audio are named
with their size, cut after `max_tokens` tokens and before the first stop sequence; all choices of a request are the
same. Options set the answer to requests with a JSON schema or with tools. A raw prompt is its own answer; a vector is
derived from the digest of its text.
"""

import heapq
import json
import os
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import shake_128
from math import hypot, inf
from typing import Any

from msgspec.structs import replace as replace_fields

from batchfile.clock import Clock, SystemClock
from batchfile.endpoints import SERVED
from batchfile.engine.base import EngineInfo, EngineStats, Finished, Prepared, in_flight_for
from batchfile.engine.fit import check_options, check_served, check_size, compared, vector_of
from batchfile.engine.identity import EngineIdentity
from batchfile.engine.prompts import prefix_of
from batchfile.engine.tool_wire import NO_THINKING, NO_TOOLS, call_stem, made_calls
from batchfile.errors import EngineDead, InvalidRequest, SettingsError
from batchfile.request_media import Media, MediaUse
from batchfile.request_options import Options
from batchfile.types import (
    Choice,
    Completion,
    Input,
    Message,
    Raw,
    Request,
    StopReason,
    Task,
    TokenLogprob,
    TopLogprob,
    Usage,
    Vector,
)

PREFIX = "BATCHFILE_ECHO_"
VERSION = "1"  # of the answers


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoOptions:
    """`guided`: the answer to a request with a JSON schema, which this engine cannot follow by itself.

    `tool_input`: enables tools: the answer to a request with tools calls one of them with this input (the named one or
    the first), unless the last turn is a tool result. `thinking`: enables thinking, with this text.
    """

    num_slots: int = 256
    seconds_per_token: float = 0.0
    latency_s: float = 0.0
    guided: str | None = None
    tool_input: dict[str, Any] | None = None
    thinking: str | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "EchoOptions":
        """BATCHFILE_ECHO_SLOTS, _SECONDS_PER_TOKEN, _LATENCY_S, _GUIDED, _TOOL_INPUT, _THINKING.

        Raises: SettingsError.
        """
        env = os.environ if env is None else env
        return cls(
            num_slots=int(_number(env, "SLOTS", 256, at_least=1)),
            seconds_per_token=_number(env, "SECONDS_PER_TOKEN", 0.0),
            latency_s=_number(env, "LATENCY_S", 0.0),
            guided=env.get(PREFIX + "GUIDED") or None,
            tool_input=_object(env, "TOOL_INPUT"),
            thinking=env.get(PREFIX + "THINKING") or None,
        )


def _number(env: Mapping[str, str], name: str, default: float, at_least: float = 0.0) -> float:
    text = env.get(PREFIX + name)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not at_least <= number < float("inf"):
        raise SettingsError(f"{PREFIX}{name} is {text!r}, but must be a number of at least {at_least:g}.")
    return number


def _object(env: Mapping[str, str], name: str) -> dict[str, Any] | None:
    text = env.get(PREFIX + name)
    if not text:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingsError(f"{PREFIX}{name} is {text!r}, but must be a JSON object.")
    return found


def identity_of(
    model: str, task: Task, guided: str | None, tool_input: dict[str, Any] | None, thinking: str | None
) -> EngineIdentity:
    """Not of the options that only change how long an answer takes."""
    given = {"guided": guided or "", "tool_input": json.dumps(tool_input, sort_keys=True), "thinking": thinking or ""}
    options = {f"{PREFIX}{name.upper()}": value for name, value in given.items()}
    return EngineIdentity({"the engine": f"echo {VERSION}", "the model": model, "the task": task, **options})


# On the system clock, a step returns at least this often.
STEP_WAIT_S_MAX = 0.05
DIMENSIONS = 32  # of a vector, unless the request sets it
LABELS = ("LABEL_0", "LABEL_1")  # of a classification


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoPrepared(Prepared):
    request: Request
    completion: Completion
    work_s: float


class EchoEngine:
    """Continuous batching without a model: `num_slots` run, each for latency_s + tokens * seconds_per_token.

    `tokens` sets how many tokens a request generates, regardless of its max_tokens; the default is the length of its
    text, up to max_tokens. With a `clock`, a step sleeps on it until the next request finishes.
    """

    def __init__(
        self,
        *,
        num_slots: int = 256,
        seconds_per_token: float = 0.0,
        latency_s: float = 0.0,
        clock: Clock | None = None,
        tokens: Callable[[Request], int] | None = None,
        guided: str | None = None,
        tool_input: dict[str, Any] | None = None,
        thinking: str | None = None,
        model: str = "echo",
        task: Task = "generate",
    ) -> None:
        identity = identity_of(model, task, guided, tool_input, thinking)
        self.info = EngineInfo(
            name="echo",
            model=model,
            version=VERSION,
            num_slots=num_slots,
            max_in_flight=in_flight_for(num_slots),
            identity=identity if tokens is None else None,
            media=MediaUse(kinds=frozenset({"image", "audio"})),
        )
        self._clock: Clock = clock or SystemClock()
        self._wait_s_max = inf if clock else STEP_WAIT_S_MAX
        self._seconds_per_token = seconds_per_token
        self._latency_s = latency_s
        self._task = task
        self._tokens = tokens
        self._guided = guided
        self._tool_input = tool_input
        self._thinking = thinking
        self._waiting: deque[tuple[int, EchoPrepared]] = deque()
        # A heap of (time when it finishes, key, request).
        self._running: list[tuple[float, int, EchoPrepared]] = []
        self._num_steps = 0
        self._num_full_steps = 0
        self._num_prompt_tokens = 0  # of finished requests
        self._num_output_tokens = 0
        self._seen = (0, 0)  # the last prompt and output tokens from `stats`
        self._is_dead = False

    def prepare(self, request: Request) -> EchoPrepared:
        check_options(request)
        if request.has_media:
            request = replace_fields(request, messages=tuple(media_as_text(turn) for turn in request.messages))
        if request.raw is None and self._task == "generate":
            num_tokens, completion = self._answer(request)
        else:
            num_tokens, completion = self._raw_answer(request)
        if self._guided is not None and request.sampling.json_schema is not None:
            choices = (Choice(self._guided, "end_turn"),) * request.sampling.num_choices
            completion = Completion(choices=choices, usage=completion.usage)
        if request.tools is not None or request.is_thinking:
            completion = self._with_blocks(request, completion)
        if request.options is not None:
            completion = _with_options(request, request.options, completion)
        if request.form is not None:
            completion = replace_fields(completion, kind=request.form)
        return EchoPrepared(
            prefix=prefix_of(request),
            cost=request.sampling.max_tokens,
            request=request,
            completion=completion,
            work_s=self._latency_s + num_tokens * self._seconds_per_token,
        )

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        if self._is_dead:
            raise EngineDead("The echo engine died earlier. Build another one.")
        self._waiting.append((key, prepared))

    def step(self) -> list[Finished]:
        if self._is_dead:
            raise EngineDead("The echo engine died earlier. Build another one.")
        if not self._waiting and not self._running:
            return []
        self._num_steps += 1
        now = self._clock.monotonic()
        done = self._start(now)
        if not done and self._running and self._running[0][0] > now:
            self._clock.sleep(min(self._running[0][0] - now, self._wait_s_max))
            now = self._clock.monotonic()
        while self._running and self._running[0][0] <= now:
            _, key, prepared = heapq.heappop(self._running)
            done.append(Finished(key, prepared.completion))
        for finished in done:
            if isinstance(finished.outcome, Completion):
                self._num_prompt_tokens += finished.outcome.usage.input_tokens
                self._num_output_tokens += finished.outcome.usage.output_tokens
        return done

    def abort(self, keys: Iterable[int]) -> None:
        gone = set(keys)
        self._waiting = deque(item for item in self._waiting if item[0] not in gone)
        self._running = [item for item in self._running if item[1] not in gone]
        heapq.heapify(self._running)

    def stats(self) -> EngineStats:
        running, now = list(self._running), self._clock.monotonic()
        num_prompt, num_output = self._num_prompt_tokens, self._num_output_tokens
        for finish_at, _, prepared in running:
            usage, computing_s = prepared.completion.usage, now - (finish_at - prepared.work_s) - self._latency_s
            if computing_s > 0:  # latency_s represents the prompt's computation
                num_prompt += usage.input_tokens
                share = min(1.0, computing_s / max(prepared.work_s - self._latency_s, 1e-9))
                num_output += int(share * usage.output_tokens)
        self._seen = (max(self._seen[0], num_prompt), max(self._seen[1], num_output))
        return EngineStats(
            num_steps=self._num_steps,
            num_full_steps=self._num_full_steps,
            prompt_tokens=self._seen[0],
            output_tokens=self._seen[1],
            num_running=len(running),
            num_waiting=len(self._waiting),
        )

    def close(self) -> None:
        self._is_dead = True

    def _start(self, now: float) -> list[Finished]:
        """Starts waiting requests, and returns those that take no time."""
        done = []
        for key, prepared in self._take():
            if prepared.work_s > 0:
                heapq.heappush(self._running, (now + prepared.work_s, key, prepared))
            else:
                done.append(Finished(key, prepared.completion))
        return done

    def _take(self) -> list[tuple[int, EchoPrepared]]:
        """Gives free slots to waiting requests in order of arrival."""
        free = self.info.num_slots - len(self._running)
        started = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        self._num_full_steps += len(started) == free
        return started

    def _with_blocks(self, request: Request, completion: Completion) -> Completion:
        """Adds the configured tool call and thinking. Raises: InvalidRequest if they are not configured."""
        if request.is_thinking and self._thinking is None:
            raise InvalidRequest(NO_THINKING.format(why="its echo engine has no `thinking` option"))
        if request.tools is not None and self._tool_input is None:
            raise InvalidRequest(NO_TOOLS.format(why="its echo engine has no `tool_input` option"))
        is_calling = request.tools is not None and request.messages[-1].role != "tool"
        choices = []
        for number, text in enumerate(completion.choices):
            choice = text
            if request.is_thinking:
                choice = replace_fields(choice, thinking=self._thinking)
            if is_calling and request.tools is not None:
                called = [(request.tools.callable_now[0].name, self._tool_input)]
                calls = made_calls(call_stem(request), number, called)
                choice = replace_fields(choice, text="", stop_reason="tool_use", stop_sequence=None, calls=calls)
            choices.append(choice)
        return replace_fields(completion, choices=tuple(choices))

    def _raw_answer(self, request: Request) -> tuple[int, Completion]:
        """Like `_answer`, for a raw prompt or an embedding. Raises: InvalidRequest if another pool serves it."""
        check_served(request, SERVED[self._task], self.info.model)
        raw = request.raw
        assert raw is not None, "an engine that generates answers conversations"
        if not request.generates:
            return 1, _classes(raw) if raw.kind == "classification" else _vectors(raw)
        text = text_of(raw.inputs[0])
        num_tokens, completion = self._echo(request, text, text.count(" ") + 1)
        return num_tokens, replace_fields(completion, kind="completion")

    def _answer(self, request: Request) -> tuple[int, Completion]:
        """The number of generated tokens, and the answer."""
        messages = request.messages
        text = next((turn.content for turn in reversed(messages) if turn.role == "user"), messages[-1].content)
        return self._echo(request, text, sum(turn.content.count(" ") + 1 for turn in messages))

    def _echo(self, request: Request, text: str, num_input_tokens: int) -> tuple[int, Completion]:
        sampling = request.sampling
        num_tokens = text.count(" ") + 1
        reason: StopReason = "end_turn"
        matched: str | None = None
        if num_tokens > sampling.max_tokens:
            num_tokens, reason = sampling.max_tokens, "max_tokens"
            text = " ".join(text.split(" ", num_tokens)[:num_tokens])
        if self._tokens is not None:
            num_tokens = self._tokens(request)
        for stop in sampling.stop:
            if stop in text:
                text, reason, matched = text[: text.index(stop)], "stop_sequence", stop
        usage = Usage(
            input_tokens=num_input_tokens,
            output_tokens=num_tokens * sampling.num_choices,
        )
        return num_tokens, Completion(choices=(Choice(text, reason, matched),) * sampling.num_choices, usage=usage)


def _with_options(request: Request, options: Options, completion: Completion) -> Completion:
    """Follows a list of choices (with the first), `echo` and `logprobs` (of certain tokens)."""
    choices = completion.choices
    if options.guide is not None and options.guide.choice is not None:
        choices = (Choice(options.guide.choice[0], "end_turn"),) * request.sampling.num_choices
    if options.echo and (begun := _begun(request)):
        choices = tuple(replace_fields(one, text=begun + one.text) for one in choices)
    if options.logprobs is not None:
        choices = tuple(replace_fields(one, logprobs=_logprobs(one.text, options.logprobs)) for one in choices)
    return replace_fields(completion, choices=choices)


def _begun(request: Request) -> str:
    last = Message("assistant", text_of(request.raw.inputs[0])) if request.raw else request.messages[-1]
    return last.content if last.role == "assistant" else ""


def _logprobs(text: str, num: int) -> tuple[TokenLogprob, ...]:
    made = []
    for token in re.findall(r" ?[^ ]+| ", text):
        fields: dict[str, Any] = {"token": token, "logprob": 0.0, "bytes": tuple(token.encode("utf-8", "replace"))}
        made.append(TokenLogprob(**fields, top_logprobs=(TopLogprob(**fields),) if num else ()))
    return tuple(made)


def media_as_text(turn: Message) -> Message:
    """The turn as text: `[image 640x480]`, `[audio 2.5s]`."""
    return replace_fields(turn, content="\n\n".join(map(_part_as_text, turn.parts)), parts=()) if turn.parts else turn


def _part_as_text(part: str | Media) -> str:
    if isinstance(part, str):
        return part
    size = f"{part.decoded.width}x{part.decoded.height}" if part.kind == "image" else f"{part.decoded.seconds:g}s"
    return f"[{part.kind} {size}]"


def text_of(given: Input) -> str:
    return given if isinstance(given, str) else " ".join(map(str, given))


def _vectors(raw: Raw) -> Completion:
    """Unit vectors from the digest of each input. A shorter vector is not a prefix of a longer one."""
    num = raw.dimensions or DIMENSIONS
    check_size(len(raw.inputs), num)
    vectors = []
    for given in raw.inputs:
        numbers = struct.unpack(f"<{num}h", shake_128(text_of(given).encode("utf-8", "replace")).digest(2 * num))
        length = hypot(*numbers) or 1.0
        singles = struct.pack(f"<{num}f", *[number / length for number in numbers])
        vectors.append(struct.unpack(f"<{num}f", singles))
    usage = Usage(input_tokens=sum(text_of(given).count(" ") + 1 for given in raw.inputs))
    made: tuple[Vector, ...]
    if raw.kind in ("embedding", "pooling"):
        made = tuple(vector_of(vector, is_base64=raw.is_base64) for vector in vectors)
    else:
        made = compared(raw, vectors)
    return Completion(choices=(), usage=usage, kind=raw.kind, vectors=made)


def _classes(raw: Raw) -> Completion:
    """The probabilities of two classes from the digest of each input."""
    shares = [shake_128(text_of(given).encode("utf-8", "replace")).digest(1)[0] / 256 for given in raw.inputs]
    usage = Usage(input_tokens=sum(text_of(given).count(" ") + 1 for given in raw.inputs))
    labels = tuple(LABELS[share > 0.5] for share in shares)
    vectors = tuple((1 - share, share) for share in shares)
    return Completion(choices=(), usage=usage, kind=raw.kind, vectors=vectors, labels=labels)
