"""Parses the JSON of an endpoint's response: choices or vectors with their usage, or an error."""

import base64
import binascii
import json
import re
import struct
from dataclasses import dataclass
from math import isfinite
from typing import Any

from batchfile.engine.fit import vector_of
from batchfile.engine.http.details import with_details
from batchfile.engine.tool_wire import call_stem, made_calls
from batchfile.types import Choice, Completion, Form, Kind, Request, StopReason, ToolCall, Usage, Vector

TOKENS_MAX = 2**31  # that one request can use; a larger number is not a real count
FLOAT_BYTES = 4
REFUSAL_JOINT = "\n\n"  # between the text so far and the refusal that followed it

# The names that endpoints use, in lower case. Null or missing counts as `stop`.
_REASONS: dict[str, StopReason] = {
    **dict.fromkeys(("stop", "stop_sequence", "end_turn", "eos", "eos_token", "complete", "completed"), "end_turn"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), "max_tokens"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool_use"),
    **dict.fromkeys(("content_filter", "content_filtered", "safety", "recitation"), "content_filter"),
    "refusal": "refusal",
}
# By a part of an error's type or code, in lower-case letters: the status that other endpoints use for it.
_STATUSES = {
    "ratelimit": 429,
    "toomanyrequests": 429,
    "quota": 429,
    "toolarge": 413,
    "invalidrequest": 400,
    "badrequest": 400,
    "contextlength": 400,
    "contentfilter": 400,
    "notfound": 404,
    "authentication": 401,
    "unauthorized": 401,
    "permission": 403,
    "forbidden": 403,
    "overloaded": 503,
    "unavailable": 503,
    "timeout": 504,
}
_STREAM_STARTS = (b"data:", b"event:")


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """What an answer may contain. `stem`: the prefix of tool call ids; empty without tools. `num_vectors` and the
    requested `dimensions`: for an embedding. `keeps_thinking`: also thinking that was not requested. `has_options`:
    log probabilities and token ids too.
    """

    stem: str = ""
    is_thinking: bool = False
    kind: Kind = "chat"
    num_choices: int = 1
    num_vectors: int = 0
    dimensions: int | None = None
    is_base64: bool = False
    keeps_thinking: bool = False
    has_options: bool = False
    form: Form | None = None


class Odd(ValueError):
    """What is wrong with an answer, and what to do."""


def expected_answer(request: Request) -> ExpectedAnswer:
    raw, num_choices = request.raw, request.sampling.num_choices
    if raw is None:
        return ExpectedAnswer(
            stem="" if request.tools is None else call_stem(request),
            is_thinking=bool(request.is_thinking),
            num_choices=num_choices,
            keeps_thinking=request.keeps_thinking is True,
            has_options=request.options is not None,
            form=request.form,
        )
    if raw.kind == "completion":
        return ExpectedAnswer(kind=raw.kind, num_choices=num_choices, has_options=request.options is not None)
    return ExpectedAnswer(
        kind=raw.kind,
        num_vectors=min(len(raw.inputs) - raw.num_queries, raw.top_n or len(raw.inputs)),
        dimensions=raw.dimensions,
        is_base64=raw.is_base64,
    )


def read_completion(data: bytes, wanted: ExpectedAnswer) -> Completion:
    """Raises: Odd."""
    try:
        return (_vectors if wanted.num_vectors else _completion)(json.loads(data), wanted)
    except Odd:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        is_stream = data.startswith(_STREAM_STARTS)
        raise Odd("it is an event stream, which was not requested." if is_stream else what_is_odd(error)) from error


def what_is_odd(error: Exception) -> str:
    """What is wrong, without the library's wording, and what to do."""
    if isinstance(error, KeyError):
        return _advised(f"it has no {error.args[0]!r}")
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return _advised("it is not JSON")
    return _advised("one of its values has a type that OpenAI's API does not have there")


def error_in(body: Any) -> Any:
    """The error in the body of a successful response, in one of the usual places; None if it has no error."""
    if not isinstance(body, dict):
        return None
    if body.get("error"):
        return body["error"]
    if body.get("object") == "error":
        return body
    if "choices" not in body and "data" not in body:
        return _error_of_no_answer(body)
    choices = body.get("choices")
    each = choices if isinstance(choices, list) else []
    return next((one["error"] for one in each if isinstance(one, dict) and one.get("error")), None)


