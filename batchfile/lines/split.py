"""A posted JSON document into request lines: all of it is checked as JSON, nothing of it is built.

Works on a file that is mapped into memory and holds one window of it at a time. Knows no HTTP, and no request beyond
where it ends.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import msgspec

from batchfile.errors import InvalidFile, RequestRefused
from batchfile.lines.findings import short
from batchfile.lines.frame import BOM
from batchfile.lines.halves import replace_halves
from batchfile.words import LINE_BYTES_MAX

WINDOW_BYTES = 256 * 1024  # also bounds what `{},{},{}` costs: 70 bytes an element of it
BESIDE_BYTES_MAX = 64 * 1024  # of a document without its requests: its names are built as strings
HALVES_MAX = 10_000  # of a body: each may cost a page of memory
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_COUNT_BYTES = 1024 * 1024
STAGE_EXAMPLE = '{"stage": "email", "requests": [...]}'
EXAMPLE = '{"requests": [{"custom_id": "a", "params": {...}}]}'

_GAP = re.compile(rb"[ \t\r\n,]*")
# How one element ends and the next begins, up to its first key: what the last boundary of a window looks like.
_BOUNDARY = re.compile(rb'\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*(?:"[^"\\]{0,64}")?')
_AT_BYTE = re.compile(r" \(byte (\d+)\)")
_UNKNOWN_KEY = re.compile(r"unknown field `(.*)`", re.DOTALL)
_WRONG_TYPE = re.compile(r"Expected `.*`, got `(\w+)` - at `\$\.(\w+)`")
_HALF_PAIR = re.compile(rb"(\\u[dD][89a-fA-F][0-9a-fA-F]{2})[^\\]{0,5}\Z")


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    stage: str | None = None
    model_hint: str | None = None
    requests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Outline(msgspec.Struct):
    """Reading it builds nothing, whatever the document is."""

    requests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_outline = msgspec.json.Decoder(_Outline)
_wire = msgspec.json.Decoder(_Wire)
_element = msgspec.json.Decoder(msgspec.Raw)
_elements = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a posted batch says of itself. `requests`: its array, brackets included, known to be valid JSON.

    `framed`: the same, with a stand-in for each half of a character; without one the same object.
    """

    stage: str | None
    model_hint: str | None
    requests: memoryview
    framed: memoryview


def read_document(body: memoryview, scratch: memoryview | None = None, *, example: str = STAGE_EXAMPLE) -> Document:
    """`scratch`: the same bytes once more, to be written on; without it, half of a character refuses the whole.

    `example`: what the caller should have sent.
    Raises: InvalidFile naming the place, in bytes from 0 and as line and column from 1.
    """
    try:
        return _read(body, body, example)
    except _UNREADABLE as error:
        if scratch is not None and replace_halves(scratch, HALVES_MAX):
            with suppress(*_UNREADABLE):
                return _read(scratch, body, example)
        raise InvalidFile(_malformed(body, _start(body), error)) from None


def _read(framed: memoryview, body: memoryview, example: str) -> Document:
    start = _start(body)
    try:
        outline = _outline.decode(framed[start:])
        found = outline.requests
        beside = len(body) - (0 if isinstance(found, msgspec.UnsetType) else len(memoryview(found)))
        if beside > BESIDE_BYTES_MAX:
            raise InvalidFile(f"the body has {beside:,} bytes beside its requests; a batch is {example}, no more keys")
        wire = _wire.decode(framed[start:])
    except msgspec.ValidationError as error:
        raise InvalidFile(_misfit(str(error), example)) from None
    if isinstance(wire.requests, msgspec.UnsetType):
        raise InvalidFile(f"requests: is missing; a batch is {example}")
    array = memoryview(wire.requests)
    if array[0] != b"["[0]:
        raise InvalidFile(f"requests: must be a list of requests, got {_kind(array[0])}")
    requests = array
    if framed is not body:
        at = _place_in(framed, array)
        requests = body[at : at + len(array)]
    return Document(stage=wire.stage, model_hint=wire.model_hint, requests=requests, framed=array)


def _place_in(whole: memoryview, part: memoryview) -> int:
    """Of a view of the same memory, which can be written on: where a change shows in both."""
    for at in range(len(whole)):
        before, whole[at] = whole[at], 0
        is_there, whole[at] = not part[0], before
        if is_there:
            return at
    raise AssertionError("it is a part")


def _start(body: memoryview) -> int:
    return len(BOM) if body[: len(BOM)] == BOM else 0


def iter_requests(array: memoryview, framed: memoryview | None = None) -> Iterator[bytes]:
    """The elements of an array as JSONL, in chunks of whole lines; line breaks within an element become spaces.

    `framed`: the same array as valid JSON, where it is none itself.
    Raises: RequestRefused for an element over LINE_BYTES_MAX.
    """
    at, end = 1, len(array) - 1
    index, boundary = 0, b""
    while (at := _gap_end(array, at, end)) < end:
        if framed is None or framed is array:
            found = _guess(array, at, end, boundary) or _step(array, array, at, end, index)
        else:
            found = _step(array, framed, at, end, index)
        index, at = index + found.num, at + found.length
        yield found.lines
        del found  # the lines of a chunk are not held while the next is made
        match = _BOUNDARY.match(array, at - 1, end)
        boundary = match[0].replace(b"\n", b" ") if match else b""


