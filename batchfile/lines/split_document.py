"""Splits a posted JSON document into request lines: checks all of it as JSON, without building its objects.

Works on a file that is mapped into memory, one window at a time. Knows nothing about HTTP or the content of requests.
"""

import codecs
import mmap
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from batchfile.errors import UNREADABLE, InvalidFile, RequestRefused
from batchfile.lines.diagnostics import short
from batchfile.lines.framing import BOM
from batchfile.lines.json_scan import (
    PLACEHOLDER,
    find_fault,
    find_lone_surrogate,
    keys_of,
    replace_lone_surrogates,
    value_end,
)
from batchfile.lines.key_advice import typo_of
from batchfile.types import LINE_BYTES_MAX

WINDOW_BYTES = 256 * 1024  # also limits the memory for `{},{},{}`, where each element takes 70 bytes
OUTSIDE_BYTES_MAX = 64 * 1024  # of a document outside its requests: its keys are built as strings
LONE_SURROGATES_MAX = 10_000  # in a body: each may take a page of memory
_LOOK_BYTES = 1024 * 1024
LOOKED_AT_MAX = 32 * 1024 * 1024  # of an invalid body, to find the error: a hundred times slower than parsing
STAGE_EXAMPLE = '{"stage": "email", "requests": [...]}'
EXAMPLE = '{"requests": [{"custom_id": "a", "params": {...}}]}'
_NAMES = ("stage", "model_hint", "requests")
_IN_QUERY = "reuse"  # an option of the create, which is not a field of the document

_GAP = re.compile(rb"[ \t\r\n,]*")
# The end of one element and the start of the next, up to its first key. The last one in a window is where it is cut.
_BOUNDARY = re.compile(rb'\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*(?:"[^"\\]{0,64}")?')


class _Outline(msgspec.Struct):
    """Decoding it builds no objects, whatever the document contains."""

    requests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_outline = msgspec.json.Decoder(_Outline)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)
_value = msgspec.json.Decoder(msgspec.Raw)
_elements = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The fields of a posted batch. `requests`: its array as posted, brackets included; valid JSON except for lone
    surrogates.
    """

    stage: str | None
    model_hint: str | None
    requests: memoryview


def read_document(
    body: memoryview, scratch: memoryview | None = None, *, example: str = STAGE_EXAMPLE, what: str = "the body"
) -> Document:
    """`scratch`: a writable copy of the body; without it, a body with a lone surrogate is rejected.

    `example`: what messages tell the caller to send. `what`: the body, as messages name it.
    Raises: InvalidFile naming the place, in bytes from 0 and as line and column from 1.
    """
    try:
        return _read(body, example, what)
    except UNREADABLE as error:
        replaced = {} if scratch is None else replace_lone_surrogates(scratch, LONE_SURROGATES_MAX)
        if scratch is None or not replaced:
            raise InvalidFile(_malformed(body, error, example, what)) from None
    # The parser rejects the whole body for one lone surrogate. With placeholders it reads all the rest, and only the
    # requests that contain one are rejected, each by its own place.
    try:
        document = _read(scratch, example, what)
    except UNREADABLE as error:
        raise InvalidFile(_malformed(body, error, example, what)) from None
    for at, half in replaced.items():  # `requests` is a view of it
        scratch[at : at + len(half)] = half
    return document


def _read(body: memoryview, example: str, what: str) -> Document:
    """Raises: InvalidFile; UNREADABLE if it is not JSON or not an object."""
    start = _start(body)
    found = _outline.decode(body[start:]).requests
    outside = len(body) - (0 if isinstance(found, msgspec.UnsetType) else len(memoryview(found)))
    if outside > OUTSIDE_BYTES_MAX:
        raise InvalidFile(f"{what} has {outside:,} bytes outside its requests; send {example} and no other fields")
    opening = _gap_end(body, start, len(body))
    keys = Counter(map(_text.decode, keys_of(body, opening, OUTSIDE_BYTES_MAX, len(body) - outside)))
    for name, num in keys.items():
        if num > 1:
            raise InvalidFile(f"{short(name)}: is given twice; keep one of them")
    members = {name: memoryview(value) for name, value in _members.decode(body[start:]).items()}
    for name in members:
        if name not in _NAMES:
            if name == _IN_QUERY:
                raise InvalidFile(f"{name}: send it in the URL: ?{name}=BATCH or ?{name}=auto")
            near = typo_of(name, _NAMES)
            hint = f"did you mean {near}?" if near else f"use one of {', '.join(_NAMES)}"
            raise InvalidFile(f"{short(name)}: unknown field; {hint}")
    stage, model_hint = (_string(name, members.get(name)) for name in _NAMES[:2])
    if "requests" not in members:
        raise InvalidFile(f"requests: is missing; send {example}")
    array = members["requests"]
    if array[0] != b"["[0]:
        raise InvalidFile(f"requests: must be a list of requests, got {_kind(array[0])}")
    return Document(stage=stage, model_hint=model_hint, requests=array)


def elements(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The elements of a JSON array as lines. The array is written to disk, because it is read in windows."""
    with tempfile.NamedTemporaryFile(prefix="batchfile-") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        yield from array_lines(file.name, name)


