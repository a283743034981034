"""Scans JSON (RFC 8259) in bytes: where a value ends, where and why a text is invalid, and what parsers do not report.

The messages here are our own, because those of parsers change with their versions. UTF-8 in strings is not checked
here.

Lone surrogates are valid for `find_fault` too: JavaScript writes `\\ud83d` alone if a string was cut inside an emoji.
JSON allows them, but UTF-8 cannot encode them, so our parsers reject the string. An object with the same key twice is
valid JSON as well; parsers silently keep the last value.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec

from batchfile.errors import UNREADABLE
from batchfile.lines.diagnostics import Diagnostic, Path

PIECE_BYTES = 256 * 1024  # scanned at a time: a regular expression blocks all other threads
STEPS_MAX = 1_000_000  # containers that are entered one by one to find an error: a few seconds
_CHECKED_DEPTH = 3  # the depth of a turn with blocks; each level doubles the size of the pattern
_BALANCED_DEPTH = 8

_GAP = rb"[ \t\r\n]*+"
_INSIDE = rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
_STRING = b'"' + _INSIDE + b'"'
_SCALAR = _STRING + rb"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null"
_PLAIN = rb'[^"\[\]{}]++|"(?:[^"\\]++|\\[\s\S])*+"'  # in JSON that is known to be valid
_MEMBER = _STRING + _GAP + b":" + _GAP


def _checked(depth: int) -> bytes:
    """The pattern of a value with at most `depth` nested containers."""
    if depth == 0:
        return b"(?:" + _SCALAR + b")"
    inner = _checked(depth - 1) + _GAP
    array = rb"\[%b(?:%b(?:,%b(?!\])|(?=\])))*+\]" % (_GAP, inner, _GAP)
    mapping = rb"\{%b(?:%b(?:,%b(?!\})|(?=\})))*+\}" % (_GAP, _MEMBER + inner, _GAP)
    return b"(?:" + b"|".join([_SCALAR, array, mapping]) + b")"


@cache  # takes 10 ms and is rarely needed
def _runs() -> dict[int, re.Pattern[bytes]]:
    """By the closing byte of a container, the pattern of all its items except the last."""
    item = _checked(_CHECKED_DEPTH) + _GAP + b"," + _GAP
    return {
        b"]"[0]: re.compile(rb"(?:%b(?!\]))*+" % item),
        b"}"[0]: re.compile(rb"(?:%b(?!\}))*+" % (_MEMBER + item)),
    }


def _balanced(depth: int) -> bytes:
    inner = b"|" + _balanced(depth - 1) if depth else b""
    return rb"[\[{](?:" + _PLAIN + inner + rb")*+[\]}]"


_gap = re.compile(_GAP)
_scalar = re.compile(_SCALAR)
_key = re.compile(_MEMBER)
_string = re.compile(_STRING + _GAP)
_bare_string = re.compile(_STRING)
_open_string = re.compile(b'"' + _INSIDE)
_cut_escape = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_cut_token = re.compile(rb"(?:t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?|-|\.|[eE][+-]?)\Z")
_word = re.compile(rb"-?[A-Za-z]+")
_whole = re.compile(_balanced(_BALANCED_DEPTH) + rb'|[^"\[\]{},\s]++|"(?:[^"\\]++|\\[\s\S])*+"')
_to_bracket = re.compile(b"(?:" + _PLAIN + rb")*+(?:([\[{])|[\]}])")
_digits = re.compile(_STRING + rb"|[0-9]++")

_CLOSERS = {b"{"[0]: b"}"[0], b"["[0]: b"]"[0]}
_COMMA = b","[0]


class Fault(ValueError):
    """`at`: in bytes from 0. `reason` is followed by "at column 5". `is_cut`: the text is incomplete."""

    def __init__(self, at: int, reason: str, fix: str, *, is_cut: bool = False) -> None:
        super().__init__(f"{reason} at byte {at}")
        self.at, self.reason, self.fix, self.is_cut = at, reason, fix, is_cut


def find_fault(data: Any, start: int = 0) -> Fault | None:
    """The first place at which `data[start:]` is not a single JSON value with optional whitespace around it."""
    end = len(data)
    try:
        at = _skip(data, _checked_end(data, _skip(data, start, end), end), end)
    except Fault as fault:
        return fault
    return Fault(at, "unexpected text after the object", "Put one request on each line.") if at < end else None


def value_end(data: Any, at: int, end: int) -> int:
    """The end of the value that begins at `at` in valid JSON; `end` if it does not end before that."""
    found = _whole.match(data, at, end)
    depth = 0
    while found is None or depth:  # it is nested deeply, or incomplete
        found = _to_bracket.match(data, at, end)
        if found is None:
            return end
        depth, at = depth + (1 if found[1] else -1), found.end()
    return found.end()


def keys_of(data: Any, start: int, value_bytes_max: int, large_bytes: int) -> Iterator[bytes]:
    """The keys of the object that begins at `start` in valid JSON, as written, repeated ones included. At most one
    value may be longer than `value_bytes_max`; its size must be `large_bytes`.
    """
    end = len(data)
    at = _skip(data, start + 1, end)
    while (found := _key.match(data, at, end)) is not None:
        yield bytes(data[at : _string_end(data, at, end)])
        at = found.end()
        stop = value_end(data, at, min(end, at + value_bytes_max + 1))
        at = _skip(data, stop if stop - at <= value_bytes_max else at + large_bytes, end)
        at = _skip(data, at + 1, end)  # past a comma, or the closing brace


def _string_end(data: Any, at: int, end: int) -> int:
    found = _bare_string.match(data, at, end)
    assert found is not None, "a key begins there"
    return found.end()


def _checked_end(data: Any, at: int, end: int) -> int:
    """The end of the value that begins at `at`. Raises: Fault."""
    closers, runs = bytearray(), _runs()
    for _ in range(STEPS_MAX):
        found = _scalar.match(data, at, end)
        if found is not None:
            at = _after(data, found.end(), end, closers)
        elif at < end and data[at] in _CLOSERS:
            closers.append(_CLOSERS[data[at]])
            at = _skip(data, at + 1, end)
            if at < end and data[at] == closers[-1]:
                at = _after(data, at, end, closers)
        else:
            raise _fault(data, at, end)
        if not closers:
            return at
        run = runs[closers[-1]].match(data, at, min(end, at + PIECE_BYTES))
        at = _skip(data, run.end() if run else at, end)
        if closers[-1] == b"}"[0]:
            at = _key_end(data, at, end)
    raise Fault(
        at, "too many lists and objects to locate the error, which comes after the text", "Flatten the request."
    )


def _after(data: Any, at: int, end: int, closers: bytearray) -> int:
    """The start of the next value or key after a value that ends at `at`: past closing brackets and a comma."""
    while closers:
        at = _skip(data, at, end)
        if at < end and data[at] == closers[-1]:
            closers.pop()
            at += 1
        elif at < end and data[at] == _COMMA:
            return _skip(data, at + 1, end)
        else:
            raise _fault(data, at, end)
    return at


def _key_end(data: Any, at: int, end: int) -> int:
    found = _key.match(data, at, end)
    if found is None:
        string = _string.match(data, at, end)
        raise _fault(data, at if string is None else string.end(), end)
    return found.end()


def _skip(data: Any, at: int, end: int) -> int:
    found = _gap.match(data, at, end)
    assert found is not None, "it may be empty"
    return found.end()


def _fault(data: Any, at: int, end: int) -> Fault:
    """The fault for an unexpected token that begins at `at`."""
    if at >= end or _cut_token.match(data, at, end):
        return Fault(
            at,
            "unexpected end of the line",
            "Close open strings, lists and objects; keep a request on one line.",
            is_cut=True,
        )
    if data[at] == b'"'[0]:
        found = _open_string.match(data, at, end)
        stop = end if found is None else found.end()
        if stop == end or _cut_escape.match(data, stop, end):
            return Fault(at, "unterminated string starting", 'Close it with a ".', is_cut=True)
        if data[stop] == b"\\"[0]:
            return Fault(stop, "invalid escape", r"Write a backslash as \\.")
        at = at if data[stop] == b'"'[0] else stop
    rest = bytes(data[at : at + 16])
    found = _word.match(rest)
    word = found[0].decode() if found else ""
    if word in {"NaN", "Infinity", "-Infinity"}:
        return Fault(at, f"unexpected {word}", "Write a number or null.")
    first = rest.decode(errors="replace")[0]
    shown = f"byte 0x{rest[0]:02x}" if first == "\ufffd" else repr(first)
    rules = (
        (rest[:1] == b"'", "unexpected single quote", 'Put keys and strings in double quotes (").'),
        (rest[0] < 0x20, "unescaped control character", r"Write it as \n, \t or \u00XX."),
        (rest.startswith((b"True", b"False", b"None")), "unexpected Python literal", "JSON has true, false and null."),
        (rest[:1] in b"}],", f"unexpected {shown}", "Remove a comma, or add what is missing."),
        (True, f"unexpected {shown}", "Write the line with a JSON library."),
    )
    return next(Fault(at, reason, fix) for applies, reason, fix in rules if applies)


def nesting(data: Any) -> int:
    """The greatest depth of containers in valid JSON."""
    most = depth = at = 0
    while (found := _to_bracket.match(data, at)) is not None:
        depth, at = depth + (1 if found[1] else -1), found.end()
        most = max(most, depth)
    return most


def longest_number(data: Any) -> int:
    """The length of the longest run of digits outside of strings."""
    return max((len(found[0]) for found in _digits.finditer(data) if found[0][:1] != b'"'), default=0)


PLACEHOLDER = b"\\ufffd"  # as long as a surrogate
LONE_SURROGATE_FIX = "Cut strings between characters; an emoji has length 2 in JavaScript."

_ESCAPE_BYTES_MAX = 12  # of a surrogate pair
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SOUND = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?:[dD][0-7]|[0-9abcefABCEF][0-9a-fA-F])[0-9a-fA-F]{2}"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+"
)


def find_lone_surrogate(data: bytes | bytearray | memoryview, start: int = 0) -> int | None:
    """Where the first lone surrogate begins; None if not found. `start` must not be inside an escape."""
    at, end = start, len(data)
    while at < end:
        stop = min(at + PIECE_BYTES, end)
        found = _SOUND.match(data, at, stop)
        at = found.end() if found else at
        if at == end or (stop < end and at > stop - _ESCAPE_BYTES_MAX):
            continue  # the piece ends here, possibly inside an escape
        return at if _HALF.match(data, at) else None
    return None


def replace_lone_surrogates(data: bytearray | memoryview, num_max: int) -> dict[int, bytes]:
    """Replaces each lone surrogate in place by PLACEHOLDER, which has the same length.

    Returns: the replaced bytes by offset; empty if nothing was found, or more than `num_max`.
    """
    replaced: dict[int, bytes] = {}
    # The same length keeps every offset valid, so a mapped body is changed in place and never copied. Each write may
    # cost a page of memory, hence the limit.
    at = find_lone_surrogate(data)
    while at is not None and len(replaced) < num_max:
        replaced[at] = bytes(data[at : at + len(PLACEHOLDER)])
        data[at : at + len(PLACEHOLDER)] = PLACEHOLDER
        at = find_lone_surrogate(data, at + len(PLACEHOLDER))
    return replaced if at is None else {}


def without_lone_surrogates(line: bytes) -> bytes | None:
    """The line with PLACEHOLDER for each lone surrogate; None if it has none."""
    if b"\\u" not in line:
        return None
    data = bytearray(line)
    return bytes(data) if replace_lone_surrogates(data, len(data)) else None


_MESSAGE = "is given twice; keep one of them"

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIRST_BYTES = 64  # of an object, which usually contain the first colon
_ESCAPED_QUOTE = b"\\u0022"


class _Repeating(dict[str, Any]):
    """An object and its repeated keys."""

    repeated: tuple[str, ...] = ()


def has_repeats(data: bytes) -> bool:
    """Whether the object `data` has a key twice at its top level. False if it is not an object.

    Building the objects would double the time to read a line. Instead, the members that a parser kept are written
    again, with the two usual kinds of spacing, and compared with `data`. If they differ, the quotes are counted, each
    of which belongs to a key or to a value.
    """
    try:
        members = _members.decode(data)
    except UNREADABLE:
        return False
    colon, comma = (b'": ', b', "') if b'": ' in data[:_FIRST_BYTES] else (b'":', b',"')
    written = comma.join([colon.join((key.encode(), value)) for key, value in members.items()])
    if b'{"%b}' % written == data:
        return False
    if 2 * len(members) + b"".join(members.values()).count(b'"') == data.count(b'"'):
        return False
    return bool(find_repeats(data, depth_max=1))  # a key may contain an escaped quote


def find_repeats(data: bytes, depth_max: int | None = None) -> list[Path]:
    """The paths of repeated keys in `data`, outermost first; empty if it is not valid JSON.

    `depth_max`: the depth of the deepest object to check; the outermost has depth 1.
    """
    try:
        found = json.loads(data, object_pairs_hook=_object)
        return list(_paths(found, depth_max))
    except UNREADABLE:
        return []


def find_any_repeats(data: bytes) -> list[Path]:
    """Like `find_repeats` at all depths, but fast if nothing is repeated."""
    try:
        is_sound = msgspec.json.encode(msgspec.json.decode(data)).count(b'"') == data.count(b'"')
    except UNREADABLE:
        is_sound = False
    return [] if is_sound and _ESCAPED_QUOTE not in data else find_repeats(data)


def repeats(paths: list[Path], root: Path = ()) -> list[Diagnostic]:
    return [Diagnostic((*root, *path), _MESSAGE, at_key=True) for path in paths]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = _Repeating(pairs)
    if len(made) != len(pairs):
        made.repeated = tuple(key for key, num in Counter(key for key, _ in pairs).items() if num > 1)
    return made


def _paths(outermost: Any, depth_max: int | None) -> list[Path]:
    found: list[Path] = []
    layer: list[tuple[Path, Any]] = [((), outermost)]
    depth = 0
    while layer and (depth_max is None or depth < depth_max):
        deeper: list[tuple[Path, Any]] = []
        for path, value in layer:
            if isinstance(value, _Repeating):
                found += [(*path, key) for key in value.repeated]
                deeper += [((*path, key), item) for key, item in value.items()]
            elif isinstance(value, list):
                deeper += [((*path, number), item) for number, item in enumerate(value)]
        layer, depth = deeper, depth + 1
    return found
