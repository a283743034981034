"""The outside of a request line: whose it is and which format it is in. What it carries is not looked into.

msgspec frames the bytes; the carried object stays raw.
"""

import msgspec

from batchfile.errors import InvalidRequest
from batchfile.lines import explain
from batchfile.lines.findings import Finding
from batchfile.words import Dialect


class Unreadable(InvalidRequest):
    """A line that can not run. `custom_id` where it could be read all the same. `findings`: all that is wrong."""

    def __init__(self, findings: list[Finding], custom_id: str | None) -> None:
        super().__init__(str(findings[0]))
        self.findings = findings
        self.custom_id = custom_id


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """`carried` is the raw `params` or `body`. `hint` and `model` are what routing may look at."""

    custom_id: str
    dialect: Dialect
    carried: bytes
    hint: str | None = None
    method: str | None = None
    url: str | None = None

    @property
    def model(self) -> str | None:
        """Read on demand, because most routing never asks. None where it is absent or no string."""
        if b'"model"' not in self.carried:
            return None
        try:
            return _model.decode(self.carried).model
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None  # the request's own parser says what is wrong


class _Metadata(msgspec.Struct, gc=False):
    model_hint: str | None = None


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    metadata: _Metadata | None = None
    method: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Model(msgspec.Struct):
    model: str | None = None


_wire = msgspec.json.Decoder(_Wire)
_model = msgspec.json.Decoder(_Model)
_UNSET = msgspec.UNSET


def decode_envelope(line: bytes) -> Envelope:
    """Raises: Unreadable (an InvalidRequest) that says what is wrong and how to mend it."""
    try:
        if not line.isascii():
            line.decode()  # msgspec does not look into what it skips
        wire = _wire.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _unreadable(line, str(error)) from None
    if wire.params is not _UNSET:
        params = bytes(wire.params)
        is_alone = wire.body is _UNSET and wire.method is _UNSET and wire.url is _UNSET
        if wire.custom_id and params[:1] == b"{" and is_alone:
            hint = None if wire.metadata is None else wire.metadata.model_hint
            return Envelope(wire.custom_id, "native", params, hint)
    elif wire.body is not _UNSET:
        body = bytes(wire.body)
        if wire.custom_id and body[:1] == b"{" and wire.metadata is None:
            return Envelope(wire.custom_id, "openai", body, None, wire.method or None, wire.url or None)
    raise _unreadable(line, "is not a request")


def custom_id_of(line: bytes) -> str | None:
    """The custom_id where it can be read, whatever else is wrong with the line."""
    return explain.custom_id_of(line)


def _unreadable(line: bytes, error: str) -> Unreadable:
    return Unreadable(explain.explain(line) or [Finding((), error)], explain.custom_id_of(line))