def array_lines(path: str, name: str) -> Iterator[bytes]:
    """The elements of a file that is a JSON array, or an object with `requests`, as JSONL. `name` is for messages.

    Raises: InvalidFile, also RequestRefused.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    yield from iter_requests(_array_of(memoryview(mapped), f"{name}:"))


def _array_of(body: memoryview, what: str) -> memoryview:
    start = _gap_end(body, _start(body), len(body))
    if body[start] == b"["[0]:
        try:
            return memoryview(_value.decode(body[start:]))
        except UNREADABLE as error:
            raise InvalidFile(_malformed(body, error, EXAMPLE, what)) from None
    document = read_document(body, example=EXAMPLE, what=what)
    for key, value in (("stage", document.stage), ("model_hint", document.model_hint)):
        if value is not None:
            raise InvalidFile(f"{what} {key}: cannot be set in a file; remove it, and give it as an option")
    return document.requests


def _string(name: str, value: memoryview | None) -> str | None:
    if value is None or value[0] == b"n"[0]:
        return None
    if value[0] != b'"'[0]:
        raise InvalidFile(f"{name}: must be a string, got {_kind(value[0])}")
    return _text.decode(value)


def _start(body: memoryview) -> int:
    return len(BOM) if body[: len(BOM)] == BOM else 0


def iter_requests(array: memoryview) -> Iterator[bytes]:
    """The elements of an array as JSONL, in chunks of whole lines; line breaks within an element become spaces.

    Raises: RequestRefused for an element over LINE_BYTES_MAX.
    """
    at, end = 1, len(array) - 1
    index, boundary = 0, b""
    while (at := _gap_end(array, at, end)) < end:
        found = _guess(array, at, end, boundary) or _step(array, at, end, index)
        index, at = index + found.num, at + found.length
        yield found.lines
        del found  # so that two chunks are never in memory at once
        match = _BOUNDARY.match(array, at - 1, end)
        boundary = match[0].replace(b"\n", b" ") if match else b""


class _Found(NamedTuple):
    """The next `num` elements, `length` bytes of the array, as lines."""

    num: int
    length: int
    lines: bytes


def _guess(array: memoryview, at: int, end: int, boundary: bytes) -> _Found | None:
    """All elements of a window before the last `boundary` in it; None if no element ends there.

    This guess is safe: a prefix is a sequence of whole elements exactly if it decodes as a list once brackets are put
    around it. JSON is parsed from left to right, so the text after the prefix cannot change its meaning.
    """
    stop = min(at + WINDOW_BYTES, end)
    window = bytearray(b"[")
    window += array[at:stop]
    # Within valid JSON a raw line break is only space between tokens, so this changes no string.
    if b"\n" in window:
        window = window.replace(b"\n", b" ")
    length = stop - at
    if stop < end:
        # Only a guess: a string or a nested list may contain the same bytes. Then the brackets do not match, decoding
        # fails below, and `_step` finds the next elements without guessing.
        length = window.rfind(boundary) if boundary else 0
        if length <= 0:
            return None
    window[length + 1 :] = b"]"
    try:
        elements = _elements.decode(window)
    except UNREADABLE:
        return None
    return _Found(len(elements), length, b"\n".join([*elements, b""]))


def _step(array: memoryview, at: int, end: int, index: int) -> _Found:
    """The next elements, found one by one: about half a window, at least one."""
    lines: list[bytes] = []
    start, stop = at, at
    while not lines or (at < end and at - start < WINDOW_BYTES // 2):
        stop = value_end(array, at, min(end, at + LINE_BYTES_MAX + 1))
        if stop - at > LINE_BYTES_MAX:
            index += len(lines)
            limit = LINE_BYTES_MAX // 2**20
            raise RequestRefused(f"requests[{index}]: is longer than {limit} MiB; shorten the request", index)
        lines.append(bytes(array[at:stop]).replace(b"\n", b" "))
        at = _gap_end(array, stop, end)
    return _Found(len(lines), stop - start, b"\n".join([*lines, b""]))


def _gap_end(array: memoryview, at: int, end: int) -> int:
    found = _GAP.match(array, at, end)
    return found.end() if found else at


def _malformed(body: memoryview, error: Exception, example: str, what: str) -> str:
    """Why `body` cannot be read, without the parser's wording."""
    if isinstance(error, RecursionError):
        return f"{what} is nested too deeply; flatten it"
    start = _start(body)
    fault = None if _is_json(body[start:]) else find_fault(body[:LOOKED_AT_MAX], start)
    foreign = _find_foreign(body)
    if foreign is not None and (fault is None or foreign <= fault.at):
        return f"{what} is not valid UTF-8: byte 0x{body[foreign]:02x}, at {_where(body, foreign)}; send UTF-8"
    if fault is not None:
        reason = f"{fault.reason} at {_where(body, fault.at)}"
        if fault.is_cut and len(body) > LOOKED_AT_MAX:
            reason = f"the error is after the first {LOOKED_AT_MAX // 2**20} MiB; send requests as application/x-ndjson"
        elif fault.is_cut:
            reason = f"unexpected end at {_where(body, len(body))}; send the whole body"
        return f"{what} is not valid JSON: {reason}"
    half = find_lone_surrogate(body)
    if half is not None:
        shown = bytes(body[half : half + len(PLACEHOLDER)]).decode()
        reason = f"{shown} is half of a character; cut strings between characters"
        return f"{what} is not valid JSON: {reason}, at {_where(body, half)}"
    if body[_gap_end(body, start, len(body))] != b"{"[0]:
        return f"{what} must be an object such as {example}; send one request per line as application/x-ndjson"
    return f"{what} cannot be read: {error}"


