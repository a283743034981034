"""Writes and reads native result lines and the lines of a part. The same outcome always gives the same bytes.

A line of a part is `[line, status, result]`, where `line` is the request's position in its range. The result is
included as it is, so assembling does not parse it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from msgspec import Struct

from batchfile.errors import BatchDamaged
from batchfile.lines.envelope import custom_id_of
from batchfile.request_media import Media
from batchfile.types import Choice, Completion, Failure, Outcome, ResultKind, ResultStatus, Usage

_ESCAPES = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)


def escape_separators(data: bytes) -> bytes:
    """The same JSON with Unicode line separators escaped, which valid JSON can contain only in strings."""
    if not data.isascii():
        for raw, escape in _ESCAPES:
            data = data.replace(raw, escape)  # returns the same object if unchanged
    return data


RESULT_BYTES_MAX = 512 * 1024 * 1024  # larger than any: 2,048 vectors of 8,192 numbers take about 350 MB

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeUsage:
    input_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeError:
    """`http_status`: of the endpoint's response, if there was one."""

    type: str
    message: str
    http_status: int | None = None


class NativeBlock(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`text` is set in a text block, `thinking` in a thinking block, the rest in a tool_use block."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeMedia:
    """`sha256`: of the bytes that were read, in hex; None if the endpoint read them itself."""

    type: str
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeMessage:
    content: list[NativeBlock]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeChoice:
    message: NativeMessage
    stop_reason: str
    logprobs: list[msgspec.Raw] | None = None
    token_ids: list[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeResult:
    """A decoded result line. `choices`: only if the request asked for several; `message` is then the first.

    `usage`: None also for a success if the endpoint did not report it. `stop_sequence`: only if a known one ended the
    (first) answer. `kind`: "chat" is not written. `vectors`: only for an embedding, a score, a classification or
    pooling, which have no message; each as it was written. `labels`: of the likeliest classes. `line`: of the file,
    only for a request without a custom_id.
    `logprobs` (a list of TokenLogprob) and `token_ids`: of the answer, if requested and if there is one choice; each of
    several `choices` has its own. `prompt_logprobs`, `prompt_token_ids`: if requested.
    `media`: of the request, in its order.
    """

    custom_id: str | None
    status: str
    message: NativeMessage | None
    stop_reason: str | None
    model: str | None
    usage: NativeUsage | None
    error: NativeError | None
    choices: list[NativeChoice] | None = None
    stop_sequence: str | None = None
    kind: ResultKind = "chat"
    vectors: list[msgspec.Raw] | None = None
    labels: list[str | None] | None = None
    line: int | None = None
    logprobs: list[msgspec.Raw] | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: list[msgspec.Raw] | None = None
    prompt_token_ids: list[int] | None = None
    media: list[NativeMedia] | None = None


_decoder = msgspec.json.Decoder(NativeResult)


def encode_result(
    custom_id: str | None, outcome: Outcome, model: str, *, line: int | None = None, media: Sequence[Media] = ()
) -> bytes:
    """One line without its newline. Keys and their order are fixed, without times or random ids, so that the same
    outcome gives the same bytes. Unicode line separators are escaped.

    `line`: of the file, from 1, for a request without a custom_id. `media`: of the request, in its order.
    `model` is written only for a success. Lone surrogates, which an HTTP endpoint may send and UTF-8 cannot encode, are
    replaced.
    """
    made: dict[str, object] = {
        "custom_id": custom_id,
        "status": outcome.status if isinstance(outcome, Failure) else "succeeded",
        **dict.fromkeys(("message", "stop_reason", "model", "usage", "error")),
    }
    made |= _succeeded(outcome, model) if isinstance(outcome, Completion) else {"error": _error(outcome)}
    if line is not None:
        made["line"] = line
    if media:
        made["media"] = [{"type": one.kind, "sha256": one.digest} for one in media]
    try:
        return escape_separators(_encoder.encode(made))
    except UnicodeEncodeError:
        return escape_separators(_encoder.encode(_repaired(made)))


def decode_result(line: bytes) -> NativeResult:
    """Decodes a line from `encode_result`; unknown keys, as of a later version, are ignored."""
    return _decoder.decode(line)


_ID_START = b'{"custom_id":"'
_STATUS_START = b'","status":"'
_SUCCEEDED = b'","status":"succeeded",'


def after_id(result: bytes) -> bytes | None:
    """All that follows the custom_id in a succeeded line from `encode_result`; None for any other line.

    Inside a JSON string no quote stands without a backslash, so the first `","status":"` ends the id, whatever it is.
    """
    at = result.find(_STATUS_START) if result.startswith(_ID_START) else -1
    return result[at + 1 :] if at >= 0 and result.startswith(_SUCCEEDED, at) else None


def with_id(custom_id: bytes, result: bytes) -> bytes | None:
    """A succeeded result line as that of the request with this custom_id, encoded; None for any other line.

    Nothing in it depends on the line of the request: the ids of tool calls only have to differ within one answer.
    """
    if result.startswith(b'{"custom_id":%b,"status":"succeeded",' % custom_id):
        return result  # nearly always: nothing has to be copied
    rest = after_id(result)
    return None if rest is None else b'{"custom_id":%b%b' % (custom_id, rest)


_PLAIN_ID = re.compile(rb'\{"custom_id": ?("[ !#-\[\]-~]+")[,}]')


def encoded_id(request: bytes) -> bytes:
    """The custom_id of a valid request line, as a result line has it. Nearly every line begins with it."""
    plain = _PLAIN_ID.match(request)
    return plain[1] if plain else escape_separators(_encoder.encode(custom_id_of(request)))


def _error(failure: Failure) -> dict[str, object]:
    error: dict[str, object] = {"type": failure.type, "message": failure.message}
    if failure.http_status is not None:
        error["http_status"] = failure.http_status
    return error


def _succeeded(outcome: Completion, model: str) -> dict[str, object]:
    line: dict[str, object] = {"model": model, "usage": _usage(outcome.usage)}
    if outcome.kind != "chat":
        line["kind"] = outcome.kind
    if outcome.labels:
        line["labels"] = outcome.labels
    if outcome.vectors:
        return line | {"vectors": outcome.vectors}
    first = outcome.choices[0]
    line |= {"message": _message(first), "stop_reason": first.stop_reason}
    if first.stop_sequence is not None:
        line["stop_sequence"] = first.stop_sequence
    if len(outcome.choices) > 1:
        line["choices"] = [
            {"message": _message(choice), "stop_reason": choice.stop_reason} | _details(choice)
            for choice in outcome.choices
        ]
    elif first.logprobs is not None or first.token_ids is not None:
        line |= _details(first)
    if outcome.prompt_logprobs is not None:
        line["prompt_logprobs"] = outcome.prompt_logprobs
    if outcome.prompt_token_ids is not None:
        line["prompt_token_ids"] = outcome.prompt_token_ids
    return line


def _details(choice: Choice) -> dict[str, object]:
    details = {"logprobs": choice.logprobs, "token_ids": choice.token_ids}
    return {name: value for name, value in details.items() if value is not None}


def _usage(usage: Usage) -> dict[str, object] | None:
    if usage.unknown:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _repaired(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_repaired(key): _repaired(item) for key, item in value.items()}
    if isinstance(value, Struct):
        return _repaired(msgspec.structs.asdict(value))
    return [_repaired(item) for item in value] if isinstance(value, list | tuple) else value


def _message(choice: Choice) -> dict[str, object]:
    if not choice.calls and choice.thinking is None:
        return {"content": [{"type": "text", "text": choice.text}]}
    blocks: list[dict[str, object]] = []
    if choice.thinking is not None:
        blocks.append({"type": "thinking", "thinking": choice.thinking, "signature": ""})
    if choice.text or not choice.calls:
        blocks.append({"type": "text", "text": choice.text})
    for call in choice.calls:
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.input})
    return {"content": blocks}


