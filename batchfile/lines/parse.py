"""Parses a request line of any format into a Request."""

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgspec
from pydantic import ValidationError
from pydantic_core import from_json

from batchfile.endpoints import KINDS, URLS
from batchfile.errors import UNREADABLE, InvalidRequest
from batchfile.lines import diagnose_body
from batchfile.lines.diagnostics import Diagnostic, shown
from batchfile.lines.envelope import Envelope, Unreadable, decode_envelope
from batchfile.lines.formats import native, openai_chat
from batchfile.lines.formats.bodies import FORMATS, Carried
from batchfile.lines.formats.shared import Format
from batchfile.lines.json_scan import (
    LONE_SURROGATE_FIX,
    PLACEHOLDER,
    find_lone_surrogate,
    find_repeats,
    has_repeats,
    repeats,
)
from batchfile.types import Defaults, Kind, Request

METHOD = "POST"

_OTHER_PATHS = {"/v1/v2/rerank": URLS["rerank"]}  # Cohere's version, which vLLM's server has too
_HEARS = "send the recording as an input_audio part of a chat completion, to a model that takes audio"
# Endpoints that other batch systems accept, and what to do instead.
UNSERVED = {
    "/v1/audio/transcriptions": _HEARS,
    "/v1/audio/translations": f"{_HEARS}, and ask for the translation",
    "/v1/audio/speech": "this service generates text",
    "/v1/images/generations": "this service generates text",
    "/v1/images/edits": "this service generates text",
    "/v1/videos": "this service generates text",
    "/v1/moderations": "use /v1/classify and a pool with a classifier",
}
_URLS = " or ".join([", ".join(f'"{url}"' for url in [*KINDS][:-1]), f'"{[*KINDS][-1]}"'])

_SERVER = re.compile(r"https?://[^/]*")
_AZURE = re.compile(r"^openai/(deployments/[^/]+/)?")


class _Carried(msgspec.Struct):
    params: msgspec.Raw = msgspec.Raw()
    body: msgspec.Raw = msgspec.Raw()
    url: object = None


_carried = msgspec.json.Decoder(_Carried)


def parse_request(line: bytes | Envelope, defaults: Defaults) -> Request:
    """Raises: InvalidRequest that names the place, as in `params.max_tokens: must be at least 1, got 0`."""
    envelope = decode_envelope(line) if isinstance(line, bytes) else line
    if defaults.url is not None and envelope.url is None:
        envelope = msgspec.structs.replace(envelope, url=defaults.url)
    form = _format_of(envelope)
    return form.to_request(envelope.custom_id, read_carried(envelope, form), defaults)


def read_carried(envelope: Envelope, form: Format | None = None) -> Carried:
    """The checked `params` or `body`, of this format if it is known. Raises: InvalidRequest."""
    form = form or _format_of(envelope)
    try:
        # Calls the validator directly: `model_validate_json` adds 0.5 us a line.
        carried: Carried = form.plain.__pydantic_validator__.validate_json(envelope.carried)
    except ValidationError:
        try:
            carried = form.body.__pydantic_validator__.validate_json(envelope.carried)
        except ValidationError:
            raise _rejected(find_problems(envelope)) from None
    is_addressed = envelope.format == "native" or (envelope.method == METHOD and envelope.url in FORMATS)
    is_addressed = is_addressed or not _outside(envelope)
    is_fine = is_addressed and not (type(carried) is form.body and form.asks_for_unsupported(carried))
    if not is_fine or form.more_problems(carried) or has_repeats(envelope.carried):
        diagnostics = find_problems(envelope)
        if diagnostics:
            raise _rejected(diagnostics)
    return carried


def _format_of(envelope: Envelope) -> Format:
    return native.FORMAT if envelope.format == "native" else FORMATS.get(path_of(envelope.url), openai_chat.FORMAT)