def _error_of_no_answer(body: dict[str, Any]) -> Any:
    """An error in the form of web frameworks and gateways."""
    errors, detail = body.get("errors"), body.get("detail")
    if isinstance(errors, list) and errors:
        return errors[0]
    if isinstance(detail, dict) and detail:
        return detail
    return body if detail or isinstance(body.get("message"), str) else None


def status_of(error: Any) -> int | None:
    """The HTTP status that fits an error, by its code or type; None if unknown."""
    if not isinstance(error, dict):
        return None
    codes = [error.get(name) for name in ("code", "status", "status_code", "http_status", "type")]
    numbers = [int(one) if isinstance(one, str) and re.fullmatch("[1-9][0-9]{2}", one) else one for one in codes]
    known = [one for one in numbers if isinstance(one, int) and 400 <= one < 600]
    for one in codes:
        letters = re.sub("[^a-z]", "", one.lower()) if isinstance(one, str) else ""
        known += [status for part, status in _STATUSES.items() if part in letters]
    return known[0] if known else None


def _advised(what: str) -> str:
    return f"{what}. Check that base_url leads to an OpenAI-compatible API."


def _completion(body: dict[str, Any], wanted: ExpectedAnswer) -> Completion:
    choices = sorted(body["choices"], key=lambda choice: int(choice.get("index") or 0))
    if not choices:
        raise Odd(_advised("it has no choices"))
    if len(choices) != wanted.num_choices:
        raise Odd(f"it has {len(choices)} choices instead of {wanted.num_choices}.")
    made = Completion(
        choices=tuple(_choice(choice, wanted, index) for index, choice in enumerate(choices)),
        usage=_usage(body, "prompt_tokens", "completion_tokens"),
        kind=wanted.form or wanted.kind,
    )
    return with_details(made, body, choices) if wanted.has_options else made


def _choice(choice: dict[str, Any], wanted: ExpectedAnswer, index: int) -> Choice:
    reason = _reason(choice.get("finish_reason"))
    message = choice["message"] if wanted.kind == "chat" else {"content": choice["text"]}
    text, refused = _text_and_refusal(message.get("content"))
    refusal = refused + _text(message.get("refusal"))
    thought = message.get("reasoning_content") or message.get("reasoning")
    keeps_thinking = wanted.is_thinking or wanted.keeps_thinking
    thinking = _text(thought) if thought is not None and keeps_thinking else None
    calls = _calls(message.get("tool_calls") or [], wanted, index, is_cut=reason == "max_tokens")
    if refusal:
        text = REFUSAL_JOINT.join(filter(None, (text, refusal)))
        reason = "content_filter" if reason == "content_filter" else "refusal"
    if reason == "tool_use" and not calls:
        raise Odd("its finish_reason says that it calls a tool, but it has no tool call.")
    has_asked_thinking = thinking and wanted.is_thinking
    if message.get("content") is None and not (calls or refusal or has_asked_thinking) and reason == "end_turn":
        only = ", only reasoning, which was not requested" if thought else ""
        raise Odd(f"its content is null, and it has no tool call and no refusal{only}.")
    if calls and reason == "end_turn":
        reason = "tool_use"
    matched = choice.get("stop_reason")
    if reason == "end_turn" and isinstance(matched, str):
        return Choice(text, "stop_sequence", matched, thinking=thinking)
    return Choice(text, reason, calls=calls, thinking=thinking)


def _reason(given: Any) -> StopReason:
    reason = _REASONS.get(str(given or "stop").lower())
    if reason is None:
        raise Odd(f"its finish_reason {_shown(given)} is unknown, so the answer may be incomplete.")
    return reason


def _shown(given: Any) -> str:
    return repr(given[:80]) if isinstance(given, str) else json.dumps(given)[:80]


def _calls(given: list[dict[str, Any]], wanted: ExpectedAnswer, index: int, *, is_cut: bool) -> tuple[ToolCall, ...]:
    if given and not wanted.stem:
        raise Odd("it calls a tool, but the request has no tools.")
    found = [(call["function"]["name"], call["function"]["arguments"]) for call in given]
    asked = [(name, _arguments(name, arguments, is_cut=is_cut)) for name, arguments in found]
    try:
        return made_calls(wanted.stem, index, asked)
    except ValueError as error:
        raise Odd(f"{error}.") from error


def _arguments(name: Any, arguments: Any, *, is_cut: bool) -> Any:
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        why = ": max_tokens cut them off. Raise max_tokens." if is_cut else "."
        raise Odd(f"the arguments of its call of {_shown(name)} are not JSON{why}") from error


