"""The API format of stages: the status and results of a batch. The keys are a contract with callers: no more, no fewer.

Its four states, in order: `collected` (not planned yet), `submitted` (visible to runners), `processing` (a runner has
started), `ended`. Canceled and expired requests are reported as errored with that error type, and so are refusals,
answers stopped by a content filter, and results without text. Thinking is left out.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal

import msgspec

from batchfile.lines.result import REFUSALS, escape_separators, refusal_failure

ProcessingStatus = Literal["collected", "submitted", "processing", "ended"]

POOLED = frozenset({"embedding", "score", "rerank", "classification", "pooling"})  # kinds of results without text
VECTORS = "the result is vectors, scores or classes, which only OpenAI's output files can contain; read them there"

_FAILED = {"canceled", "expired"}


class _Usage(msgspec.Struct, gc=False):
    """Both null if an endpoint did not report them."""

    input_tokens: int | None = None
    output_tokens: int | None = None


class _Error(msgspec.Struct, gc=False):
    type: str
    message: str


class _Line(msgspec.Struct, gc=False):
    """A native line without the fields that this format leaves out. Fields that are only copied stay raw."""

    custom_id: msgspec.Raw
    status: str
    message: msgspec.Raw
    usage: _Usage | None
    error: _Error | None
    kind: str | msgspec.UnsetType = msgspec.UNSET  # read, never written
    stop_reason: str | msgspec.UnsetType | None = msgspec.UNSET  # the same


class _Message(msgspec.Struct, gc=False):
    content: list[msgspec.Raw]


class _Block(msgspec.Struct, gc=False):
    text: str = ""


class _Text(msgspec.Struct, gc=False):
    content: list[_Block]

    @property
    def text(self) -> str:
        return "".join([block.text for block in self.content])


# How a message with thinking begins. Callers take the first block for the text, so this one is removed.
_THOUGHTFUL = b'{"content":[{"type":"thinking",'

_decoder = msgspec.json.Decoder(_Line)
_message_decoder = msgspec.json.Decoder(_Message)
_text_decoder = msgspec.json.Decoder(_Text)
_encoder = msgspec.json.Encoder()
_VECTORS_ERROR = _Error("invalid_request_error", VECTORS)
_NULL = msgspec.Raw(b"null")


def timestamp(seconds: float) -> str:
    """`2025-01-07T10:00:00Z`, in whole seconds, as the contract requires."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def processing_status(state: str, num_records: int) -> ProcessingStatus:
    """`state`: of the batch record; `num_records`: the number of shard records of real pools."""
    if state == "ended":
        return "ended"
    if state == "planning":
        return "collected"
    return "processing" if num_records or state == "ending" else "submitted"


def stage_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Converts native result lines, in chunks cut anywhere, to this format, in chunks of whole lines."""
    for lines in _rendered(chunks):
        yield escape_separators(_encoder.encode_lines(lines))


def stage_document(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same as one JSON document: `{"results":[...]}`."""
    opening = b'{"results":['
    for lines in _rendered(chunks):
        yield opening + escape_separators(_encoder.encode(lines))[1:-1]
        opening = b","
    yield (opening if opening != b"," else b"") + b"]}"


def _rendered(chunks: Iterable[bytes]) -> Iterator[list[_Line]]:
    for whole in whole_lines(chunks):
        lines = _decoder.decode_lines(whole)
        has_thoughts = _THOUGHTFUL in whole
        for line in lines:
            if line.status in _FAILED:
                line.status = "errored"
            if has_thoughts and bytes(line.message).startswith(_THOUGHTFUL):
                message = _message_decoder.decode(line.message)
                line.message = msgspec.Raw(_encoder.encode(_Message(message.content[1:])))
            if line.status == "succeeded":
                _adapt(line)
            line.kind = line.stop_reason = msgspec.UNSET
        if lines:
            yield lines


def _adapt(line: _Line) -> None:
    """Turns vectors and refusals into errors, which this format requires; makes an unknown usage null."""
    if line.kind in POOLED:
        line.status, line.usage, line.error = "errored", None, _VECTORS_ERROR
    elif line.stop_reason in REFUSALS:
        failure = refusal_failure(str(line.stop_reason), _text_decoder.decode(line.message).text)
        line.status, line.message, line.usage = "errored", _NULL, None
        line.error = _Error(failure.type, failure.message)
    elif line.usage is None:
        line.usage = _Usage()


def whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut only after newlines; the last chunk may lack one."""
    rest: list[bytes] = []
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest.append(chunk)
            continue
        yield b"".join([*rest, chunk[:cut]])
        rest = [chunk[cut:]] if cut < len(chunk) else []
    if rest:
        yield b"".join(rest)
