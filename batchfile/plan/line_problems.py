"""What refuses a stored file as a whole, line by line, in the codes of OpenAI's Batch API. Pure.

What is wrong inside a `body` refuses nothing: that request alone will be an errored result.
"""

from batchfile.errors import InvalidRequest
from batchfile.ledger.records import LineError
from batchfile.lines.diagnostics import short
from batchfile.lines.envelope import Envelope, Unreadable
from batchfile.routing import NamesNoPool

NOTED_MAX = 100  # of one file; the rest would only be more of the same

_CODES = {
    "custom_id": "duplicate_custom_id",
    "model": "model_not_found",
    "url": "url_mismatch",
    "method": "invalid_method",
    "body": "missing_required_parameter",
}


class LineProblems:
    """Notes the first `NOTED_MAX` problems of a file whose every line must be a request to `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        self.found: list[LineError] = []
        self._endpoint = endpoint

    def check(self, envelope: Envelope) -> None:
        """Raises: InvalidRequest where the line is no request to the endpoint."""
        if envelope.format != "openai":
            raise InvalidRequest(
                "body: is missing; a line needs custom_id, method, url and body (params is another API's)"
            )
        if envelope.method != "POST":
            raise InvalidRequest(f'method: must be "POST"{_got(envelope.method)}')
        if envelope.url != self._endpoint:
            raise InvalidRequest(f"url: must be the endpoint of the batch, {self._endpoint!r}{_got(envelope.url)}")

    def note(self, row: int, error: InvalidRequest) -> None:
        if len(self.found) < NOTED_MAX:
            self.found.append(_line_error(row, error))


def _got(value: str | None) -> str:
    return ", and is missing" if value is None else f", got {short(value)!r}"


def _line_error(row: int, error: InvalidRequest) -> LineError:
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
