"""A request line into a Request, whichever format it is in."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from batchfile.errors import UNREADABLE, InvalidRequest
from batchfile.lines import diagnose_body
from batchfile.lines.diagnostics import Diagnostic, shown
from batchfile.lines.envelope import Envelope, Unreadable, decode_envelope
from batchfile.lines.formats import native, openai_chat, openai_completions, openai_embeddings
from batchfile.lines.formats.shared import Unserved
from batchfile.lines.json_scan import (
    LONE_SURROGATE_FIX,
    PLACEHOLDER,
    find_lone_surrogate,
    find_repeats,
    has_repeats,
    repeats,
)
from batchfile.types import Defaults, Request

METHOD = "POST"

Carried = native.Params | openai_chat.Body | openai_completions.Body | openai_embeddings.Body


class _Format(NamedTuple):
    """How the carried object is read. `is_plain`: there is nothing more to check, for which `more_problems` is."""

    model: type[BaseModel]
    read: Callable[[bytes], Any]
    unserved: Mapping[str, Unserved]
    is_plain: Callable[[Any], bool]
    more_problems: Callable[[Any], list[Diagnostic]]
    to_request: Callable[[str, Any, Defaults], Request]


def _format(module: Any, model: type[BaseModel]) -> _Format:
    # The validator itself: `model_validate_json` spends 0.5 us a line on the way to it.
    read = model.__pydantic_validator__.validate_json
    return _Format(model, read, module.UNSERVED, module.is_plain, module.more_problems, module.to_request)


_NATIVE = _format(native, native.Params)
_CHAT = _format(openai_chat, openai_chat.Body)
_OPENAI = {
    openai_chat.URL: _CHAT,
    openai_completions.URL: _format(openai_completions, openai_completions.Body),
    openai_embeddings.URL: _format(openai_embeddings, openai_embeddings.Body),
}
_URLS = " or ".join([", ".join(f'"{url}"' for url in [*_OPENAI][:-1]), f'"{[*_OPENAI][-1]}"'])


class _Carried(msgspec.Struct):
    params: msgspec.Raw = msgspec.Raw()
    body: msgspec.Raw = msgspec.Raw()
    url: object = None


_carried = msgspec.json.Decoder(_Carried)


def parse_request(line: bytes | Envelope, defaults: Defaults) -> Request:
    """Raises: InvalidRequest that names the place, as in `params.max_tokens: must be at least 1, got 0`."""
    envelope = decode_envelope(line) if isinstance(line, bytes) else line
    return _format_of(envelope).to_request(envelope.custom_id, read_carried(envelope), defaults)


def read_carried(envelope: Envelope) -> Carried:
    """The checked `params` or `body`. Raises: InvalidRequest."""
    form = _format_of(envelope)
    try:
        carried: Carried = form.read(envelope.carried)
    except ValidationError:
        raise _refused(find_problems(envelope)) from None
    is_addressed = envelope.format == "native" or (envelope.method == METHOD and envelope.url in _OPENAI)
    if not (is_addressed and form.is_plain(carried)) or has_repeats(envelope.carried):
        diagnostics = find_problems(envelope)
        if diagnostics:
            raise _refused(diagnostics)
    return carried


def _format_of(envelope: Envelope) -> _Format:
    return _NATIVE if envelope.format == "native" else _OPENAI.get(envelope.url or "", _CHAT)


def find_problems(line: bytes | Envelope) -> list[Diagnostic]:
    """Everything for which `parse_request` refuses a line; empty where it does not."""
    try:
        envelope = decode_envelope(line) if isinstance(line, bytes) else line
    except Unreadable as error:
        is_json = bool(error.diagnostics[0].path)
        return error.diagnostics + (_carried_problems(line) if is_json else [])
    if envelope.format == "native":
        return _inside(envelope.carried, "params", _NATIVE)
    outside = _outside(envelope)
    if envelope.url is not None and envelope.url not in _OPENAI:
        return outside  # nobody knows what its body should be
    return outside + _inside(envelope.carried, "body", _format_of(envelope))


def _carried_problems(line: bytes | Envelope) -> list[Diagnostic]:
    """What is wrong inside, of a line whose outside is wrong already."""
    assert isinstance(line, bytes)  # an Envelope is readable
    try:
        wire = _carried.decode(line)
    except UNREADABLE:
        return []
    body = _OPENAI.get(wire.url, _CHAT) if isinstance(wire.url, str) else _CHAT
    for root, raw, form in (("params", wire.params, _NATIVE), ("body", wire.body, body)):
        if bytes(raw).startswith(b"{"):
            return _inside(bytes(raw), root, form)
    return []


def _outside(envelope: Envelope) -> list[Diagnostic]:
    diagnostics = []
    wanted = (("method", f'"{METHOD}"', {METHOD}, envelope.method), ("url", _URLS, _OPENAI, envelope.url))
    for key, words, served, given in wanted:
        if given is None:
            diagnostics.append(Diagnostic((key,), f"is missing; it must be {words}", "Add it."))
        elif given not in served:
            diagnostics.append(Diagnostic((key,), f"must be {words}, got {shown(given)}", "Nothing else is served."))
    return diagnostics


def _inside(carried: bytes, root: str, form: _Format) -> list[Diagnostic]:
    data = _data(carried)
    diagnostics = repeats(find_repeats(carried, depth_max=1), (root,)) + diagnose_body.unserved(
        data, form.unserved, root
    )
    try:
        valid = form.model.model_validate_json(carried)
    except ValidationError as error:
        at = find_lone_surrogate(carried)
        if at is not None:
            half = carried[at : at + len(PLACEHOLDER)].decode()
            return [
                Diagnostic(
                    (root,), f"{half} is half of a character; cut strings between characters", LONE_SURROGATE_FIX
                )
            ]
        return diagnose_body.from_pydantic(error, root, form.model, data, carried) + diagnostics
    return diagnostics + form.more_problems(valid)


def _data(carried: bytes) -> dict[str, Any]:
    try:
        found = from_json(carried)
    except ValueError:  # the model says so in better words
        return {}
    return found if isinstance(found, dict) else {}


def _refused(diagnostics: list[Diagnostic]) -> InvalidRequest:
    more = len(diagnostics) - 1
    return InvalidRequest(f"{diagnostics[0]} (and {more} more)" if more else str(diagnostics[0]))
