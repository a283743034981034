"""What an answer must fit, the JSON schema of its batch, that of its request or both, and what follows if it does not.

Engines are guided by a schema where they can be; what they answer is checked in any case.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from batchfile.errors import InvalidRequest
from batchfile.lines.formats.shared import SEED_MAX
from batchfile.lines.result import REFUSALS
from batchfile.runner.schemas.placement import place_of
from batchfile.runner.schemas.rules import NOT_JSON, Kind, Verdict, kind_of
from batchfile.types import Completion, Defaults, Failure, Request

log = structlog.get_logger()

ATTEMPTS_MAX = 3  # of one request, the first included
SCHEMAS_KEPT = 64  # of batches, in one process

SCHEMA_MISMATCH = Failure(type="model_error", message="Output validation failed")
_ANY_OBJECT = {"type": "object"}  # what an empty schema of a request means


class Demand(NamedTuple):
    """One of `texts` is JSON that fits. `is_own`: the request's schema, not its batch's."""

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
        """The request as the engine gets it. One with a schema of its own is guided by that.

        A continuation is not guided: a grammar would begin anew behind the text that is there already. Nor is one
        with tools: it must be free to call them.
        """
        if not self._is_guiding or request.sampling.json_schema is not None or _is_free(request):
            return request
        return replace(request, sampling=replace(request.sampling, json_schema=self._schema))

    def is_guided(self, request: Request) -> bool:
        """Is it this schema, and not the request's own, that guides it?"""
        return request.sampling.json_schema is self._schema

    def answered(self, request: Request) -> None:
        """The engine has answered what was put to it like this."""
        if request.sampling.json_schema is None and not _is_free(request):
            # It was guided when it came in, and answered when it was not.
            self.stop_guiding("an answer came only without it")

    def stop_guiding(self, reason: str) -> None:
        """The engine refuses this schema: from now on answers are only checked."""
        if self._is_guiding:
            log.warning("schema.not_guiding", reason=f"the engine refuses it; answers are only checked: {reason}")
        self._is_guiding = False

    def unusable(self, reason: str) -> None:
        """No answer fits it. Settings refuse such a schema, so another program wrote it: its batch fails, alone."""
        if self._is_usable:
            log.error("schema.unusable", error=reason)
        self._is_usable = False


def _is_free(request: Request) -> bool:
    return request.is_continuation or request.tools is not None


def output_schema_of(defaults: Defaults) -> OutputSchema | None:
    """What checks the answers of a batch; None where any text will do. Equal schemas are one."""
    schema = defaults.output_schema
    return None if schema is None else _output_schema(msgspec.json.encode(schema))


@lru_cache(maxsize=SCHEMAS_KEPT)
def _output_schema(encoded: bytes) -> OutputSchema:
    return OutputSchema(encoded)


def own_schema(request: Request) -> bytes | None:
    """Encoded; None where it brings none. Raises: InvalidRequest."""
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
    """What each choice must fit, unless it calls a tool or is a refusal. The request's schema, `own`, comes first.

    A continuation fits its batch's schema together with the text it goes on from; its own, guided by which it begins
    anew, also without.
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
    """Can all of them be checked on the caller's thread?"""
    num_chars = sum(len(text) for demand in wanted for text in demand.texts)
    return all(place_of(demand.schema, num_chars) == "here" for demand in wanted)


def first_mismatch(wanted: list[Demand]) -> tuple[Demand, Kind] | None:
    """None where the answer fits. For what may be checked here."""
    for demand in wanted:
        kinds = [kind_of(demand.schema, text) for text in demand.texts]
        if "fits" not in kinds:
            return demand, kinds[-1]
    return None


def first_verdict(wanted: list[Demand], judge: Callable[[bytes, str], Verdict]) -> tuple[Demand, Verdict] | None:
    """The same by a judge who finds words for it."""
    for demand in wanted:
        for text in demand.texts:
            verdict = judge(demand.schema, text)
            if verdict.kind != "mismatch":
                break
        if verdict.kind != "fits":
            return demand, verdict
    return None


def failure_of(demand: Demand, verdict: Verdict, completion: Completion) -> Failure:
    """What a request ends with whose answers did not fit, or could not be checked."""
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
    """For an engine that refuses the schema: the answer is checked all the same."""
    return replace(request, sampling=replace(request.sampling, json_schema=None))


def next_try(request: Request) -> Request:
    """The request for another attempt: with its seed as it was, the answer would be too."""
    seed = request.sampling.seed
    if seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed + 1 if seed < SEED_MAX else 0))
