"""How tests use an engine without a runner."""

from batchfile.engine.base import Engine, Prepared, SchemaUnchecked
from batchfile.types import Request


def prepare_now(engine: Engine, request: Request) -> Prepared:
    """Prepare a request, and wait if its schema has to be compiled. Raises: InvalidRequest."""
    try:
        return engine.prepare(request)
    except SchemaUnchecked as unchecked:
        return unchecked.finish("")