REFUSALS = frozenset({"refusal", "content_filter"})  # stop reasons
TEXT_CHARS_MAX = 2_000  # of an answer quoted in an error message

_WHAT = {
    "refusal": "The model refused to answer",
    "content_filter": "The endpoint's content filter stopped the answer",
}


def refusal_failure(stop_reason: str, text: str) -> Failure:
    """`text`: the answer so far. The type of the failure is the stop reason."""
    what, said = _WHAT[stop_reason], text.strip()[:TEXT_CHARS_MAX]
    return Failure(type=stop_reason, message=f"{what}: {said}" if said else f"{what}.")


def explanation(stop_reason: str) -> str:
    """A sentence about a refusal, for formats that give the answer separately."""
    return f"{_WHAT[stop_reason]}."


class FinishedLine(Struct, frozen=True, gc=False):
    """One finished request: its position in the range, its status and its native result line (no newline).

    `gpu_s`: its share of the GPU time in seconds; 0 without GPUs. `engine_s`: how long the engine had it; 0: never.
    """

    line: int
    status: ResultStatus
    result: bytes
    usage: Usage = Usage()
    gpu_s: float = 0.0
    engine_s: float = 0.0


class PartLine(Struct, frozen=True, gc=False):
    line: int
    status: ResultStatus
    result: bytes


_STATUS: dict[bytes, ResultStatus] = {f'"{status}"'.encode(): status for status in get_args(ResultStatus)}


def encode_part(lines: Sequence[FinishedLine]) -> bytes:
    return b"".join([b'[%d,"%s",%s]\n' % (item.line, item.status.encode(), item.result) for item in lines])


def decode_part(data: bytes) -> list[PartLine]:
    """Raises: BatchDamaged if the bytes are not a part. The digest was checked before, so that would be a bug."""
    try:
        rows = [row[1:-1].split(b",", 2) for row in data[:-1].split(b"\n")]
        return [PartLine(int(number), _STATUS[status], result) for number, status, result in rows]
    except (ValueError, KeyError) as error:
        raise BatchDamaged(f"a part contains an invalid line: {error}") from error
