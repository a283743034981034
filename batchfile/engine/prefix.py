"""Which requests likely begin with the same tokens, seen from their turns alone."""

import zlib

from batchfile.types import Request


def prefix_of(request: Request) -> int:
    """Equal for requests with the same first turn or input. The same in every process, unlike `hash`."""
    if request.raw is not None:
        return zlib.crc32(repr(request.raw.inputs[0]).encode("utf-8", "surrogatepass"))
    return zlib.crc32(request.messages[0].content.encode("utf-8", "surrogatepass"))
