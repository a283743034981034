"""What the planner accepts as a request line, and what it does with an input that has other lines. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.ledger.records import LineError, PlanRules
from batchfile.lines.diagnostics import short
from batchfile.lines.envelope import Envelope, Unreadable
from batchfile.lines.parse import parse_request, path_of
from batchfile.routing import NamesNoPool
from batchfile.types import REQUESTS_MAX, Defaults, InputFormat

PROBLEMS_MAX = 100  # collected from one file; more would not help

_LEADING_PATH = re.compile(r"[^\s:]+: ")
# The codes of OpenAI's Batch API.
_CODES = {
    "custom_id": "duplicate_custom_id",
    "model": "model_not_found",
    "url": "url_mismatch",
    "method": "invalid_method",
    "body": "missing_required_parameter",
}

Place = Callable[[int, int], str]  # where a user finds a request: by its index from 0, or by its line from 1


def by_line(number: int, row: int) -> str:
    return f"line {row}"


def by_number(number: int, row: int) -> str:
    return f"requests[{number}]"


def located(place: str, message: str) -> str:
    """`line 4: custom_id: ...`, `requests[3].custom_id: ...`, `requests[3]: is not valid JSON ...`."""
    return f"{place}{'.' if place[-1] == ']' and _LEADING_PATH.match(message) else ': '}{message}"


class LinesRefused(InvalidFile):
    """A file is rejected because of these lines, or because it could not be converted.

    `errors`: never empty, and at most `PROBLEMS_MAX`. `num`: how many there are.
    """

    def __init__(self, errors: tuple[LineError, ...], num: int = 1) -> None:
        super().__init__(f"the file has invalid lines; the first is: {errors[0].message}")
        self.errors = errors
        self.num = num


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`on_problem`: reject the line, which gets its result at once; `refuse` the input at its first such line; or
    collect `PROBLEMS_MAX` of them and reject the input for all. `place`: how its user finds a line.

    `reads_params`: lines are checked inside `params` or `body` too. Otherwise a request with a problem there fails
    alone, when it is to run. Every line must be a request to `endpoint`, if given, in OpenAI's format. `custom_ids`:
    what each must match; `id_name`: what messages call them, as those of rows have the name of a column. An input of
    more than `requests_max` requests is always rejected.
    """

    on_problem: Literal["reject", "refuse", "collect"] = "reject"
    place: Place = by_line
    reads_params: bool = False
    endpoint: str | None = None
    custom_ids: re.Pattern[str] | None = None
    id_name: str = "custom_id"
    requests_max: int = REQUESTS_MAX

    @property
    def expected_format(self) -> InputFormat:
        """The format to name in the message for a line of no known format."""
        return "native" if self.endpoint is None else "openai"

    def check(self, envelope: Envelope, first: InputFormat) -> None:
        """`first`: the format of the first line. Raises: InvalidRequest if this line does not follow the policy."""
        if self.on_problem == "refuse" and envelope.format != "native":
            raise InvalidRequest(
                "params: is missing; put messages and max_tokens there (body belongs to another format)"
            )
        if envelope.format != first:
            raise InvalidRequest(
                f"this line is in the {envelope.format} format, but the file began in the {first} format; "
                "use one format in a file"
            )
        if self.custom_ids is not None and not self.custom_ids.fullmatch(envelope.custom_id):
            raise InvalidRequest(f"custom_id: {short(envelope.custom_id)!r} does not match {self.custom_ids.pattern}")
        if self.endpoint is not None:
            self._check_endpoint(envelope)
        if self.reads_params:
            parse_request(envelope, Defaults())

    def _check_endpoint(self, envelope: Envelope) -> None:
        if envelope.format != "openai":
            raise InvalidRequest(
                "body: is missing; a line needs custom_id, method, url and body (params belongs to another API)"
            )
        if envelope.method is envelope.url is None:
            return  # Mistral's lines: the endpoint of the batch is their url
        if envelope.method != "POST":
            raise InvalidRequest(f'method: must be "POST"{_got(envelope.method)}')
        if path_of(envelope.url) != path_of(self.endpoint):
            raise InvalidRequest(f"url: must be the endpoint of the batch, {self.endpoint!r}{_got(envelope.url)}")


REJECT = Policy()  # our own or a dropped file
REFUSE = Policy(on_problem="refuse")  # requests that were posted
CHECK = Policy(on_problem="collect", reads_params=True)  # a local run with --strict


def policy_of(rules: PlanRules) -> Policy:
    """Of a batch that exists before its plan."""
    return Policy(
        on_problem="reject" if rules.endpoint is None else "collect",
        endpoint=rules.endpoint,
        requests_max=rules.requests_max,
    )


def line_error(row: int, error: InvalidRequest) -> LineError:
    message = str(error)
    if isinstance(error, NamesNoPool):  # whose own message names other formats' ways to choose a pool
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
