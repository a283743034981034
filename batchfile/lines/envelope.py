"""The outside of a request line: whose it is and which format it is in. What it carries is not looked into.

msgspec frames the bytes; the carried object stays raw.
"""

from difflib import get_close_matches

import msgspec

from batchfile.errors import InvalidRequest
from batchfile.words import Dialect

_KEYS = ("custom_id", "params", "metadata", "method", "url", "body")


class Unreadable(InvalidRequest):
    """A line that can not run. `custom_id` where it could be read all the same."""

    def __init__(self, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.custom_id = custom_id


class Envelope(msgspec.Struct, frozen=True):
    """`carried` is the raw `params` or `body`. `hint` and `model` are what routing may look at."""

    custom_id: str
    dialect: Dialect
    carried: bytes
    hint: str | None = None
    model: str | None = None
    method: str | None = None
    url: str | None = None


class _Metadata(msgspec.Struct):
    model_hint: str | None = None


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    metadata: _Metadata | None = None
    method: str | None = None
    url: str | None = None
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Model(msgspec.Struct):
    model: str | None = None


class _CustomId(msgspec.Struct):
    custom_id: str


_wire = msgspec.json.Decoder(_Wire)
_model = msgspec.json.Decoder(_Model)
_custom_id = msgspec.json.Decoder(_CustomId)
_anything = msgspec.json.Decoder()


def decode_envelope(line: bytes) -> Envelope:
    """Raises: Unreadable (an InvalidRequest) that says what is wrong and how to mend it."""
    try:
        wire = _wire.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _explain(line, error) from None
    if not wire.custom_id:
        raise Unreadable("custom_id: is empty; give every request a name of its own")
    if wire.params is not msgspec.UNSET:
        return _native(wire, bytes(wire.params))
    if wire.body is not msgspec.UNSET:
        return _openai(wire, bytes(wire.body))
    raise Unreadable("params: is missing; put the request's parameters there", wire.custom_id)


def custom_id_of(line: bytes) -> str | None:
    """The custom_id where it can be read, whatever else is wrong with the line."""
    try:
        return _custom_id.decode(line).custom_id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _native(wire: _Wire, params: bytes) -> Envelope:
    if not params.startswith(b"{"):
        raise Unreadable("params: must be an object", wire.custom_id)
    hint = None if wire.metadata is None else wire.metadata.model_hint
    return Envelope(wire.custom_id, "native", params, hint, _model_of(params))


def _openai(wire: _Wire, body: bytes) -> Envelope:
    if not body.startswith(b"{"):
        raise Unreadable("body: must be an object", wire.custom_id)
    return Envelope(wire.custom_id, "openai", body, None, _model_of(body), wire.method, wire.url)


def _model_of(carried: bytes) -> str | None:
    if b'"model"' not in carried:
        return None
    try:
        return _model.decode(carried).model
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None  # the request's own parser says what is wrong


def _explain(line: bytes, error: Exception) -> Unreadable:
    custom_id = custom_id_of(line)
    if isinstance(error, RecursionError):
        return Unreadable("is nested too deeply; flatten the request", custom_id)
    try:
        found = _anything.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as broken:
        return Unreadable(f"is not valid JSON: {_where(str(broken))}", custom_id)
    if not isinstance(found, dict):
        return Unreadable('must be a JSON object such as {"custom_id": "a", "params": {...}}')
    for key in found:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, 1)
            meant = f", did you mean {near[0]}?" if near else f"; known are {', '.join(_KEYS)}"
            return Unreadable(f"{key[:80]}: unknown key{meant}", custom_id)
    if "custom_id" not in found:
        return Unreadable("custom_id: is missing; give every request a name of its own")
    if not isinstance(found["custom_id"], str):
        return Unreadable("custom_id: must be a string")
    metadata = found.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        return Unreadable("metadata: must be an object", custom_id)
    if isinstance(metadata, dict) and not isinstance(metadata.get("model_hint"), str | None):
        return Unreadable("metadata.model_hint: must be a string", custom_id)
    return Unreadable(str(error), custom_id)


def _where(message: str) -> str:
    """msgspec's words for a place, in ours: bytes from 1."""
    return message.replace("JSON is malformed: ", "").replace("(byte ", "(at byte ")
