"""The query parameters of a create, the same on `/api/batches` and `/v1/messages/batches`."""

from typing import Annotated

from litestar.params import QueryParameter

from batchfile.errors import InvalidFile
from batchfile.types import METADATA_MAX, METADATA_NAME_CHARS_MAX, METADATA_VALUE_CHARS_MAX

METADATA_RULE = (
    f"metadata: use name=value, at most {METADATA_MAX} times; names up to {METADATA_NAME_CHARS_MAX} characters, "
    f"values up to {METADATA_VALUE_CHARS_MAX}"
)

REUSE_RULE = (
    "The id of an ended batch, or `auto` for the latest ones that the same model made: requests that are the same as "
    "one that succeeded there get its result and do not run. With `auto` only requests with temperature 0 or a seed."
)

Priority = Annotated[int, QueryParameter(ge=0, le=9, description="0 runs first, 9 last.")]
Metadata = Annotated[list[str] | None, QueryParameter(description="`name=value`; repeat it for several.")]
IsStrict = Annotated[
    bool, QueryParameter(description="`false`: invalid lines become errored results and do not reject the batch.")
]
PoolName = Annotated[str | None, QueryParameter(description="The pool for all requests. Overrides what they name.")]
Reuse = Annotated[str | None, QueryParameter(description=REUSE_RULE)]


def metadata_of(given: list[str] | None) -> dict[str, str]:
    """Raises: InvalidFile if a pair has no name, or there are too many or too long ones."""
    found = {}
    for name, sign, value in (pair.partition("=") for pair in given or ()):
        if sign and 0 < len(name) <= METADATA_NAME_CHARS_MAX and len(value) <= METADATA_VALUE_CHARS_MAX:
            found[name] = value
        else:
            raise InvalidFile(METADATA_RULE)
    if len(given or ()) > METADATA_MAX:
        raise InvalidFile(METADATA_RULE)
    return found
