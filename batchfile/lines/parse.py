"""A request line into a Request, whichever format it is in."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from batchfile.errors import InvalidRequest
from batchfile.lines import native, openai, problems
from batchfile.lines.envelope import Envelope, Unreadable, decode_envelope
from batchfile.lines.findings import Finding, shown
from batchfile.words import Defaults, Request

_NATIVE_UNSERVED = frozenset(native.UNSERVED)
_OPENAI_UNSERVED = frozenset(openai.UNSERVED)
_NO_TURN = "holds no user turn; add one"


def parse_request(line: bytes | Envelope, defaults: Defaults) -> Request:
    """Raises: InvalidRequest that names the place, as in `params.max_tokens: must be at least 1, got 0`."""
    envelope = decode_envelope(line) if isinstance(line, bytes) else line
    try:
        if envelope.dialect == "native":
            params = native.Params.model_validate_json(envelope.carried)
            is_served = _NATIVE_UNSERVED.isdisjoint(params.model_fields_set) or not find_problems(envelope)
            request = native.to_request(envelope.custom_id, params, defaults)
        else:
            body = openai.Body.model_validate_json(envelope.carried)
            is_served = _is_chat(envelope) and (
                _OPENAI_UNSERVED.isdisjoint(body.model_fields_set) or not find_problems(envelope)
            )
            request = openai.to_request(envelope.custom_id, body, defaults)
    except ValidationError:
        raise _refused(find_problems(envelope)) from None
    if not is_served or not request.messages or request.messages[-1].role == "system":
        raise _refused(find_problems(envelope))
    return request


def find_problems(line: bytes | Envelope) -> list[Finding]:
    """Everything for which `parse_request` refuses a line; empty where it does not."""
    if isinstance(line, bytes):
        try:
            line = decode_envelope(line)
        except Unreadable as error:
            return error.findings
    if line.dialect == "native":
        return _inside(line.carried, "params")
    return _outside(line) + _inside(line.carried, "body")


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
    if all(turn.role in {"system", "developer"} for turn in valid.messages):
        findings.append(Finding((root, "messages"), _NO_TURN, 'Add {"role": "user", "content": "..."}.'))
    return findings


def _data(carried: bytes) -> dict[str, Any]:
    try:
        found = from_json(carried)
    except ValueError:  # the model says so in better words
        return {}
    return found if isinstance(found, dict) else {}


def _refused(findings: list[Finding]) -> InvalidRequest:
    more = len(findings) - 1
    return InvalidRequest(f"{findings[0]} (and {more} more)" if more else str(findings[0]))
