"""Reads the envelope of a request line: its custom_id and format, with `params` or `body` left unparsed.

The reasons why an envelope is invalid are searched for in a second, slower pass, for invalid lines only.
"""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import msgspec

from batchfile.errors import UNREADABLE, InvalidRequest
from batchfile.lines.diagnostics import Diagnostic, shown
from batchfile.lines.json_scan import (
    LONE_SURROGATE_FIX,
    find_fault,
    find_lone_surrogate,
    find_repeats,
    has_repeats,
    repeats,
    without_lone_surrogates,
)
from batchfile.lines.key_advice import SAME, typo_of
from batchfile.types import InputFormat

REPLACED = "\ufffd"  # what a lone surrogate is read as
KEYS = ("custom_id", "params", "metadata", "method", "url", "body")
OPENAI_KEYS = ("custom_id", "method", "url", "body")
NATIVE_KEYS = ("custom_id", "params", "metadata")
ROW_PROBLEM = "row_problem"  # instead of a request: why the row of a table cannot become one
# Of params and body, in any format. Not those that are more likely the user's own, such as n or input.
_INSIDE = frozenset(
    {
        *("messages", "prompt", "system", "model", "tools", "tool_choice", "output_config", "response_format"),
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", *SAME),
    }
)
_EXAMPLES: dict[InputFormat, str] = {
    "native": '{"custom_id": "a", "params": {...}}',
    "openai": '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}',
}
_DEEP = Diagnostic((), "is nested too deeply", "Flatten the request.")

WHOLE_FLOAT_MAX = 2.0**53  # above it a float may differ from the number in the file
_LEADING_ID = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]++|\\.)*+"|-?[0-9.]++(?=[\s,}]))')


class Unreadable(InvalidRequest):
    """An invalid line. `custom_id`: None if it could not be read. `diagnostics`: all problems found."""

    def __init__(self, diagnostics: list[Diagnostic], custom_id: str | None) -> None:
        super().__init__(str(diagnostics[0]))
        self.diagnostics = diagnostics
        self.custom_id = custom_id


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """`carried` is the raw `params` or `body`. `hint` and `model` are for routing."""

    custom_id: str
    format: InputFormat
    carried: bytes
    hint: str | None = None
    method: str | None = None
    url: str | None = None

    @property
    def model(self) -> str | None:
        """Read on demand, because most requests are routed without it. None if it is missing or not a string."""
        if b'"model"' not in self.carried:
            return None
        carried: bytes | None = self.carried
        while carried is not None:  # the parser of the format reports the problem
            try:
                return _model.decode(carried).model
            except UNREADABLE:
                carried = without_lone_surrogates(carried)
        return None


class _Metadata(msgspec.Struct, gc=False):
    model_hint: str | None = None


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str | int | float
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # that of a row has all its values, which are not needed
    method: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Model(msgspec.Struct):
    model: str | None = None


_wire = msgspec.json.Decoder(_Wire)
_model = msgspec.json.Decoder(_Model)
_metadata_of = msgspec.json.Decoder(_Metadata | None)
_UNSET = msgspec.UNSET


def decode_envelope(line: bytes, expected: InputFormat = "native") -> Envelope:
    """The envelope of a line. Problems inside `params` or `body`, lone surrogates included, are left to the format's
    parser.

    `expected`: the format that messages mention if the line is in neither.
    Raises: Unreadable (an InvalidRequest) that says what is wrong and how to fix it.
    """
    try:
        if not line.isascii():
            line.decode()  # msgspec does not check UTF-8 in values that it skips
        wire = _wire.decode(line)
        found = _envelope(wire)
    except UNREADABLE as error:
        envelope = _around_lone_surrogates(line)
        if envelope is None:
            reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise _unreadable(line, reason, expected) from None
        return envelope
    if found is None:
        raise _unreadable(line, "is not a request", expected)
    if _has_repeats(line, found, wire):
        raise _unreadable(line, "has a field twice", expected)
    return found


def _has_repeats(line: bytes, envelope: Envelope, wire: _Wire) -> bool:
    """Whether a key of the line occurs twice. Counts quotes first, which is fast: in nearly every line, `params` or
    `body` comes last, and all quotes before it belong to the keys that were read and to their values.
    """
    start = len(line) - 1 - len(envelope.carried)
    if not line.startswith(envelope.carried, start):
        return has_repeats(line)
    num_quotes = 6
    if envelope.format == "openai":
        num_quotes += 4 * ((wire.method is not _UNSET) + (wire.url is not _UNSET))
    if wire.metadata is not _UNSET:
        num_quotes += 2 + bytes(wire.metadata).count(b'"')
    return line.count(b'"', 0, start) != num_quotes and has_repeats(line[:start] + b"0}")


