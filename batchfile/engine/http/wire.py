"""Builds requests for OpenAI's chat completions, completions and embeddings, and interprets the responses.

The content of successful responses is parsed in answer.py.

In addition to OpenAI's parameters, it uses those of vLLM's server (top_k, min_p, repetition_penalty, ignore_eos,
continue_final_message, stop_reason), but only if a request asks for them. A request's options are sent as they are.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from mimetypes import guess_type
from time import time
from typing import Any
from urllib.parse import urlsplit

from batchfile.endpoints import URLS
from batchfile.engine.http.answer import ExpectedAnswer, Odd, error_in, read_completion, status_of
from batchfile.engine.tool_wire import wire_choice, wire_tools, wire_turn
from batchfile.errors import SettingsError
from batchfile.request_media import Media
from batchfile.types import Completion, Failure, Kind, Message, Outcome, Raw, Request, Sampling, Tools

# A proxy's responses while the server behind it restarts or is down. From 520 on: Cloudflare's (not 524, which means
# that the server accepted the request and was too slow).
UNSERVED_STATUSES = frozenset({502, 503, 504, 520, 521, 522, 523, 525, 526, 530})
# The address or the key is most likely wrong, for all requests.
MISPLACED_STATUSES = frozenset({301, 302, 303, 307, 308, 401})
# Before the first success, most likely the same; after that, it can be about one request.
UNPROVEN_STATUSES = frozenset({403, 404})
# The longest Retry-After that is honored.
RETRY_AFTER_S_MAX = 600.0
# How much of an endpoint's error message is included in ours.
MESSAGE_CHARS_MAX = 2_000
PAGE_CHARS_MAX = 4_000  # of a web page that is searched for text
NO_WORDS = "(no message)"
ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
}


@dataclass(frozen=True, slots=True)
class Said:
    """A response. `data` may be cut a little after the size limit.

    `came_with`: the original status if it was a success and `status` is that of an error in the body.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes
    came_with: int | None = None


@dataclass(frozen=True, slots=True)
class Unserved:
    """The endpoint did not work on the request; either one may be the cause (retry.py).

    `reason`: for the operator; `message`: for the caller, if the request is the cause. `is_sent`: the request may have
    been sent. `http_status`: of the response, if there was one.
    """

    reason: str
    message: str
    retry_after_s: float = 0.0
    is_sent: bool = True
    http_status: int | None = None