def _text_and_refusal(content: object) -> tuple[str, str]:
    """The text and the refusal in a content, whose parts may be either."""
    if not isinstance(content, list):
        return _text(content), ""
    is_refusal = [isinstance(part, dict) and part.get("type") == "refusal" for part in content]
    refused = [{"text": part["refusal"]} for part, it_is in zip(content, is_refusal, strict=True) if it_is]
    return _text([part for part, it_is in zip(content, is_refusal, strict=True) if not it_is]), _text(refused)


def _text(given: object) -> str:
    """The text of a content, which may consist of parts. Raises: Odd, KeyError, TypeError if it is not text."""
    if given is None or isinstance(given, str):
        return given or ""
    if not isinstance(given, list) or not all(isinstance(part["text"], str) for part in given):
        raise Odd("its content is not text.")
    return "".join(part["text"] for part in given)


def _vectors(body: dict[str, Any], wanted: ExpectedAnswer) -> Completion:
    if wanted.kind == "rerank":
        made = tuple((float(int(one["index"])), _finite(one["relevance_score"])) for one in body["results"])
        if len(made) != wanted.num_vectors:
            raise Odd(f"it has {len(made)} documents instead of {wanted.num_vectors}.")
        return Completion(choices=(), usage=_usage(body, "prompt_tokens"), kind=wanted.kind, vectors=made)
    found = sorted(body["data"], key=lambda one: int(one["index"]))
    if len(found) != wanted.num_vectors:
        raise Odd(f"it has {len(found)} vectors instead of {wanted.num_vectors}.")
    if [int(one["index"]) for one in found] != list(range(len(found))):
        raise Odd("the indexes of its vectors do not match the inputs.")
    usage, labels = _usage(body, "prompt_tokens"), tuple[str | None, ...]()
    if wanted.kind == "score":
        vectors: tuple[Vector, ...] = tuple((_finite(one["score"]),) for one in found)
    elif wanted.kind == "classification":
        vectors = tuple(_vector(one["probs"], wanted) for one in found)
        labels = tuple(None if one.get("label") is None else str(one["label"]) for one in found)
    elif wanted.kind == "pooling":
        vectors = tuple(_vector_or_more(one["data"], wanted) for one in found)
    else:
        vectors = tuple(_vector(one["embedding"], wanted) for one in found)
    return Completion(choices=(), usage=usage, kind=wanted.kind, vectors=vectors, labels=labels)


def _vector_or_more(given: Any, wanted: ExpectedAnswer) -> Vector:
    """Some poolers make a vector for each token."""
    if isinstance(given, list) and given and isinstance(given[0], list):
        return tuple(tuple(map(_finite, one)) for one in given)
    return _vector(given, wanted)


def _finite(given: Any) -> float:
    value = float(given)
    if not isfinite(value):
        raise Odd("it has a number that is not finite.")
    return value


def _vector(given: Any, wanted: ExpectedAnswer) -> tuple[float, ...] | str:
    """A vector in the requested encoding, whichever encoding the response has."""
    values = _unpacked(given) if isinstance(given, str) else tuple(map(float, given))
    if not all(map(isfinite, values)):
        raise Odd("it has a number that is not finite.")
    if wanted.dimensions is not None and len(values) != wanted.dimensions:
        raise Odd(f"it has a vector of {len(values)} numbers instead of {wanted.dimensions}.")
    if isinstance(given, str) and wanted.is_base64:
        return given
    return vector_of(values, is_base64=wanted.is_base64)


def _unpacked(given: str) -> tuple[float, ...]:
    try:
        data = base64.b64decode(given, validate=True)
        return struct.unpack(f"<{len(data) // FLOAT_BYTES}f", data)
    except (binascii.Error, ValueError, struct.error) as error:
        raise Odd("it has a vector that is a string but not base64 of float32 numbers.") from error


def _usage(body: dict[str, Any], *needed: str) -> Usage:
    """The usage; unknown unless it has all of the needed counts."""
    usage = body.get("usage")
    counts = [_count(usage.get(name)) for name in needed] if isinstance(usage, dict) else [None]
    if not isinstance(usage, dict) or None in counts:
        return Usage(unknown=1)
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    prompt, completion, *_ = (*(count or 0 for count in counts), 0)
    return Usage(input_tokens=prompt, output_tokens=completion, cached_tokens=min(cached or 0, prompt))


def _count(given: object) -> int | None:
    is_count = isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= TOKENS_MAX
    return int(given) if is_count else None  # type: ignore[call-overload]
