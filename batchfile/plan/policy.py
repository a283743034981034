"""What the planner accepts as a request line, and what becomes of an input with lines that it does not accept. Pure.

What is wrong inside `params` or `body` is no concern of it: that request alone becomes an errored result.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.ledger.records import LineError
from batchfile.lines.diagnostics import short
from batchfile.lines.envelope import Envelope, Unreadable
from batchfile.routing import NamesNoPool
from batchfile.types import REQUESTS_MAX, InputFormat

PROBLEMS_MAX = 100  # collected of one file; the rest would only be more of the same

_LEADING_PATH = re.compile(r"[^\s:]+: ")
# The codes of OpenAI's Batch API.
_CODES = {
    "custom_id": "duplicate_custom_id",
    "model": "model_not_found",
    "url": "url_mismatch",
    "method": "invalid_method",
    "body": "missing_required_parameter",
}

Place = Callable[[int, int], str]  # where a user finds a request: by its number from 0, or by its line from 1


def by_line(number: int, row: int) -> str:
    return f"line {row}"


def by_number(number: int, row: int) -> str:
    return f"requests[{number}]"


def located(place: str, message: str) -> str:
    """`line 4: custom_id: ...`, `requests[3].custom_id: ...`, `requests[3]: is not valid JSON ...`."""
    return f"{place}{'.' if place[-1] == ']' and _LEADING_PATH.match(message) else ': '}{message}"


class LinesRefused(InvalidFile):
    """A stored file is refused for these of its lines, or for what could not be converted. `errors`: never empty."""

    def __init__(self, errors: tuple[LineError, ...]) -> None:
        super().__init__(f"the file has lines that can not run, the first is: {errors[0].message}")
        self.errors = errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`on_problem`: reject the line, which gets an errored result at once; refuse the input at its first such line; or
    collect `PROBLEMS_MAX` of them and refuse it for all. `place`: how its user finds a line.

    Every line must be a request to `endpoint`, if given, in OpenAI's format. `custom_ids`: what each must match. An
    input of more than `requests_max` requests is refused in any case.
    """

    on_problem: Literal["reject", "refuse", "collect"] = "reject"
    place: Place = by_line
    endpoint: str | None = None
    custom_ids: re.Pattern[str] | None = None
    requests_max: int = REQUESTS_MAX

    @property
    def expected_format(self) -> InputFormat:
        """Of which a refusal speaks where a line is of none."""
        return "native" if self.endpoint is None else "openai"

    def check(self, envelope: Envelope, first: InputFormat) -> None:
        """`first`: the format of the first line. Raises: InvalidRequest where this one is not what is asked for."""
        if self.on_problem == "refuse" and envelope.format != "native":
            raise InvalidRequest("params: is missing; put messages and max_tokens there (body is another format)")
        if envelope.format != first:
            raise InvalidRequest(
                f"this line is in the {envelope.format} format and the file began in the {first} one; "
                "use one format in a file"
            )
        if self.custom_ids is not None and not self.custom_ids.fullmatch(envelope.custom_id):
            raise InvalidRequest(f"custom_id: {short(envelope.custom_id)!r} does not match {self.custom_ids.pattern}")
        if self.endpoint is None:
            return
        if envelope.format != "openai":
            raise InvalidRequest(
                "body: is missing; a line needs custom_id, method, url and body (params is another API's)"
            )
        if envelope.method != "POST":
            raise InvalidRequest(f'method: must be "POST"{_got(envelope.method)}')
        if envelope.url != self.endpoint:
            raise InvalidRequest(f"url: must be the endpoint of the batch, {self.endpoint!r}{_got(envelope.url)}")


REJECT = Policy()  # a file of ours, or one that was dropped
REFUSE = Policy(on_problem="refuse")  # requests that were posted


def collect(endpoint: str) -> Policy:
    """Of a stored file whose every line is a request to `endpoint`."""
    return Policy(on_problem="collect", endpoint=endpoint)


def line_error(row: int, error: InvalidRequest) -> LineError:
    message = str(error)
    if isinstance(error, NamesNoPool):  # which speaks of other formats' ways to name one
        message = f"body.model: is missing; name one of {error.pools}"
        return LineError(code="missing_required_parameter", message=message, line=row, param="body.model")
    if isinstance(error, Unreadable):
        diagnostic = error.diagnostics[0]
        param = diagnostic.where or None
        code = "invalid_value" if param else "invalid_json_line"
        if param and diagnostic.message.startswith("is missing"):
            code = "missing_required_parameter"
        return LineError(code=code, message=message, line=row, param=param)
    param, colon, _ = message.partition(": ")
    if not colon or param not in _CODES:
        return LineError(code="invalid_value", message=message, line=row)
    return LineError(code=_CODES[param], message=message, line=row, param="body.model" if param == "model" else param)


def _got(value: str | None) -> str:
    return ", and is missing" if value is None else f", got {short(value)!r}"