def _is_json(text: memoryview) -> bool:
    """Fast, but does not say where the error is."""
    try:
        _value.decode(text)
    except UNREADABLE:
        return False
    return True


def _find_foreign(body: memoryview) -> int | None:
    """Where the first byte is that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body) + 1, _LOOK_BYTES):
        piece = body[start : start + _LOOK_BYTES]
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=start + _LOOK_BYTES > len(body))
        except UnicodeDecodeError as error:
            return start - kept + error.start
    return None


def _where(body: memoryview, at: int) -> str:
    line, column = _place(body, at)
    return f"byte {at} (line {line}, column {column})"


def _place(body: memoryview, at: int) -> tuple[int, int]:
    """Line and column (in bytes), from 1."""
    line, line_start = 1, 0
    for start in range(0, at, _LOOK_BYTES):
        piece = bytes(body[start : min(start + _LOOK_BYTES, at)])
        breaks = piece.count(b"\n")
        if breaks:
            line, line_start = line + breaks, start + piece.rfind(b"\n") + 1
    return line, at - line_start + 1


def _kind(first: int) -> str:
    """What a value is, by its first byte."""
    kinds = {b"{"[0]: "an object", b"["[0]: "a list", b'"'[0]: "a string", b"n"[0]: "null"}
    return kinds.get(first, "true or false" if first in b"tf" else "a number")