@dataclass(frozen=True, slots=True)
class Throttled:
    """429. `is_too_large`: the request alone exceeds a limit, so waiting does not help. The rest as in Unserved."""

    reason: str
    message: str
    retry_after_s: float = 0.0
    is_too_large: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The endpoint worked on the request, which uses up one attempt. `is_late`: it may still be working on it."""

    message: str
    retry_after_s: float = 0.0
    is_late: bool = False
    http_status: int | None = None


TEXT_ALONE = ExpectedAnswer()
PATHS: dict[Kind, str] = {kind: url.removeprefix("/v1") for kind, url in URLS.items()}
OUTSIDE_V1 = ("/classify", "/pooling")  # vLLM's server has them at its root alone
MODELS_PATH = "/models"  # which every endpoint has
Answer = Outcome | Unserved | Throttled | Failed
_NAMES: dict[Kind, str] = {
    "chat": "chat completion",
    "completion": "completion",
    "embedding": "list of embeddings",
    "score": "list of scores",
    "rerank": "list of documents in order",
    "classification": "list of classes",
    "pooling": "list of vectors",
}

_TAG = re.compile(r"<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_LIMIT_AND_REQUESTED = re.compile(
    r"\blimit:?\s*(\d[\d,]{0,14})\b.{0,100}?\brequested:?\s*(\d[\d,]{0,14})\b", re.DOTALL | re.IGNORECASE
)


def api_root(base_url: str) -> str:
    """The address up to and including /v1. Raises: SettingsError if it is not valid."""
    if "@" in base_url.partition("//")[2].partition("/")[0]:
        raise SettingsError("The base URL contains credentials, which would appear in logs. Set an API key instead.")
    try:
        parts = urlsplit(base_url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, or a port that is not a number from 0 to 65535
        is_valid = False
    if not is_valid:
        raise SettingsError(f"the base URL {base_url!r} is not valid: use one such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v1') else path + '/v1'}"


def request_body(request: Request, model: str, max_tokens: int | None) -> bytes:
    """The JSON to post. `max_tokens`: None leaves the limit to the endpoint."""
    sent = {} if request.options is None else request.options.sent
    if request.raw is not None and not request.generates:
        return json.dumps(_pooling_body(request.raw, model) | sent).encode()
    sampling = request.sampling
    optional = {
        sampling.limit_key: max_tokens,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos or None,
        "n": sampling.num_choices if sampling.num_choices > 1 else None,
        "response_format": None if _is_guided_by(sent) else _response_format(sampling),
    }
    if request.tools is not None:
        optional |= _tools(request.tools)
    if request.is_continuation:
        optional |= {"add_generation_prompt": False, "continue_final_message": True}
    about = {"messages": [_turn(turn) for turn in request.messages]}
    body = {
        "model": model,
        **(about if request.raw is None else {"prompt": request.raw.inputs[0]}),
        "temperature": sampling.temperature,
    } | {name: value for name, value in optional.items() if value is not None}
    return json.dumps(body | sent).encode()


def with_newer_limit(body: bytes) -> bytes:
    """The same body, with max_tokens renamed to max_completion_tokens, which newer models require."""
    sent = json.loads(body)
    sent["max_completion_tokens"] = sent.pop("max_tokens")
    return json.dumps(sent).encode()


def unwrapped(said: Said) -> Said:
    """Gives an error with a success status the status that it names (or 500); other responses are unchanged."""
    is_answer = b'"error"' not in said.data and (b'"choices"' in said.data or b'"data"' in said.data)
    if not _is_good(said.status) or is_answer:
        return said
    try:
        error = error_in(json.loads(said.data))
    except (ValueError, RecursionError):
        return said
    if error is None:
        return said
    return Said(status_of(error) or 500, said.headers, json.dumps({"error": error}).encode(), said.status)


def read_answer(said: Said, bytes_max: int, wanted: ExpectedAnswer = TEXT_ALONE, *, is_proven: bool = True) -> Answer:
    """What a response means. `is_proven`: the endpoint has served a request, so 403 and 404 are about this one."""
    status, data = said.status, said.data
    retry_after_s = _retry_after_s(said.headers.get("Retry-After"))
    words = "" if _is_good(status) and not _is_page(said) else endpoints_words(data)
    message = f"The endpoint {_answered(said)}: {words}"
    if status == 429:
        return Throttled(_reason(said), message, retry_after_s, _is_too_large(words))
    if (reason := _unserved_reason(said, is_proven=is_proven)) is not None:
        return Unserved(reason, message, retry_after_s, http_status=status if status >= 400 else None)
    if len(data) > bytes_max:
        return Failure(
            type="model_error",
            message=f"The endpoint's response is longer than {bytes_max} bytes. Lower max_tokens.",
        )
    if _is_good(status):
        return _read_good(data, wanted, retry_after_s)
    if status >= 500 or status == 408:
        return Failed(message, retry_after_s, http_status=status)
    kind = ERROR_TYPES.get(status, "invalid_request_error")
    return Failure(type=kind, message=message, http_status=status if status >= 400 else None)


def _read_good(data: bytes, wanted: ExpectedAnswer, retry_after_s: float) -> Completion | Failed:
    try:
        return read_completion(data, wanted)
    except Odd as odd:
        return Failed(f"The endpoint's response is not a {_NAMES[wanted.kind]}: {odd}", retry_after_s)


def _unserved_reason(said: Said, *, is_proven: bool) -> str | None:
    """Why the endpoint may be the cause that the request was not worked on; None if it was worked on."""
    if said.status in UNSERVED_STATUSES:
        return _reason(said)
    is_page = _is_page(said)
    # A 403 or 404 without JSON may come from a proxy whose endpoint is down, or from a firewall that rejects a prompt.
    is_misplaced = said.status in MISPLACED_STATUSES or (
        said.status in UNPROVEN_STATUSES and not (is_proven and is_json(said.data))
    )
    if not is_misplaced and not (_is_good(said.status) and is_page):
        return None
    where = f" and redirects to {said.headers['Location']}" if "Location" in said.headers else ""
    found = "a web page" if is_page else endpoints_words(said.data).rstrip(".")
    return f"it {_answered(said)}{where}: {found}; check its base URL, API key and model"


def _is_page(said: Said) -> bool:
    return said.headers.get("Content-Type", "").lower().startswith("text/html")


def _answered(said: Said) -> str:
    return f"answered {said.status}" if said.came_with is None else f"answered {said.came_with} with an error"


def _is_good(status: int) -> bool:
    return 200 <= status < 300


def _reason(said: Said) -> str:
    return f"it {_answered(said)}" + (f": {endpoints_words(said.data)}" if said.data.strip() else "")


def _is_too_large(words: str) -> bool:
    """Whether a 429 says that the request alone exceeds a limit, such as OpenAI's and Groq's on tokens per minute."""
    bounds = _LIMIT_AND_REQUESTED.search(words)
    if bounds is not None:
        limit, requested = (int(number.replace(",", "")) for number in bounds.groups())
        return requested > limit
    return "request too large" in words.lower()


def is_max_tokens_complaint(answer: Outcome) -> bool:
    """Whether the endpoint rejected the request because of its max_tokens."""
    if not isinstance(answer, Failure) or answer.type != "invalid_request_error":
        return False
    return any(word in answer.message for word in ("max_tokens", "max_completion_tokens", "context length"))


def _is_guided_by(sent: Mapping[str, Any]) -> bool:
    """Whether the options already say which JSON the answer must be."""
    asked = sent.get("structured_outputs", {})
    return "guided_json" in sent or "json" in asked or "json_object" in asked


def _response_format(sampling: Sampling) -> dict[str, Any] | None:
    schema = sampling.json_schema
    if schema is None:
        return None
    if sampling.schema_form is not None:
        return {"type": "json_schema", "json_schema": {"name": "answer", **sampling.schema_form}}
    if not schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _pooling_body(raw: Raw, model: str) -> dict[str, Any]:
    first, second = raw.inputs[: raw.num_queries], raw.inputs[raw.num_queries :]
    if raw.kind == "score":
        return {"model": model, "text_1": first, "text_2": second}
    if raw.kind == "rerank":
        return {"model": model, "query": first[0], "documents": second, "top_n": raw.top_n}
    body: dict[str, Any] = {"model": model, "input": raw.inputs}
    if raw.kind == "classification":
        return body
    if raw.dimensions is not None:
        body["dimensions"] = raw.dimensions
    return body | {"encoding_format": "base64" if raw.is_base64 else "float"}


def _turn(turn: Message) -> dict[str, Any]:
    wire = wire_turn(turn)
    if turn.parts:
        wire["content"] = [_part(part) for part in turn.parts]
    for call in wire.get("tool_calls", ()):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return wire


_AUDIO_FORMATS = {"mpeg": "mp3", "x-wav": "wav"}  # as OpenAI names them


def _part(part: str | Media) -> dict[str, Any]:
    """A text or medium in OpenAI's form. One that the endpoint cannot reach itself is sent as a data URL."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url, mime = part.source, part.mime
    if part.data is not None and not url.startswith("data:"):
        mime = _mime_of(part)
        url = f"data:{mime};base64,{b64encode(part.data).decode()}"
    if part.kind == "image":
        return {"type": "image_url", "image_url": {"url": url} | ({"detail": part.detail} if part.detail else {})}
    if part.data is None:
        return {"type": "audio_url", "audio_url": {"url": url}}  # vLLM's
    subtype = mime.partition("/")[2]
    audio = {"data": url.partition(",")[2], "format": _AUDIO_FORMATS.get(subtype, subtype)}
    return {"type": "input_audio", "input_audio": audio}


