"""Keys that one JSON object has twice. Parsers keep the last of them without a word. Pure."""

import json
from collections import Counter
from typing import Any

import msgspec

from batchfile.errors import UNREADABLE
from batchfile.lines.diagnostics import Diagnostic, Path

_MESSAGE = "is given twice; keep one of them"

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIRST_BYTES = 64  # of an object, in which the first colon is most likely
_ESCAPED_QUOTE = b"\\u0022"


class _Repeating(dict[str, Any]):
    """An object, with the keys that it has twice."""

    repeated: tuple[str, ...] = ()


def has_repeats(data: bytes) -> bool:
    """Whether the object `data` has a key twice at its top level. False for what is not an object.

    Building the objects would take as long as all the rest of reading a line. So it writes the members that a parser
    kept once more, in the two ways in which libraries space JSON, and compares; else it counts quotes, each of which
    belongs to a key or to a value.
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
    return bool(find_repeats(data, depth_max=1))  # a key may hold an escaped quote


def find_repeats(data: bytes, depth_max: int | None = None) -> list[Path]:
    """The paths of the keys that `data` has twice, from outside to inside; empty where it is not valid JSON.

    `depth_max`: the deepest object that is looked into, the outermost being 1.
    """
    try:
        found = json.loads(data, object_pairs_hook=_object)
        return list(_paths(found, depth_max))
    except UNREADABLE:
        return []


def find_any_repeats(data: bytes) -> list[Path]:
    """As `find_repeats` at all depths, and quick where there are none."""
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
