"""Converts native result lines to Anthropic's Message Batches results. The same batch always gives the same bytes.

All keys of the format and its beta are present, null if unknown. There are no blank lines, because the official
clients fail on them.
"""

from collections.abc import Iterable, Iterator

import msgspec

from batchfile.lines.formats.stage import POOLED, VECTORS, whole_lines
from batchfile.lines.result import REFUSALS, escape_separators, explanation

# The types that the clients know; any other type becomes api_error.
ERROR_TYPES = frozenset(
    {
        "invalid_request_error",
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "timeout_error",
        "api_error",
        "overloaded_error",
    }
)


class _Text(msgspec.Struct, gc=False, tag_field="type", tag="text"):
    text: msgspec.Raw
    citations: None = None


class _Thinking(msgspec.Struct, gc=False, tag_field="type", tag="thinking"):
    thinking: msgspec.Raw
    signature: str = ""


class _Direct(msgspec.Struct, frozen=True, gc=False):
    type: str = "direct"


class _ToolUse(msgspec.Struct, gc=False, tag_field="type", tag="tool_use"):
    id: msgspec.Raw
    name: msgspec.Raw
    input: msgspec.Raw
    caller: _Direct = _Direct()


_Block = _Text | _Thinking | _ToolUse


class _Content(msgspec.Struct, gc=False):
    content: list[_Block]


class _NativeUsage(msgspec.Struct, gc=False):
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


class _NativeError(msgspec.Struct, gc=False):
    type: str
    message: str


_Copied = list[msgspec.Raw] | msgspec.UnsetType


class _Line(msgspec.Struct, gc=False):
    """A native line. Fields that are only copied, such as the text, stay raw."""

    custom_id: msgspec.Raw
    status: str
    message: _Content | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    model: str | None = None
    usage: _NativeUsage | None = None
    error: _NativeError | None = None
    kind: str = "chat"
    choices: _Copied = msgspec.UNSET
    logprobs: _Copied = msgspec.UNSET
    token_ids: _Copied = msgspec.UNSET
    prompt_logprobs: _Copied = msgspec.UNSET
    prompt_token_ids: _Copied = msgspec.UNSET
    media: _Copied = msgspec.UNSET


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_creation: None = None
    fallback_credit: None = None
    inference_geo: None = None
    iterations: None = None
    output_tokens_details: None = None
    server_tool_use: None = None
    service_tier: str = "batch"
    speed: None = None
    is_unknown: bool | msgspec.UnsetType = msgspec.UNSET  # set if an endpoint did not report usage


class _Refusal(msgspec.Struct, gc=False):
    explanation: str
    category: None = None
    type: str = "refusal"


class _Message(msgspec.Struct, gc=False):
    id: str
    model: str
    content: list[_Block]
    stop_reason: str
    stop_sequence: str | None
    usage: _Usage
    type: str = "message"
    role: str = "assistant"
    container: None = None
    context_management: None = None
    diagnostics: None = None
    input_transformations: None = None
    stop_details: _Refusal | None = None
    # Not Anthropic's: what a request may ask for, and the digests of its media, as in native results.
    choices: _Copied = msgspec.UNSET
    logprobs: _Copied = msgspec.UNSET
    token_ids: _Copied = msgspec.UNSET
    prompt_logprobs: _Copied = msgspec.UNSET
    prompt_token_ids: _Copied = msgspec.UNSET
    media: _Copied = msgspec.UNSET


class _Succeeded(msgspec.Struct, gc=False):
    message: _Message
    type: str = "succeeded"


class _ErrorBody(msgspec.Struct, gc=False):
    error: _NativeError
    type: str = "error"
    request_id: None = None


class _Errored(msgspec.Struct, gc=False):
    error: _ErrorBody
    type: str = "errored"


class _Without(msgspec.Struct, gc=False):
    """Canceled or expired."""

    type: str


class _Response(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw
    result: _Succeeded | _Errored | _Without


_decoder = msgspec.json.Decoder(_Line)
_encoder = msgspec.json.Encoder()
_NO_ERROR = _NativeError("api_error", "")
_VECTORS = _Errored(_ErrorBody(_NativeError("invalid_request_error", VECTORS)))
_NO_ID = msgspec.Raw(b'""')  # for a line without a readable custom_id; the clients expect a string


def anthropic_lines(chunks: Iterable[bytes], batch_id: str) -> Iterator[bytes]:
    """Converts native result lines, in chunks cut anywhere, to this format, in chunks of whole lines.

    The id of a message consists of the batch's id and the index of the request.
    """
    stem = f"msg_{batch_id.partition('_')[2]}_"
    number = 0
    for whole in whole_lines(chunks):
        lines = _decoder.decode_lines(whole)
        if lines:
            made = [_response(line, stem + str(number + n)) for n, line in enumerate(lines)]
            yield escape_separators(_encoder.encode_lines(made))
        number += len(lines)


def message_of(result: bytes, message_id: str) -> msgspec.Struct:
    """The Message of a native result line that succeeded."""
    return _message(_decoder.decode(result), message_id)


def _response(line: _Line, message_id: str) -> _Response:
    custom_id = _NO_ID if bytes(line.custom_id) == b"null" else line.custom_id
    if line.kind in POOLED:
        return _Response(custom_id, _VECTORS)
    if line.status == "succeeded":
        return _Response(custom_id, _Succeeded(_message(line, message_id)))
    if line.status == "errored":
        error = line.error or _NO_ERROR
        if error.type not in ERROR_TYPES:
            error = _NativeError("api_error", error.message)
        return _Response(custom_id, _Errored(_ErrorBody(error)))
    return _Response(custom_id, _Without(line.status))


def _message(line: _Line, message_id: str) -> _Message:
    reason = line.stop_reason or "end_turn"
    is_refusal = reason in REFUSALS
    return _Message(
        id=message_id,
        model=line.model or "",
        content=[] if line.message is None else line.message.content,
        stop_reason="refusal" if is_refusal else reason,
        stop_sequence=line.stop_sequence,
        usage=_usage(line.usage),
        stop_details=_Refusal(explanation(reason)) if is_refusal else None,
        choices=line.choices,
        logprobs=line.logprobs,
        token_ids=line.token_ids,
        prompt_logprobs=line.prompt_logprobs,
        prompt_token_ids=line.prompt_token_ids,
        media=line.media,
    )


def _usage(usage: _NativeUsage | None) -> _Usage:
    if usage is None:
        return _Usage(input_tokens=0, output_tokens=0, cache_read_input_tokens=0, is_unknown=True)
    return _Usage(
        input_tokens=usage.input_tokens - usage.cached_tokens,  # which this format counts separately
        output_tokens=max(usage.output_tokens, 1),
        cache_read_input_tokens=usage.cached_tokens,
    )
