"""What an answer must match (the JSON schema of its batch, of its request, or both), and what happens if it does not.

Engines are guided by a schema if they can be; answers are always checked.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from batchfile.errors import InvalidRequest
from batchfile.lines.formats.shared import SEED_MAX
from batchfile.lines.result import REFUSALS
from batchfile.schemas.rules import NOT_JSON, Verdict, kind_of
from batchfile.types import Completion, Defaults, Failure, Request

log = structlog.get_logger()

ATTEMPTS_MAX = 3  # of one request, including the first
SCHEMAS_KEPT = 64  # of batches, in one process

SCHEMA_MISMATCH = Failure(type="model_error", message="Output validation failed")
_ANY_OBJECT = {"type": "object"}  # the meaning of an empty schema in a request

# Where an answer is checked against a schema: here, or in a process that can be killed. The cost of a check is bounded
# before it begins: each part of the schema, with references followed, meets each part of the answer at most once. That
# holds for the keywords below; any other keyword may take any time.
Place = Literal["here", "process"]

SCHEMA_BYTES_MAX = 64 * 1024
PARTS_MAX = 2_000  # of a schema; those behind a reference count as often as it is followed
# Parts of the schema times bytes of the answer; about 10 ms at worst (100 alternatives for each of 500 numbers), and
# some 50 us usually.
COST_MAX = 200_000

_OF_MANY = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_OF_NAMED = frozenset({"properties"})
_OF_ONE = frozenset({"additionalProperties", "items", "not"})
_OF_VALUES = frozenset({"const", "enum"})
_PLAIN = frozenset(
    {
        *("$comment", "$defs", "$schema", "default", "definitions", "deprecated", "description", "examples"),
        *("exclusiveMaximum", "exclusiveMinimum", "format", "maxItems", "maxLength", "maxProperties", "maximum"),
        *("minItems", "minLength", "minProperties", "minimum", "nullable", "readOnly", "required", "title", "type"),
        "writeOnly",
    }
)


class Demand(NamedTuple):
    """One of `texts` must be JSON that matches. `is_own`: the request's schema, not its batch's."""

    schema: bytes
    texts: tuple[str, ...]
    is_own: bool


class OutputSchema:
    """A batch's schema."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        self._schema: dict[str, Any] = msgspec.json.decode(encoded)
        self._is_guiding = True
        self._is_usable = True

    def guide(self, request: Request) -> Request:
        """The request as the engine gets it. A request with its own schema is guided by that one.

        A continuation is not guided, because a grammar would start over after the existing text. Nor is a request with
        tools, which must be free to call them.
        """
        if not self._is_guiding or request.has_guide or _is_free(request):
            return request
        return replace(request, sampling=replace(request.sampling, json_schema=self._schema))

    def is_guided(self, request: Request) -> bool:
        """Is the request guided by this schema, and not by its own?"""
        return request.sampling.json_schema is self._schema

    def answered(self, request: Request) -> None:
        """The engine has answered a request that was put to it like this."""
        if not request.has_guide and not _is_free(request):
            # The guided attempt was rejected, and the unguided one was answered: so the engine rejects the schema.
            self.stop_guiding("the engine answered only without it")

    def stop_guiding(self, reason: str) -> None:
        """The engine rejects this schema: answers are only checked from now on."""
        if self._is_guiding:
            log.warning("schema.not_guiding", reason=f"the engine rejects it, so answers are only checked: {reason}")
        self._is_guiding = False

    def unusable(self, reason: str) -> None:
        """The schema is invalid. Settings reject such a schema, so another program wrote it: only its batch fails."""
        if self._is_usable:
            log.error("schema.unusable", error=reason)
        self._is_usable = False


def _is_free(request: Request) -> bool:
    return request.is_continuation or request.tools is not None


def output_schema_of(defaults: Defaults) -> OutputSchema | None:
    """The schema that the answers of a batch must match; None if any text will do. Equal schemas are shared."""
    schema = defaults.output_schema
    return None if schema is None else _output_schema(msgspec.json.encode(schema))


@lru_cache(maxsize=SCHEMAS_KEPT)
def _output_schema(encoded: bytes) -> OutputSchema:
    return OutputSchema(encoded)


def own_schema(request: Request) -> bytes | None:
    """Encoded; None if the request has no schema. Raises: InvalidRequest."""
    schema = request.sampling.json_schema
    if schema is None:
        return None
    try:
        return msgspec.json.encode(schema or _ANY_OBJECT)
    except RecursionError as error:
        raise InvalidRequest("The JSON schema is nested too deeply. Make it flatter.") from error


def demands(
    request: Request, completion: Completion, own: bytes | None, output_schema: OutputSchema | None
) -> list[Demand]:
    """What each choice must match, unless it calls a tool or is a refusal. The request's schema, `own`, comes first.

    A continuation must match its batch's schema together with the text that it continues. For its own schema, which
    guides it to start over, the text without that beginning matches too.
    """
    texts = [c.text for c in completion.choices if not c.calls and c.stop_reason not in REFUSALS]
    begun = request.messages[-1].content if request.is_continuation else ""
    found: list[Demand] = []
    if own is not None:
        found += [Demand(own, (begun + text, text) if begun else (text,), True) for text in texts]
    if output_schema is not None:
        found += [Demand(output_schema.encoded, (begun + text,), False) for text in texts]
    return found