def _envelope(wire: _Wire) -> Envelope | None:
    custom_id = id_text(wire.custom_id)
    if not custom_id:
        return None
    if wire.params is not _UNSET:
        params = bytes(wire.params)
        is_alone = wire.body is _UNSET and wire.method is _UNSET and wire.url is _UNSET
        if params[:1] == b"{" and is_alone:
            hint = None if wire.metadata is _UNSET else _hint_of(bytes(wire.metadata))
            return Envelope(custom_id, "native", params, hint)
    elif wire.body is not _UNSET:
        body = bytes(wire.body)
        if body[:1] == b"{" and (wire.metadata is _UNSET or bytes(wire.metadata) == b"null"):
            return Envelope(custom_id, "openai", body, None, wire.method or None, wire.url or None)
    return None


def _hint_of(metadata: bytes) -> str | None:
    """Raises: msgspec.MsgspecError where it is not an object, or its hint is not text."""
    if metadata[:1] == b"{" and b"model_hint" not in metadata and b"\\" not in metadata:
        return None
    found = _metadata_of.decode(metadata)
    return None if found is None else found.model_hint


def _around_lone_surrogates(line: bytes) -> Envelope | None:
    """The envelope of a line whose only problem is lone surrogates in `params`, `body` or metadata."""
    whole = without_lone_surrogates(line)
    if whole is None:
        return None
    with suppress(*UNREADABLE):
        whole.decode()
        found = _envelope(_wire.decode(whole))
        if found is not None and not has_repeats(whole) and REPLACED not in found.custom_id + (found.hint or ""):
            start = whole.rindex(found.carried)
            return msgspec.structs.replace(found, carried=line[start : start + len(found.carried)])
    return None


def _unreadable(line: bytes, reason: str, expected: InputFormat) -> Unreadable:
    return Unreadable(diagnostics_of(line, expected) or [Diagnostic((), reason)], custom_id_of(line))


class _CustomId(msgspec.Struct):
    custom_id: str | int | float


_custom_id = msgspec.json.Decoder(_CustomId)
_given_id = msgspec.json.Decoder(str | int | float)


def id_text(given: object) -> str | None:
    """A JSON value as custom_id; tables and databases have whole numbers, also as `17.0`."""
    if isinstance(given, str):
        return given
    if isinstance(given, float) and given.is_integer() and abs(given) < WHOLE_FLOAT_MAX:
        return str(int(given))
    return str(given) if type(given) is int else None


def custom_id_of(line: bytes) -> str | None:
    """The custom_id if it can be read, also from a line that is invalid after it."""
    if b"custom_id" not in line and b"\\" not in line:  # nor a key with escapes
        return None
    try:
        return id_text(_custom_id.decode(line).custom_id) or None
    except UNREADABLE:
        pass
    try:
        found = json.loads(line.decode())
        custom_id = id_text(found.get("custom_id")) if isinstance(found, dict) else None
        return custom_id if custom_id and custom_id.encode() else None
    except UNREADABLE:
        pass
    leading = _LEADING_ID.match(line)
    try:
        return id_text(_given_id.decode(leading[1])) or None if leading else None
    except UNREADABLE:
        return None


