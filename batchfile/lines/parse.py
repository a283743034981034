"""A request line into a Request, whichever format it is in."""

from batchfile.errors import InvalidRequest
from batchfile.lines.envelope import Envelope, decode_envelope
from batchfile.lines.native import Params, to_request
from batchfile.words import Defaults, Request
from pydantic import ValidationError


def parse_request(line: bytes | Envelope, defaults: Defaults) -> Request:
    """Raises: InvalidRequest that names the place."""
    envelope = decode_envelope(line) if isinstance(line, bytes) else line
    if envelope.dialect == "openai":
        raise InvalidRequest("OpenAI lines are not served yet")
    try:
        params = Params.model_validate_json(envelope.carried)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise InvalidRequest(f"params.{place}: {first['msg']}") from None
    return to_request(envelope.custom_id, params, defaults)
