"""The outside of a request line: whose it is and which format it is in. What it carries is not looked into.

msgspec frames the bytes; the carried object stays raw.
"""

from contextlib import suppress

import msgspec

from batchfile.errors import UNREADABLE, InvalidRequest
from batchfile.lines import diagnose_envelope
from batchfile.lines.diagnose_envelope import id_text
from batchfile.lines.diagnostics import Diagnostic
from batchfile.lines.lone_surrogates import without_lone_surrogates
from batchfile.lines.repeated_keys import has_repeats
from batchfile.types import InputFormat

REPLACED = "\ufffd"  # what a half of a character is read as


class Unreadable(InvalidRequest):
    """A line that can not run. `custom_id` where it could be read all the same. `diagnostics`: all that is wrong."""

    def __init__(self, diagnostics: list[Diagnostic], custom_id: str | None) -> None:
        super().__init__(str(diagnostics[0]))
        self.diagnostics = diagnostics
        self.custom_id = custom_id


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """`carried` is the raw `params` or `body`. `hint` and `model` are what routing may look at."""

    custom_id: str
    dialect: InputFormat
    carried: bytes
    hint: str | None = None
    method: str | None = None
    url: str | None = None

    @property
    def model(self) -> str | None:
        """Read on demand, because most routing never asks. None where it is absent or no string."""
        if b'"model"' not in self.carried:
            return None
        carried: bytes | None = self.carried
        while carried is not None:  # the request's own parser says what is wrong
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
    metadata: _Metadata | None = None
    method: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Model(msgspec.Struct):
    model: str | None = None


_wire = msgspec.json.Decoder(_Wire)
_model = msgspec.json.Decoder(_Model)
_UNSET = msgspec.UNSET


def decode_envelope(line: bytes, expected: InputFormat = "native") -> Envelope:
    """What is wrong inside of what it carries is left to the request's own parser, half of a character too.

    `expected`: of which format a refusal speaks where the line is of neither.
    Raises: Unreadable (an InvalidRequest) that says what is wrong and how to mend it.
    """
    try:
        if not line.isascii():
            line.decode()  # msgspec does not look into what it skips
        wire = _wire.decode(line)
    except UNREADABLE as error:
        envelope = _around_lone_surrogates(line)
        if envelope is None:
            reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise _unreadable(line, reason, expected) from None
        return envelope
    envelope = _envelope(wire)
    if envelope is None:
        raise _unreadable(line, "is not a request", expected)
    if _has_repeats(line, envelope, wire):
        raise _unreadable(line, "has a key twice", expected)
    return envelope


def _has_repeats(line: bytes, envelope: Envelope, wire: _Wire) -> bool:
    """Whether a key of the line stands twice. Nearly always the quotes before what is carried, which ends the line, are
    just those of the keys that were found and of their values.
    """
    start = len(line) - 1 - len(envelope.carried)
    if not line.startswith(envelope.carried, start):
        return has_repeats(line)
    num_strings = 3 + 2 * ((wire.method is not _UNSET) + (wire.url is not _UNSET))
    return line[:start].count(b'"') != 2 * num_strings and has_repeats(line[:start] + b"0}")


def _envelope(wire: _Wire) -> Envelope | None:
    custom_id = id_text(wire.custom_id)
    if not custom_id:
        return None
    if wire.params is not _UNSET:
        params = bytes(wire.params)
        is_alone = wire.body is _UNSET and wire.method is _UNSET and wire.url is _UNSET
        if params[:1] == b"{" and is_alone:
            hint = None if wire.metadata is None else wire.metadata.model_hint
            return Envelope(custom_id, "native", params, hint)
    elif wire.body is not _UNSET:
        body = bytes(wire.body)
        if body[:1] == b"{" and wire.metadata is None:
            return Envelope(custom_id, "openai", body, None, wire.method or None, wire.url or None)
    return None


def _around_lone_surrogates(line: bytes) -> Envelope | None:
    """The envelope of a line whose only fault are halves of characters, and these in what it carries or in metadata."""
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


def custom_id_of(line: bytes) -> str | None:
    """The custom_id where it can be read, whatever else is wrong with the line."""
    return diagnose_envelope.custom_id_of(line)


def _unreadable(line: bytes, reason: str, expected: InputFormat) -> Unreadable:
    return Unreadable(
        diagnose_envelope.explain(line, expected) or [Diagnostic((), reason)], diagnose_envelope.custom_id_of(line)
    )