def _mime_of(media: Media) -> str:
    default = {"image": "image/jpeg", "audio": "audio/wav"}.get(media.kind, "application/octet-stream")
    guessed = guess_type(media.source.partition("?")[0])[0] or ""
    return guessed if guessed.startswith(f"{media.kind}/") else default


def _tools(tools: Tools) -> dict[str, Any]:
    return {
        "tools": [
            wired if tool.is_strict is None else wired | {"function": wired["function"] | {"strict": tool.is_strict}}
            for wired, tool in zip(wire_tools(tools), tools.offered, strict=True)
        ],
        "tool_choice": wire_choice(tools),
        "parallel_tool_calls": None if tools.is_parallel else False,
    }


def is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def endpoints_words(data: bytes) -> str:
    """The endpoint's error message, from any of the usual places; for a web page, its text."""
    text = data.decode("utf-8", "replace")
    try:
        body = json.loads(text)
        error = body.get("error", body)
        text = error if isinstance(error, str) else _in_words(error.get("message") or error.get("detail") or text)
    except (ValueError, AttributeError, RecursionError):
        if text.lstrip().startswith("<"):
            text = " ".join(_TAG.sub(" ", text[:PAGE_CHARS_MAX]).split())
    return text.strip()[:MESSAGE_CHARS_MAX] or NO_WORDS


def _in_words(message: Any) -> str:
    """A message as text: a list of problems, as FastAPI sends, or else JSON unless it is a string."""
    if isinstance(message, str):
        return message
    if isinstance(message, list) and message and all(isinstance(one, dict) and "msg" in one for one in message):
        return "; ".join(_problem(one) for one in message)
    return json.dumps(message, ensure_ascii=False)


def _problem(problem: dict[str, Any]) -> str:
    place, words = problem.get("loc"), _in_words(problem["msg"])
    return f"{'.'.join(map(str, place))}: {words}" if isinstance(place, list) and place else words


def _retry_after_s(value: str | None) -> float:
    """Seconds, or a date (RFC 9110, section 10.2.3), at most RETRY_AFTER_S_MAX; anything else is ignored."""
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return min(float(value[:20]), RETRY_AFTER_S_MAX) if len(value) < 20 else RETRY_AFTER_S_MAX
    try:
        wait_s = parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0
    return min(max(0.0, wait_s), RETRY_AFTER_S_MAX)