def are_here(wanted: list[Demand]) -> bool:
    """Can all checks run on the caller's thread?"""
    num_chars = sum(len(text) for demand in wanted for text in demand.texts)
    return all(place_of(demand.schema, num_chars) == "here" for demand in wanted)


def judged_here(schema: bytes, text: str) -> Verdict:
    """Without a message."""
    return Verdict(kind_of(schema, text))


def first_mismatch(wanted: list[Demand], judge: Callable[[bytes, str], Verdict]) -> tuple[Demand, Verdict] | None:
    """None if the answer matches."""
    for demand in wanted:
        for text in demand.texts:
            verdict = judge(demand.schema, text)
            if verdict.kind != "mismatch":
                break
        if verdict.kind != "fits":
            return demand, verdict
    return None


def failure_of(demand: Demand, verdict: Verdict, completion: Completion) -> Failure:
    """The failure of a request whose answers did not match, or could not be checked."""
    whose = "the request's JSON schema" if demand.is_own else "its stage's JSON schema"
    if verdict.kind == "unknown":
        advice = "Make the schema simpler: fewer references, alternatives and repeat counts in `pattern`."
        return _failed(demand, f"Checking the answer against {whose} {verdict.why}. {advice}")
    if not demand.is_own:
        return SCHEMA_MISMATCH
    if verdict.kind == "unusable":
        return _failed(demand, f"The answer cannot be checked against {whose}: {verdict.why}. Fix the schema.")
    if verdict.why == NOT_JSON and any(choice.stop_reason == "max_tokens" for choice in completion.choices):
        return replace(
            SCHEMA_MISMATCH, message=f"{SCHEMA_MISMATCH.message}: the answer ends at max_tokens. Raise max_tokens."
        )
    message = f"{SCHEMA_MISMATCH.message}: {verdict.why} ({whose}, {ATTEMPTS_MAX} attempts)."
    return replace(
        SCHEMA_MISMATCH,
        message=f"{message} Describe the format in the prompt, simplify the schema, or name another model.",
    )


def _failed(demand: Demand, message: str) -> Failure:
    return Failure(type="invalid_request_error" if demand.is_own else SCHEMA_MISMATCH.type, message=message)


def unguided(request: Request) -> Request:
    """For an engine that rejects the schema: the answer is checked nevertheless."""
    return replace(request, sampling=replace(request.sampling, json_schema=None))


def next_try(request: Request) -> Request:
    """The request for another attempt: with the same seed, the answer would be the same."""
    seed = request.sampling.seed
    if seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed + 1 if seed < SEED_MAX else 0))


def place_of(schema: bytes, num_chars: int) -> Place:
    """Where to check an answer of this many characters."""
    parts = num_parts(schema)
    return "here" if parts is not None and parts * max(1, num_chars) <= COST_MAX else "process"


@lru_cache(maxsize=256)
def num_parts(schema: bytes) -> int | None:
    """None if the schema is too large to count, or the count does not bound the time."""
    if len(schema) > SCHEMA_BYTES_MAX:
        return None
    try:
        return _Counter(msgspec.json.decode(schema)).count
    except (ValueError, RecursionError):
        return None


class _Unbounded(ValueError):
    """Too large, endless, or with a keyword of unknown cost."""


class _Counter:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._of_reference: dict[str, int | None] = {}  # None while it is being counted
        self.count = self._parts(root)

    def _parts(self, schema: Any) -> int:
        """Raises: _Unbounded."""
        if isinstance(schema, bool):
            return 1
        if not isinstance(schema, dict):
            raise _Unbounded
        num = 1 + sum(self._of_keyword(name, value) for name, value in schema.items())
        if num > PARTS_MAX:
            raise _Unbounded
        return num

    def _of_keyword(self, name: str, value: Any) -> int:
        if name in _OF_VALUES:
            return _num_values(value)
        if name in _OF_NAMED and isinstance(value, dict):
            return sum(1 + self._parts(part) for part in value.values())
        if name in _OF_MANY and isinstance(value, list):
            return sum(map(self._parts, value))
        if name in _OF_ONE:
            return self._parts(value)
        if name == "$ref" and isinstance(value, str):
            return self._referred(value)
        if name not in _PLAIN or (name == "format" and value == "regex"):  # which compiles the answer
            raise _Unbounded
        return len(value) if name == "required" and isinstance(value, list) else 1

    def _referred(self, reference: str) -> int:
        known = self._of_reference.get(reference, 0)
        if known is None:  # it refers to itself
            raise _Unbounded
        if not known:
            self._of_reference[reference] = None
            known = self._of_reference[reference] = self._parts(_target(self._root, reference))
        return known


def _target(root: Any, reference: str) -> Any:
    """Raises: _Unbounded for anything but a plain place in the same schema."""
    first, *names = reference.split("/")
    if first != "#" or "%" in reference or "~" in reference:
        raise _Unbounded
    for name in names:
        if not isinstance(root, dict) or name not in root:
            raise _Unbounded
        root = root[name]
    return root


def _num_values(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_num_values, inside))
