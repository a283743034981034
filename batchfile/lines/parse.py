"""A request line into a Request, whichever format it is in."""

from typing import Any

import msgspec
from pydantic import ValidationError
from pydantic_core import from_json

from batchfile.errors import InvalidRequest
from batchfile.lines import native, openai, problems
from batchfile.lines.envelope import Envelope, Unreadable, decode_envelope
from batchfile.lines.findings import Finding, shown
from batchfile.words import Defaults, Request

_SYSTEM = {"system", "developer"}

# The validators themselves: `model_validate_json` spends 0.5 us a line on the way to them.
_read_params = native.Params.__pydantic_validator__.validate_json
_read_body = openai.Body.__pydantic_validator__.validate_json


class _Carried(msgspec.Struct):
    params: msgspec.Raw = msgspec.Raw()
    body: msgspec.Raw = msgspec.Raw()


_carried = msgspec.json.Decoder(_Carried)


def parse_request(line: bytes | Envelope, defaults: Defaults) -> Request:
    """Raises: InvalidRequest that names the place, as in `params.max_tokens: must be at least 1, got 0`."""
    envelope = decode_envelope(line) if isinstance(line, bytes) else line
    carried = read_carried(envelope)
    if isinstance(carried, native.Params):
        return native.to_request(envelope.custom_id, carried, defaults)
    return openai.to_request(envelope.custom_id, carried, defaults)


def read_carried(envelope: Envelope) -> native.Params | openai.Body:
    """The checked `params` or `body`. Raises: InvalidRequest."""
    carried: native.Params | openai.Body
    try:
        if envelope.dialect == "native":
            carried = params = _read_params(envelope.carried)
            is_plain = native.is_plain(params)
        else:
            carried = body = _read_body(envelope.carried)
            is_plain = openai.is_plain(body) and _is_chat(envelope)
    except ValidationError:
        raise _refused(find_problems(envelope)) from None
    for turn in carried.messages:
        if turn.role not in _SYSTEM:
            break
    else:
        is_plain = False
    if not is_plain:
        findings = find_problems(envelope)
        if findings:
            raise _refused(findings)
    return carried


def find_problems(line: bytes | Envelope) -> list[Finding]:
    """Everything for which `parse_request` refuses a line; empty where it does not."""
    try:
        envelope = decode_envelope(line) if isinstance(line, bytes) else line
    except Unreadable as error:
        is_json = bool(error.findings[0].path)
        return error.findings + (_carried_problems(line) if is_json else [])
    if envelope.dialect == "native":
        return _inside(envelope.carried, "params")
    return _outside(envelope) + _inside(envelope.carried, "body")


def _carried_problems(line: bytes | Envelope) -> list[Finding]:
    """What is wrong inside, of a line whose outside is wrong already."""
    assert isinstance(line, bytes)  # an Envelope is readable
    try:
        wire = _carried.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return []
    for root, raw in (("params", wire.params), ("body", wire.body)):
        if bytes(raw).startswith(b"{"):
            return _inside(bytes(raw), root)
    return []


def _is_chat(envelope: Envelope) -> bool:
    return envelope.method == openai.METHOD and envelope.url == openai.URL


def _outside(envelope: Envelope) -> list[Finding]:
    findings = []
    for key, wanted, given in (("method", openai.METHOD, envelope.method), ("url", openai.URL, envelope.url)):
        if given is None:
            findings.append(Finding((key,), f'is missing; it must be "{wanted}"', "Add it."))
        elif given != wanted:
            findings.append(Finding((key,), f'must be "{wanted}", got {shown(given)}', "Only this one is served."))
    return findings


def _inside(carried: bytes, root: str) -> list[Finding]:
    model = native.Params if root == "params" else openai.Body
    table = native.UNSERVED if root == "params" else openai.UNSERVED
    data = _data(carried)
    findings = problems.unserved(data, table, root)
    try:
        valid: Any = model.model_validate_json(carried)
    except ValidationError as error:
        return problems.from_pydantic(error, root, model, data) + findings
    if all(turn.role in _SYSTEM for turn in valid.messages):
        fix = 'Add {"role": "user", "content": "..."}.'
        findings.append(Finding((root, "messages"), "holds no user turn; add one", fix))
    return findings + (native.tool_problems(valid) if root == "params" else openai.tool_problems(valid))


def _data(carried: bytes) -> dict[str, Any]:
    try:
        found = from_json(carried)
    except ValueError:  # the model says so in better words
        return {}
    return found if isinstance(found, dict) else {}


def _refused(findings: list[Finding]) -> InvalidRequest:
    more = len(findings) - 1
    return InvalidRequest(f"{findings[0]} (and {more} more)" if more else str(findings[0]))
