"""The native result line: one finished request, the same bytes for the same work; and the lines of a part.

A line of a part is `[line, status, result]`, where `line` is the request's place in its range. The result travels in it
as bytes, so that assembling parses nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import Struct

from batchfile.errors import BatchDamaged
from batchfile.types import Choice, Completion, Failure, Kind, Outcome, Status, Usage

_ESCAPES = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)


def escape_separators(data: bytes) -> bytes:
    """JSON of the same meaning without raw separators. In valid JSON they can only be in strings."""
    if not data.isascii():
        for raw, escape in _ESCAPES:
            data = data.replace(raw, escape)  # the same object where there is none
    return data


RESULT_BYTES_MAX = 512 * 1024 * 1024  # more than any: 2,048 vectors of 8,192 numbers are some 350 MB

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeUsage:
    input_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeError:
    """`http_status`: what an endpoint answered, where one did."""

    type: str
    message: str
    http_status: int | None = None


class NativeBlock(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`text` of a text block, `thinking` of a thinking one; the rest of a tool_use block."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeMessage:
    content: list[NativeBlock]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeChoice:
    message: NativeMessage
    stop_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeResult:
    """A result line, read. `choices` only where a request asked for several; `message` is then the first.

    `usage` of a success is None where an endpoint did not tell it. `stop_sequence` only where one ended the (first)
    answer and is known. `kind` only of what is no conversation. `vectors`, each as it was written, only of an
    embedding, which has no message. `line`, of the file, only of a request without a custom_id.
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
    kind: Kind = "chat"
    vectors: list[msgspec.Raw] | None = None
    line: int | None = None


_decoder = msgspec.json.Decoder(NativeResult)


def encode_result(custom_id: str | None, outcome: Outcome, model: str, *, line: int | None = None) -> bytes:
    """One line without its newline. Keys and their order are fixed; there are no times and no random ids.
    Line separators of Unicode are escaped.

    `line`: of the file, from 1, of a request that has no custom_id to find it by.
    `model` is written where the request succeeded. Text that UTF-8 cannot carry (half of a surrogate pair, which
    an HTTP endpoint may send) is replaced, so that any outcome has a line.
    """
    made: dict[str, object] = {
        "custom_id": custom_id,
        "status": outcome.status if isinstance(outcome, Failure) else "succeeded",
        **dict.fromkeys(("message", "stop_reason", "model", "usage", "error")),
    }
    made |= _succeeded(outcome, model) if isinstance(outcome, Completion) else {"error": _error(outcome)}
    if line is not None:
        made["line"] = line
    try:
        return escape_separators(_encoder.encode(made))
    except UnicodeEncodeError:
        return escape_separators(_encoder.encode(_repaired(made)))


def decode_result(line: bytes) -> NativeResult:
    """Reads what `encode_result` wrote; keys of a later version are ignored."""
    return _decoder.decode(line)


def _error(failure: Failure) -> dict[str, object]:
    error: dict[str, object] = {"type": failure.type, "message": failure.message}
    if failure.http_status is not None:
        error["http_status"] = failure.http_status
    return error


def _succeeded(outcome: Completion, model: str) -> dict[str, object]:
    line: dict[str, object] = {"model": model, "usage": _usage(outcome.usage)}
    if outcome.kind != "chat":
        line["kind"] = outcome.kind
    if outcome.vectors:
        return line | {"vectors": outcome.vectors}
    first = outcome.choices[0]
    line |= {"message": _message(first), "stop_reason": first.stop_reason}
    if first.stop_sequence is not None:
        line["stop_sequence"] = first.stop_sequence
    if len(outcome.choices) > 1:
        line["choices"] = [
            {"message": _message(choice), "stop_reason": choice.stop_reason} for choice in outcome.choices
        ]
    return line


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
TEXT_CHARS_MAX = 2_000  # of the answer, in a message

_WHAT = {
    "refusal": "The model refused to answer",
    "content_filter": "The endpoint's content filter stopped the answer",
}


def refusal_failure(stop_reason: str, text: str) -> Failure:
    """`text`: what the model said. The type of the failure is the stop reason."""
    what, told = _WHAT[stop_reason], text.strip()[:TEXT_CHARS_MAX]
    return Failure(type=stop_reason, message=f"{what}: {told}" if told else f"{what}.")


def explanation(stop_reason: str) -> str:
    """Next to the text."""
    return f"{_WHAT[stop_reason]}."


class FinishedLine(Struct, frozen=True):
    """One finished request: its place in the range, how it ended, its native result line (no newline).

    `gpu_s`: its share of the seconds that GPUs worked; 0 where there are none.
    """

    line: int
    status: Status
    result: bytes
    usage: Usage = Usage()
    gpu_s: float = 0.0


class PartLine(NamedTuple):
    line: int
    status: Status
    result: bytes


_STATUS: dict[bytes, Status] = {f'"{status}"'.encode(): status for status in get_args(Status)}


def encode_part(lines: Sequence[FinishedLine]) -> bytes:
    return b"".join([b'[%d,"%s",%s]\n' % (item.line, item.status.encode(), item.result) for item in lines])


def decode_part(data: bytes) -> list[PartLine]:
    """Raises: BatchDamaged where the bytes are no part (the digest was checked before: this is a bug)."""
    lines = []
    try:
        for row in data[:-1].split(b"\n"):
            number, status, result = row[1:-1].split(b",", 2)
            lines.append(PartLine(int(number), _STATUS[status], result))
    except (ValueError, KeyError) as error:
        raise BatchDamaged(f"a part holds a line that is none: {error}") from error
    return lines
