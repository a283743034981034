"""The types that modules exchange: requests and their outcomes.

Knows no file format, no store and no engine. `lines/` turns bytes into these and back. Types that are created for every
request are Structs: creating a frozen dataclass of 13 fields takes 2.6 us, a Struct 0.15 (of about 40 us per request).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import Struct

from batchfile.request_media import Media
from batchfile.request_options import Options

Role = Literal["system", "user", "assistant", "tool"]
LimitKey = Literal["max_tokens", "max_completion_tokens"]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "content_filter"]
ResultStatus = Literal["succeeded", "errored", "canceled", "expired"]
InputFormat = Literal["native", "openai"]
Kind = Literal["chat", "completion", "embedding", "score", "rerank", "classification", "pooling"]  # for engines
Form = Literal["response", "message"]  # of results for a conversation, other than a chat completion
ResultKind = Kind | Form
EngineKind = Literal["vllm", "http", "echo"]
Task = Literal["generate", "embed", "classify"]  # what a model is loaded for

Input = str | tuple[int, ...]  # a text, or token ids
# Numbers, or vectors of them (one for each token), or float32s (little-endian) in base64.
Vector = tuple[float | tuple[float, ...], ...] | str

# The limits of one batch.
REQUESTS_MAX = 10_000_000
LINE_BYTES_MAX = 16 * 1024 * 1024
METADATA_MAX = 16  # pairs
METADATA_NAME_CHARS_MAX = 64
METADATA_VALUE_CHARS_MAX = 512
REUSE_CHARS_MAX = 128  # the id of a batch, or "auto"

NAME_RULE = "use lower-case letters, digits, dots and dashes, at most 63"  # of pools and tenants
TENANT = "default"  # of a service without keys, and of local runs


class ToolCall(Struct, frozen=True):
    """A model asks for a tool. `id` is what the tool's answer refers to."""

    id: str
    name: str
    input: dict[str, Any]


class Message(Struct, frozen=True):
    """One turn. `content` is plain text; blocks were joined by the parser.

    `calls` only in turns of the assistant; `call_id` only in those of a tool: the call that it answers. `name`: of the
    speaker, if given. `parts`: of a user turn with media: its texts and media in their order; `content` is then the
    texts alone.
    """

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    parts: tuple[str | Media, ...] = ()


class Tool(Struct, frozen=True):
    """What a model may call. `input_schema`: the JSON schema of its input."""

    name: str
    description: str | None
    input_schema: dict[str, Any]
    is_strict: bool | None = None  # as in the request, for endpoints


class Tools(Struct, frozen=True, kw_only=True):
    """`choice`: whether the model calls one at all (auto), some tool (any) or the one of this `name` (named).

    `is_parallel`: an answer may hold several calls.
    """

    offered: tuple[Tool, ...]
    choice: Literal["auto", "any", "named"] = "auto"
    name: str | None = None
    is_parallel: bool = True

    @property
    def callable_now(self) -> tuple[Tool, ...]:
        return self.offered if self.name is None else tuple(tool for tool in self.offered if tool.name == self.name)


class Sampling(Struct, frozen=True, kw_only=True):
    """How to sample. None: the engine's own default.

    `max_tokens` counts generated tokens. If the request does not set it (`is_max_tokens_given` False), an engine lowers
    it to what still fits; if it does, a request that cannot fit is rejected.
    """

    max_tokens: int
    is_max_tokens_given: bool = True
    limit_key: LimitKey = "max_tokens"  # the field of the request to an endpoint
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    json_schema: dict[str, Any] | None = None  # the output must match it; {} means any JSON object
    schema_form: dict[str, Any] | None = (
        None  # json_schema with its name and strict, as the request has it, for endpoints
    )
    num_choices: int = 1
    ignore_eos: bool = False  # always generate max_tokens: for benchmarks