def diagnostics_of(line: bytes, expected: InputFormat) -> list[Diagnostic]:
    """The problems of a line, most important first. `expected`: the format to assume if the line does not show it."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return [_not_utf8(line, error.start)]
    fault = find_fault(line)
    if fault is not None:
        return [_not_json(fault.reason, _column(line, fault.at), fault.fix)]
    try:
        found = json.loads(text)
    except RecursionError:
        return [_DEEP]
    except ValueError:  # valid JSON, but over Python's limit on the digits of an integer
        return [_not_json("a number has too many digits", None, "Write a shorter number.")]
    if not isinstance(found, dict):
        return [Diagnostic((), f"must be an object such as {_EXAMPLES[expected]}, got {shown(found)}", column=1)]
    return repeats(find_repeats(line, depth_max=1)) + _structure(found, expected) or _lone_surrogate(line)


def _not_utf8(line: bytes, at: int) -> Diagnostic:
    if b"\0" in line[:4] or line[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return Diagnostic((), "is not UTF-8; it looks like UTF-16", "Save the file as UTF-8.", 1)
    column = _column(line, at)
    return Diagnostic(
        (), f"is not valid UTF-8: byte 0x{line[at]:02x} at column {column}", "Save the file as UTF-8.", column
    )


def _not_json(reason: str, column: int | None, fix: str) -> Diagnostic:
    at = "" if column is None else f" at column {column}"
    return Diagnostic((), f"is not valid JSON: {reason}{at}", fix, column)


def _column(line: bytes, at: int) -> int:
    """In characters, from 1."""
    return len(line[:at].decode()) + 1


def _lone_surrogate(line: bytes) -> list[Diagnostic]:
    """JSON that msgspec rejects and Python reads."""
    at = find_lone_surrogate(line)
    if at is None:
        return []
    return [_not_json(f"{line[at : at + 6].decode()} is half of a character", _column(line, at), LONE_SURROGATE_FIX)]


def _structure(found: dict[str, Any], expected: InputFormat) -> list[Diagnostic]:
    if isinstance(found.get(ROW_PROBLEM), str):
        return [Diagnostic((), found[ROW_PROBLEM])]
    is_openai = "params" not in found and (expected == "openai" or not found.keys().isdisjoint(OPENAI_KEYS[1:]))
    diagnostics = [_unknown(key, is_openai=is_openai) for key in found if key not in KEYS]
    if "custom_id" not in found:
        diagnostics.append(Diagnostic(("custom_id",), "is missing; give every request a unique one"))
    elif id_text(found["custom_id"]) is None:
        got = shown(found["custom_id"])
        message = f"must be a string or a whole number, got {got}"
        diagnostics.append(Diagnostic(("custom_id",), message, "Put it in double quotes."))
    elif not found["custom_id"]:
        diagnostics.append(Diagnostic(("custom_id",), "is empty; give every request a unique one"))
    if "params" in found:
        diagnostics += [
            Diagnostic((key,), "does not belong on a line with params", "Remove it.", at_key=True)
            for key in ("body", "method", "url")
            if key in found
        ]
    elif "body" not in found and is_openai:
        diagnostics.append(Diagnostic(("body",), "is missing; put model and messages there"))
    elif "body" not in found:
        diagnostics.append(Diagnostic(("params",), "is missing; put messages and max_tokens there"))
    for key in ("params", "body"):
        if key in found and not isinstance(found[key], dict):
            diagnostics.append(Diagnostic((key,), f"must be an object, got {shown(found[key])}"))
    return diagnostics + _metadata(found) + _strings(found)


def own_fields(keys: Collection[str]) -> tuple[str, ...]:
    """Those keys of a line that are the user's own: not ours, not misspelled, and not of `params` or `body`."""
    known = NATIVE_KEYS if "params" in keys else OPENAI_KEYS
    others = {*KEYS, ROW_PROBLEM, *_INSIDE}
    return tuple(key for key in keys if key not in others and typo_of(key, known) is None)


def _unknown(key: str, *, is_openai: bool) -> Diagnostic:
    near = typo_of(key, OPENAI_KEYS if is_openai else NATIVE_KEYS)
    if near:
        return Diagnostic((key,), f"unknown field; did you mean {near}?", f"Rename it to {near}.", at_key=True)
    if key in _INSIDE:
        carrier = "body" if is_openai else "params"
        return Diagnostic((key,), f"belongs inside {carrier}", f"Move it into {carrier}.", at_key=True)
    if is_openai:
        return Diagnostic((key,), "unknown field; put your own fields under body.metadata", "Remove it.", at_key=True)
    fix = "Remove it, or move it into metadata."
    return Diagnostic((key,), "unknown field; put your own fields under metadata", fix, at_key=True)


def _metadata(found: dict[str, Any]) -> list[Diagnostic]:
    metadata = found.get("metadata")
    if metadata is None:
        return []
    if "body" in found and "params" not in found:
        fix = "Move it into body.metadata."
        return [Diagnostic(("metadata",), "does not belong on a line with body", fix, at_key=True)]
    if not isinstance(metadata, dict):
        return [Diagnostic(("metadata",), f"must be an object, got {shown(metadata)}")]
    hint = metadata.get("model_hint")
    if hint is None or isinstance(hint, str):
        return []
    return [Diagnostic(("metadata", "model_hint"), f"must be a string, got {shown(hint)}", "Name a pool or a model.")]


def _strings(found: dict[str, Any]) -> list[Diagnostic]:
    if "params" in found:
        return []
    return [
        Diagnostic((key,), f"must be a string, got {shown(found[key])}")
        for key in ("method", "url")
        if key in found and not isinstance(found[key], str)
    ]
