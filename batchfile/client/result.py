"""Results as Python objects. Knows no batch and no service."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import msgspec

from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX, NativeChoice, NativeError, NativeResult, decode_result
from batchfile.types import Choice, Status, StopReason, ToolCall, Usage, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultError:
    """Why a request has no answer. `code`: `invalid_request_error` where the request itself has to be fixed.

    `http_status`: what the endpoint of an HTTP engine answered.
    """

    code: str
    message: str
    http_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one request.

    `status`: `succeeded`; `errored`, then `error` says why; `canceled` or `expired`: the batch ended before it ran.
    `choices`: one answer, or the `n` that were asked for; empty where it did not succeed. `vectors`: of an embedding.
    `usage`: in tokens. `line`: of the input file, of a request without a custom_id.

    >>> [(result.custom_id, result.text) for result in done.results()]
    [('a', 'Hello.'), ('b', 'Goodbye.')]
    """

    custom_id: str | None
    status: Status
    choices: tuple[Choice, ...]
    vectors: tuple[Vector, ...]
    model: str | None
    usage: Usage
    error: ResultError | None
    line: int | None

    @property
    def text(self) -> str | None:
        """Of the first choice; None where there is none."""
        return self.choices[0].text if self.choices else None

    @property
    def is_succeeded(self) -> bool:
        return self.status == "succeeded"


def read_results(chunks: Iterable[bytes]) -> Iterator[Result]:
    """The results in native lines, each as it is read."""
    for line in iter_lines(chunks, line_bytes_max=RESULT_BYTES_MAX):
        yield read_result(line.data or b"")


def read_result(line: bytes) -> Result:
    found = decode_result(line)
    return Result(
        custom_id=found.custom_id,
        status=cast(Status, found.status),
        choices=_choices(found),
        vectors=tuple(msgspec.json.decode(one, type=Vector) for one in found.vectors or ()),
        model=found.model,
        usage=_usage(found),
        error=_error(found.error),
        line=found.line,
    )


def _error(error: NativeError | None) -> ResultError | None:
    if error is None:
        return None
    return ResultError(code=error.type, message=error.message, http_status=error.http_status)


def _usage(found: NativeResult) -> Usage:
    usage = found.usage
    if usage is None:
        return Usage(unknown=int(found.status == "succeeded"))
    return Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cached_tokens=usage.cached_tokens)


def _choices(found: NativeResult) -> tuple[Choice, ...]:
    choices = found.choices
    if choices is None and found.message is not None:
        choices = [NativeChoice(message=found.message, stop_reason=found.stop_reason or "end_turn")]
    return tuple(_choice(one, None if index else found.stop_sequence) for index, one in enumerate(choices or ()))


def _choice(choice: NativeChoice, stop_sequence: str | None) -> Choice:
    blocks = choice.message.content
    thinking = [block.thinking for block in blocks if block.type == "thinking"]
    return Choice(
        text="".join(block.text for block in blocks if block.type == "text"),
        stop_reason=cast(StopReason, choice.stop_reason),
        stop_sequence=stop_sequence,
        calls=tuple(ToolCall(block.id, block.name, block.input or {}) for block in blocks if block.type == "tool_use"),
        thinking="".join(thinking) if thinking else None,
    )