@lru_cache(maxsize=64)
def path_of(url: str | None) -> str:
    """The endpoint that a url means: with or without the server, /v1, a slash at its end, or Azure's deployment. None:
    chat completions, for lines of only custom_id and body, which Mistral's batches have.
    """
    if url is None:
        return openai_chat.URL
    path = _AZURE.sub("", _SERVER.sub("", url).partition("?")[0].strip("/"))
    whole = f"/{path}" if path.startswith("v1/") else f"/v1/{path}"
    return _OTHER_PATHS.get(whole, whole)


def kind_of(envelope: Envelope, url: str | None = None) -> Kind | None:
    """The kind of its request; None if it is not served. `url`: of a line without one."""
    return "chat" if envelope.format == "native" else kind_of_url(envelope.url or url)


def kind_of_url(url: str | None) -> Kind | None:
    return KINDS.get(path_of(url))


def why_unserved(url: str | None) -> str | None:
    """None for the endpoints that are served."""
    path = path_of(url)
    if path in KINDS:
        return None
    if path in UNSERVED:
        return f"{shown(url)} is not served; {UNSERVED[path]}"
    return f"must be {_URLS}, got {shown(url)}"


def find_problems(line: bytes | Envelope) -> list[Diagnostic]:
    """Every reason for which `parse_request` rejects a line; empty if it accepts it."""
    try:
        envelope = decode_envelope(line) if isinstance(line, bytes) else line
    except Unreadable as error:
        is_json = bool(error.diagnostics[0].path)
        return error.diagnostics + (_carried_problems(line) if is_json else [])
    if envelope.format == "native":
        return _inside(envelope.carried, "params", native.FORMAT)
    outside = _outside(envelope)
    if path_of(envelope.url) not in FORMATS:
        return outside  # without a supported url the format of the body is unknown
    return outside + _inside(envelope.carried, "body", _format_of(envelope))


def _carried_problems(line: bytes | Envelope) -> list[Diagnostic]:
    """Problems inside `params` or `body` of a line whose envelope is invalid too."""
    assert isinstance(line, bytes)  # an Envelope is readable
    try:
        wire = _carried.decode(line)
    except UNREADABLE:
        return []
    body = FORMATS.get(wire.url) if isinstance(wire.url, str) else None
    for root, raw, form in (("params", wire.params, native.FORMAT), ("body", wire.body, body or openai_chat.FORMAT)):
        if bytes(raw).startswith(b"{"):
            return _inside(bytes(raw), root, form)
    return []


def _outside(envelope: Envelope) -> list[Diagnostic]:
    diagnostics = []
    if envelope.method is not None and envelope.method.upper() != METHOD:
        message = f'must be "{METHOD}", got {shown(envelope.method)}'
        diagnostics.append(Diagnostic(("method",), message, "No other value is supported."))
    if (why := why_unserved(envelope.url)) is not None:
        diagnostics.append(Diagnostic(("url",), why, "" if "; " in why else "No other value is supported."))
    return diagnostics


def _inside(carried: bytes, root: str, form: Format) -> list[Diagnostic]:
    data = _data(carried)
    diagnostics = repeats(find_repeats(carried, depth_max=1), (root,)) + diagnose_body.unsupported(
        data, form.unsupported_keys, root
    )
    try:
        valid = form.body.model_validate_json(carried)
    except ValidationError as error:
        at = find_lone_surrogate(carried)
        if at is not None:
            half = carried[at : at + len(PLACEHOLDER)].decode()
            return [
                Diagnostic(
                    (root,), f"{half} is half of a character; cut strings between characters", LONE_SURROGATE_FIX
                )
            ]
        return diagnose_body.from_pydantic(error, root, form.body, data, carried) + diagnostics
    return diagnostics + [replace(problem, path=(root, *problem.path[1:])) for problem in form.more_problems(valid)]


def _data(carried: bytes) -> dict[str, Any]:
    try:
        found = from_json(carried)
    except ValueError:  # the model reports it with a better message
        return {}
    return found if isinstance(found, dict) else {}


def _rejected(diagnostics: list[Diagnostic]) -> InvalidRequest:
    more = len(diagnostics) - 1
    return InvalidRequest(f"{diagnostics[0]} (and {more} more)" if more else str(diagnostics[0]))
