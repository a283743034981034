"""Does an answer fit the JSON schema of its batch? The one place that knows jsonschema-rs.

Engines are guided by the schema where they can be; what they answer is checked in any case.
"""

from functools import lru_cache
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from batchfile.lines.chat import SEED_MAX
from batchfile.words import Completion, Defaults, Failure, Request

log = structlog.get_logger()

ATTEMPTS_MAX = 3  # of one request, the first included
SCHEMAS_KEPT = 64  # compiled ones, in one process
# Of one `pattern` on one string, about 10 ms; a string that takes more does not fit. The library's own limit is ten
# times that, and an answer may hold thousands of strings.
BACKTRACKS_MAX = 100_000

MISFIT = Failure(type="model_error", message="Output validation failed")


class Fitting:
    """A batch's schema, compiled. With one that can not be compiled no answer fits."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._is_guiding = True
        try:
            self._validator = _compiled(schema)
        except ValueError as error:
            # Settings refuse such a schema, so another program wrote it: its batch fails, and no other.
            log.error("schema.unusable", error=_first_line(error))
            self._validator = None

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

    def fits(self, request: Request, completion: Completion) -> bool:
        """Every choice is JSON that fits, or calls; that of a continuation together with the text it goes on from."""
        if request.sampling.json_schema is None and not _is_free(request):
            # It was guided when it came in, and answered when it was not.
            self.stop_guiding("an answer came only without it")
        if self._validator is None:
            return False
        begun = request.messages[-1].content if request.is_continuation else ""
        return all(bool(choice.calls) or self._is_fit(begun + choice.text) for choice in completion.choices)

    def stop_guiding(self, reason: str) -> None:
        """The engine refuses this schema: from now on answers are only checked."""
        if self._is_guiding:
            log.warning("schema.not_guiding", reason=f"the engine refuses it; answers are only checked: {reason}")
        self._is_guiding = False

    def _is_fit(self, text: str) -> bool:
        try:
            return bool(self._validator.is_valid(msgspec.json.decode(text)))
        except (ValueError, RecursionError):  # no JSON, or nested without measure
            return False


def _is_free(request: Request) -> bool:
    return request.is_continuation or request.tools is not None


def fitting_of(defaults: Defaults) -> Fitting | None:
    """What checks the answers of a batch; None where any text will do. Equal schemas are compiled once."""
    schema = defaults.output_schema
    return None if schema is None else _fitting(msgspec.json.encode(schema))


def unguided(request: Request) -> Request:
    """For an engine that refuses the schema: the answer is checked all the same."""
    return replace(request, sampling=replace(request.sampling, json_schema=None))


def next_try(request: Request) -> Request:
    """The request for another attempt: with its seed as it was, the answer would be too."""
    seed = request.sampling.seed
    if seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed + 1 if seed < SEED_MAX else 0))


def schema_problem(schema: dict[str, Any]) -> str | None:
    """Why this is no schema that answers can be checked by, in one line; None where it is one."""
    try:
        _compiled(schema)
    except ValueError as error:
        return _first_line(error)
    return None


@lru_cache(maxsize=SCHEMAS_KEPT)
def _fitting(encoded: bytes) -> Fitting:
    return Fitting(msgspec.json.decode(encoded))


def _compiled(schema: dict[str, Any]) -> Any:
    """Raises: ValueError."""
    import jsonschema_rs  # takes 10 ms and is needed by few

    bounded = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS_MAX)
    return jsonschema_rs.validator_for(schema, retriever=_refuse, pattern_options=bounded)


def _refuse(uri: str) -> Any:
    raise ValueError(f"a schema stands alone; copy what {uri} names into its $defs")


def _first_line(error: ValueError) -> str:
    return str(error).splitlines()[0]