class Raw(Struct, frozen=True, kw_only=True):
    """Input that goes to the model unchanged, instead of a conversation.

    A completion continues its one input. An embedding request returns a vector for each input, with `dimensions` if
    given, and in base64 if requested; so does pooling, with whatever the model's pooler makes of an input. A
    classification returns the probability of each class. A score or a rerank compares the first `num_queries` inputs
    with the others, each with its own or one with all; a rerank returns the `top_n` nearest.
    """

    kind: Literal["completion", "embedding", "score", "rerank", "classification", "pooling"]
    inputs: tuple[Input, ...]
    num_queries: int = 0
    top_n: int = 0
    dimensions: int | None = None
    is_base64: bool = False


class Request(Struct, frozen=True, kw_only=True):
    """One request line, whatever format it came in.

    `messages`: normalized: at least one turn; system text (if any) is the first turn and the only one of its role; no
    two consecutive turns of one role and name, except those of tools. A last turn of role assistant is to be continued.
    `tools` None: the request has no tools. `is_thinking` None: the model's default.
    `raw`: instead of a conversation; there are no messages then. `options` None: the request sets none.
    `keeps_thinking`: whether the answer includes thinking that the request did not ask for; None: the engine decides.
    """

    custom_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    model: str | None = None
    tools: Tools | None = None
    is_thinking: bool | None = None
    raw: Raw | None = None
    options: Options | None = None
    keeps_thinking: bool | None = None
    form: Form | None = None

    @property
    def result_kind(self) -> ResultKind:
        return self.form or self.kind

    @property
    def generates(self) -> bool:
        return self.raw is None or self.raw.kind == "completion"

    @property
    def kind(self) -> Kind:
        return "chat" if self.raw is None else self.raw.kind

    @property
    def has_media(self) -> bool:
        for turn in self.messages:  # noqa: SIM110 `any` takes three times as long, and every request asks
            if turn.parts:
                return True
        return False

    @property
    def media(self) -> tuple[Media, ...]:
        """In the order of the conversation."""
        return tuple(part for turn in self.messages if turn.parts for part in turn.parts if isinstance(part, Media))

    @property
    def is_continuation(self) -> bool:
        """The answer continues the last turn."""
        if self.raw is not None:
            return False
        if self.options is not None:
            if self.options.continue_final_message is not None:
                return self.options.continue_final_message
            if self.options.add_generation_prompt:
                return False
        return self.messages[-1].role == "assistant"

    @property
    def has_guide(self) -> bool:
        """The request itself says what the answer must match."""
        guide = None if self.options is None else self.options.guide
        return self.sampling.json_schema is not None or (guide is not None and guide.is_constraint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The defaults for fields that a request does not set. Frozen into the batch record.

    `temperature` None: the default of the input format: 0.2 for `params` lines, 1.0 for OpenAI lines. If there is an
    `output_schema` (a JSON schema), every answer must match it; it also guides requests without a schema of their own.
    `url`: of a line with only custom_id and body; None: chat completions.
    `needs_max_tokens`: reject a `params` line without max_tokens, as Anthropic's API does.
    `needs_answer`: a refusal counts as a failed request, because the format of the results cannot express it.
    """

    max_tokens: int = 2048
    temperature: float | None = None
    model: str | None = None
    output_schema: dict[str, Any] | None = None
    url: str | None = None
    needs_max_tokens: bool = False
    needs_answer: bool = False


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens. `cached_tokens` is the part of `input_tokens` that the prefix cache served.

    `unknown`: results for which an endpoint reported no tokens; the sums do not include them.

    >>> usage = sum((result.usage for result in done.results()), batchfile.Usage())
    >>> usage.input_tokens, usage.output_tokens, usage.unknown
    (2, 2, 0)
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    unknown: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            unknown=self.unknown + other.unknown,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens - other.input_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
            cached_tokens=self.cached_tokens - other.cached_tokens,
            unknown=self.unknown - other.unknown,
        )


class TopLogprob(Struct, frozen=True, kw_only=True):
    """A token that was likely, with the natural logarithm of its probability; None for the first one of a prompt.
    `bytes`: of its UTF-8 text, if known.
    """

    token: str
    logprob: float | None
    bytes: tuple[int, ...] | None = None


class TokenLogprob(TopLogprob, frozen=True, kw_only=True):
    """A token of an answer, and the likeliest ones in its place, likeliest first."""

    top_logprobs: tuple[TopLogprob, ...] = ()


class Choice(Struct, frozen=True):
    """`stop_sequence`: the one that ended it, if the engine reports it. `thinking`: the model's reasoning.

    `logprobs`, `token_ids`: of each generated token, if requested; the former of the prompt too if `text` begins with
    it (`echo`).

    `stop_reason` refusal: `text` is what the model said instead of an answer. content_filter: `text` is what was
    generated before the filter stopped it.
    """

    text: str
    stop_reason: StopReason
    stop_sequence: str | None = None
    calls: tuple[ToolCall, ...] = ()
    thinking: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    token_ids: tuple[int, ...] | None = None


# For each token of a prompt: by token id, as vLLM's API has it; null for the first.
PromptLogprobs = list[dict[str, dict[str, Any]] | None]


class Completion(Struct, frozen=True, kw_only=True):
    """A request succeeded: one choice, or `num_choices` of them in order; an embedding has vectors instead.
    A score has a vector of one number for each pair, a rerank one of index and score for each document, nearest first.
    A classification has the probabilities of each input; `labels` are the names of the likeliest classes, if they have
    names. Pooling has a vector, or one for each token.

    `prompt_logprobs`, `prompt_token_ids`: if requested.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    kind: ResultKind = "chat"
    vectors: tuple[Vector, ...] = ()
    labels: tuple[str | None, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class Failure(Struct, frozen=True, kw_only=True):
    """A request ended without an answer. `status` says how; `type` and `message` are for its user.

    `http_status`: the status that an endpoint answered, if one did.
    """

    type: str
    message: str
    status: Literal["errored", "canceled", "expired"] = "errored"
    http_status: int | None = None


Outcome = Completion | Failure


class FailureGroup(Struct, frozen=True, kw_only=True):
    """Requests that did not succeed for one reason. `message`: … stands for what differs between them.

    `line` (of the input, from 1; while the batch runs, without the blank lines of its range), `custom_id` and `example`
    (the beginning of its message) are those of one of them. `advice`: what to do.
    """

    type: str
    message: str
    num_requests: int = msgspec.field(name="requests")
    line: int | None = None
    custom_id: str | None = None
    http_status: int | None = None
    example: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Finished requests by how they ended. `errored` includes `rejected`: those that were invalid and never ran.

    >>> counts = done.last_status.counts
    >>> counts.succeeded, counts.errored, counts.finished
    (2, 0, 2)
    """

    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0
    rejected: int = 0

    @property
    def failed(self) -> int:
        """Requests that ran without a valid answer."""
        return self.errored - self.rejected

    @property
    def finished(self) -> int:
        return self.succeeded + self.errored + self.canceled + self.expired

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            succeeded=self.succeeded + other.succeeded,
            errored=self.errored + other.errored,
            canceled=self.canceled + other.canceled,
            expired=self.expired + other.expired,
            rejected=self.rejected + other.rejected,
        )

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            succeeded=self.succeeded - other.succeeded,
            errored=self.errored - other.errored,
            canceled=self.canceled - other.canceled,
            expired=self.expired - other.expired,
            rejected=self.rejected - other.rejected,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """Which pool a request goes to; frozen into the batch record.

    `stages`: stage -> pool. `pools`: pool -> the model names (its own and its aliases) that lead to it.
    `adapters`: LoRA adapter -> its pool.
    `everything`: a pool that takes all requests, regardless of their fields (a local run's one engine).
    `tasks`: what the model of a pool is loaded for; not of an endpoint, which nobody knows.
    """

    stages: dict[str, str] = field(default_factory=dict)
    pools: dict[str, tuple[str, ...]] = field(default_factory=dict)
    everything: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
