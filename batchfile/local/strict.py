"""`--strict`: one request that can never run refuses the whole file, before an engine is loaded.

Duplicates are the planner's to find. Knows no output.
"""

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.lines import parse_request
from batchfile.lines.framing import iter_lines
from batchfile.store.base import Store
from batchfile.types import LINE_BYTES_MAX, Defaults


def check_every_line(store: Store, key: str, name: str) -> None:
    """Raises: InvalidFile with the first problem and how many there are."""
    num_problems, first = 0, ""
    defaults = Defaults()
    for line in iter_lines(store.stream(key)):
        try:
            if line.data is None:
                raise InvalidRequest(f"is longer than {LINE_BYTES_MAX // 2**20} MiB; shorten the request")
            parse_request(line.data, defaults)
        except InvalidRequest as error:
            num_problems += 1
            first = first or f"line {line.row}: {error}"
    if num_problems:
        more = f" ({num_problems:,} such lines)" if num_problems > 1 else ""
        raise InvalidFile(f"{name}: {first}{more}; nothing ran (--strict). `batchfile validate` shows them all")