class _Found(NamedTuple):
    """The next `num` elements, `length` bytes of the array, as lines."""

    num: int
    length: int
    lines: bytes


def _guess(array: memoryview, at: int, end: int, boundary: bytes) -> _Found | None:
    """All elements of a window before the last `boundary` in it; None where that is no end of an element.

    A prefix ends an element exactly if it decodes as a list once brackets are put around it: JSON is parsed from left
    to right, so what follows can not change what the prefix means.
    """
    stop = min(at + WINDOW_BYTES, end)
    window = bytearray(b"[")
    window += array[at:stop]
    if b"\n" in window:
        window = window.replace(b"\n", b" ")
    length = stop - at
    if stop < end:
        length = window.rfind(boundary) if boundary else 0
        if length <= 0:
            return None
    window[length + 1 :] = b"]"
    try:
        elements = _elements.decode(window)
    except (msgspec.DecodeError, RecursionError):
        return None
    return _Found(len(elements), length, b"\n".join([*elements, b""]))


def _step(array: memoryview, framed: memoryview, at: int, end: int, index: int) -> _Found:
    """The next elements one by one, each found by reading it: about half a window, at least one."""
    lines: list[bytes] = []
    start, stop = at, at
    while not lines or (at < end and at - start < WINDOW_BYTES // 2):
        stop = _end_of_element(framed, at, end)
        if stop - at > LINE_BYTES_MAX:
            index += len(lines)
            limit = LINE_BYTES_MAX // 2**20
            raise RequestRefused(f"requests[{index}]: is longer than {limit} MiB; shorten the request", index)
        lines.append(bytes(array[at:stop]).replace(b"\n", b" "))
        at = _gap_end(array, stop, end)
    return _Found(len(lines), stop - start, b"\n".join([*lines, b""]))


def _end_of_element(array: memoryview, at: int, end: int) -> int:
    """The decoder reads one value and then complains of what follows, which is a comma, by its place."""
    try:
        _element.decode(array[at:end])
    except msgspec.DecodeError as error:
        found = _AT_BYTE.search(str(error))
        stop = at + int(found[1]) - 1 if found else at
        if array[stop] != b","[0]:
            raise
        return stop
    return end


def _gap_end(array: memoryview, at: int, end: int) -> int:
    found = _GAP.match(array, at, end)
    return found.end() if found else at


def _misfit(error: str, example: str) -> str:
    """The document is JSON and not a batch."""
    unknown, wrong = _UNKNOWN_KEY.search(error), _WRONG_TYPE.search(error)
    if unknown:
        near = get_close_matches(unknown[1].lower(), _Wire.__struct_fields__, 1)
        names = ", ".join(_Wire.__struct_fields__)
        return f"{short(unknown[1])}: unknown key; " + (f"did you mean {near[0]}?" if near else f"there are {names}")
    if wrong:
        return f"{wrong[2]}: must be a string, got {_article(wrong[1])}"
    return f"the body must be an object such as {example}; send one request per line as application/x-ndjson"


def _malformed(body: memoryview, start: int, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the body is nested too deeply; flatten it, no model needs such a depth"
    if isinstance(error, UnicodeDecodeError):
        return "the body is not valid UTF-8; send UTF-8"
    found = _AT_BYTE.search(str(error))
    at = start + int(found[1]) if found else len(body)
    reason = str(error).removeprefix("JSON is malformed: ").partition(" (byte")[0]
    if reason == "trailing characters":
        at -= 1  # it is counted after the first of them
    if not found:
        reason = "it ends too early; send it whole"
    half = _HALF_PAIR.search(body, max(0, at - 11), at)
    if half and ("hex escape" in reason or "surrogate" in reason or not found):
        at = half.start(1)
        reason = f"{half[1].decode()} is half of a character; cut strings between characters"
    line, column = _place(body, at)
    return f"the body is not valid JSON: {reason}, at byte {at} (line {line}, column {column})"


def _place(body: memoryview, at: int) -> tuple[int, int]:
    """Line and column (in bytes), from 1."""
    line, line_start = 1, 0
    for start in range(0, at, _COUNT_BYTES):
        piece = bytes(body[start : min(start + _COUNT_BYTES, at)])
        breaks = piece.count(b"\n")
        if breaks:
            line, line_start = line + breaks, start + piece.rfind(b"\n") + 1
    return line, at - line_start + 1


def _kind(first: int) -> str:
    """What a value is, by its first byte."""
    kinds = {b"{"[0]: "an object", b"["[0]: "a list", b'"'[0]: "a string", b"n"[0]: "null"}
    return kinds.get(first, "true or false" if first in b"tf" else "a number")


def _article(kind: str) -> str:
    names = {"int": "a number", "float": "a number", "bool": "true or false", "array": "a list", "object": "an object"}
    return names.get(kind, kind)
