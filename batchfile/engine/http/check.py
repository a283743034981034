"""Checks whether an endpoint can serve a run: its address, the API key and the model.

Lists the models and, if that is not enough, generates one token. A problem is described in one sentence.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from batchfile.engine.http.connection import Ask, NoAnswer
from batchfile.engine.http.wire import MISPLACED_STATUSES, MODELS_PATH, PATHS, Said, endpoints_words, is_json
from batchfile.types import Kind

NAMES_SHOWN_MAX = 5
WORDS_CHARS_MAX = 200
CHECK_SILENCE_S_MAX = 2.0  # after this, the user is told what the program is waiting for
CHECK_TIMEOUT_S = 30.0  # for one request; slower endpoints are not checked

# Statuses that may apply to one path only: not every endpoint has all of the paths.
_REFUSALS = MISPLACED_STATUSES | {403, 404}
# With a JSON body, these prove that the endpoint has read the request, so its address and the key are right.
_READ = frozenset({200, 400, 422})


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`problem`: why no request can succeed; None if unknown. `is_proven`: the endpoint serves requests."""

    problem: str | None = None
    is_proven: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What to check. `is_planned`: a run with this model exists already, and another model needs --restart."""

    root: str
    model: str
    has_key: bool
    is_planned: bool


async def check(ask: Ask, subject: Subject, *, is_listing_enough: bool) -> CheckResult:
    """`is_listing_enough`: skip generating if the endpoint lists the model. The list may not need a valid key."""
    listed = await ask("GET", MODELS_PATH, None)
    if isinstance(listed, NoAnswer):
        return CheckResult(no_answer_problem(listed, subject))
    names = model_names(listed)
    if is_listing_enough and subject.model in names:
        return CheckResult()
    return await _check_paths(ask, subject, names)


# An endpoint that scores makes embeddings or classes too, and so does every one with a pooler.
CHECKED: tuple[Kind, ...] = ("chat", "completion", "embedding", "classification")


async def _check_paths(ask: Ask, subject: Subject, names: Sequence[str]) -> CheckResult:
    """Requests one token on each path until one succeeds. Only if all are rejected, the endpoint is unusable."""
    refused: Said | None = None
    is_unclear = False
    for kind in CHECKED:
        said = await ask("POST", PATHS[kind], smallest_body(kind, subject.model))
        if isinstance(said, NoAnswer):
            return CheckResult(no_answer_problem(said, subject))
        if has_read(said):
            return CheckResult(is_proven=True)
        if not is_refusal(said):
            is_unclear = True
        elif refused is None:
            refused = said
    if is_unclear or refused is None:
        return CheckResult()
    return CheckResult(_problem(refused, subject, names))


def has_read(said: Said) -> bool:
    """Whether the endpoint understood the request, even if it rejected it."""
    return said.status in _READ and is_json(said.data)


def is_refusal(said: Said) -> bool:
    """Whether the response indicates a wrong address, key or model: by its status, or because it is not JSON."""
    if said.status in _REFUSALS:
        return True
    is_final = said.status < 500 or said.status == 501  # other server errors, 408 and 429 may be temporary
    return is_final and said.status not in {408, 429} and not is_json(said.data)


def model_names(listed: Said) -> tuple[str, ...]:
    """The names in the response to GET /v1/models, if it contains any."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        if listed.status == 200:
            return tuple(one["id"] for one in json.loads(listed.data)["data"] if isinstance(one["id"], str))
    return ()


def no_answer_problem(none: NoAnswer, subject: Subject) -> str | None:
    """What is wrong without a response; None for an endpoint that is only slow."""
    root = subject.root
    match none.kind:
        case "unreachable":
            return (
                f"the endpoint {root} cannot be reached ({none.reason}): start it, check --base-url, "
                "or add --wait-for-endpoint to wait until it answers"
            )
        case "untrusted":
            return (
                f"the endpoint {root} cannot be used ({none.reason}): check --base-url, "
                "or name its certificate authority with SSL_CERT_FILE"
            )
        case "broken":
            return (
                f"the endpoint {root} closes the connection without an answer ({none.reason}): check --base-url, "
                "and whether it begins with http:// or https://"
            )
    return None


def _problem(said: Said, subject: Subject, names: Sequence[str]) -> str:
    root, reported = subject.root, f"{said.status}: {_line(endpoints_words(said.data))}"
    if 300 <= said.status < 400:
        where = _line(said.headers.get("Location", "another address"))
        return f"the endpoint {root} redirects to {where} ({said.status}): give --base-url the address it redirects to"
    if said.status == 401 and not subject.has_key:
        return f"the endpoint {root} requires an API key ({reported}): set OPENAI_API_KEY"
    if said.status == 401:
        return f"the endpoint {root} rejected the API key ({reported}): check OPENAI_API_KEY"
    if not is_json(said.data):
        is_page = said.headers.get("Content-Type", "").lower().startswith("text/html")
        found = f"a web page, status {said.status}" if is_page else reported
        return (
            f"the endpoint {root} does not answer as an OpenAI-compatible API ({found}): check --base-url, "
            "the part of the address before /chat/completions"
        )
    if said.status == 403:
        return (
            f"the endpoint {root} denied access to the model {subject.model!r} ({reported}): "
            "check OPENAI_API_KEY and --model"
        )
    again = " and add --restart" if subject.is_planned else ""
    served = f"; it serves {_listed(names)}" if names else ""
    return (
        f"the endpoint {root} does not serve the model {subject.model!r} ({reported}): "
        f"name another with --model{again}{served or ', or check --base-url'}"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(_line(name) for name in names[:NAMES_SHOWN_MAX])
    return f"{shown} and {len(names) - NAMES_SHOWN_MAX:,} more" if len(names) > NAMES_SHOWN_MAX else shown


def _line(text: str) -> str:
    """One short line that is safe on a terminal."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= WORDS_CHARS_MAX else line[: WORDS_CHARS_MAX - 3] + "..."


def smallest_body(kind: Kind, model: str) -> bytes:
    """The body of a request that generates at most one token."""
    about: dict[Kind, dict[str, object]] = {
        "chat": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
        "completion": {"prompt": "Hi", "max_tokens": 1},
        "embedding": {"input": ["Hi"]},
        "score": {"text_1": "Hi", "text_2": ["Hi"]},
        "rerank": {"query": "Hi", "documents": ["Hi"]},
        "classification": {"input": ["Hi"]},
        "pooling": {"input": ["Hi"]},
    }
    return json.dumps({"model": model, **about[kind]}).encode()
