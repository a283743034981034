"""Vectors: how they are written, how many numbers a result may hold, and which pool makes them. No I/O."""

import base64
import struct
from collections.abc import Sequence

from batchfile.errors import InvalidRequest
from batchfile.types import Request, Task, Vector

VALUES_MAX = 1_000_000  # numbers in the vectors of one request: about 20 MB of JSON

_NO_EMBEDDINGS = "This pool's model generates text: name a pool that makes embeddings (task = 'embed')."
_NO_TEXT = "This pool's model makes embeddings and generates no text: name another pool."


def check_task(request: Request, task: Task) -> None:
    """Raises: InvalidRequest where a model loaded for `task` can not serve the request."""
    if task == "embed" and request.kind != "embedding":
        raise InvalidRequest(_NO_TEXT)
    if task == "generate" and request.kind == "embedding":
        raise InvalidRequest(_NO_EMBEDDINGS)


def check_size(num_inputs: int, dimensions: int) -> None:
    """Raises: InvalidRequest where the vectors would make too large a result."""
    if num_inputs * dimensions > VALUES_MAX:
        raise InvalidRequest(
            f"{num_inputs} vectors of {dimensions} numbers are more than {VALUES_MAX:,} in one result: "
            f"put at most {VALUES_MAX // dimensions} inputs on a line."
        )


def vector_of(values: Sequence[float], *, is_base64: bool) -> Vector:
    if not is_base64:
        return tuple(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
