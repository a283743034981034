"""How an input is cut into ranges: how many lines each gets, and what is known of one."""

from dataclasses import dataclass, field
from typing import NamedTuple

from batchfile.ledger.records import PartRef, Range
from batchfile.lines.result import FinishedLine
from batchfile.types import FailureGroup

RANGES_WANTED = 1000
RANGES_WANTED_REUSING = 64  # most lines do not run, and each range costs objects even if only one of its lines does
RANGE_LINES_MIN = 32
RANGE_LINES_MAX = 4096
RANGE_BYTES_MAX = 4 * 1024 * 1024


def range_lines(total_bytes: int, sample_lines: int, sample_bytes: int, *, reuses: bool) -> int:
    """How many lines a range gets: a thousandth of all, or a 64th if the batch `reuses` results, estimated from a
    sample of the file. It does not depend on how many can be reused, so each attempt to plan a batch cuts it alike.
    """
    total = total_bytes * sample_lines // max(sample_bytes, 1)
    wanted = RANGES_WANTED_REUSING if reuses else RANGES_WANTED
    return min(max(-(-total // wanted), RANGE_LINES_MIN), RANGE_LINES_MAX)


@dataclass(slots=True)
class Span:
    """The range that is being filled."""

    start: int
    first: int
    first_row: int
    num_lines: int = 0
    pools: dict[str, int] = field(default_factory=dict)
    rejected: list[FinishedLine] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)  # if they are kept


class Cut(NamedTuple):
    """A finished range: its requests per pool, the parts of its rejected lines, and these lines without their results.

    Steps after the pass over the input may reject more lines, or reuse results for some.
    """

    range: Range
    pools: dict[str, int]
    parts: list[PartRef]
    rejected: list[FinishedLine]
    failures: tuple[FailureGroup, ...] = ()
