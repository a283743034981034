"""Answers that `batchfile merge` has put into an output. No batch has them, so a run of a changed input gets them as a
source of its own: the requests of the old batch, with the merged results in place of all others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.inputs import HashingWriter
from batchfile.ledger.records import BatchRecord
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX, after_id
from batchfile.local import outputs
from batchfile.local.display import counted, from_here
from batchfile.types import Counts

_NO_ANSWER = b"{}"  # in place of a result, so that it is not taken over
_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedAnswers:
    """`source`: of results, whose `counts` are those of the merged answers; None where they cannot be taken over, and
    `note` says why. `sha256`: of the output that has them.
    """

    source: BatchRecord | None = None
    note: str = ""
    sha256: str = ""


NOT_MERGED = MergedAnswers()


def merged_answers(ledger: Ledger, batch: BatchRecord, output: str, pool: str) -> MergedAnswers:
    """Those at the output of an ended batch. `pool`: of the batch.

    Of an output that was edited since, there are none: `export` keeps it as it is. Raises: OSError, StoreError.
    """
    receipt = outputs.read_receipt(output)
    if receipt is None or not receipt.merged or receipt.batch_id != batch.batch_id or batch.results is None:
        return NOT_MERGED
    if not outputs.is_there(receipt.output):
        return NOT_MERGED
    if batch.input.format != "native":
        num = counted(receipt.merged, "merged result")
        note = f"{from_here(output)} has {num} in OpenAI's format, which cannot be taken over: these requests run again"
        return MergedAnswers(note=note)
    made_by = receipt.merged_by
    if made_by != batch.fingerprints.get(pool):  # otherwise a later run would find answers of two models
        made_by = ("",)
    num_merged = 0
    # Its key is below the old batch, so it is removed with that.
    with HashingWriter(ledger, keys.results_key(batch.batch_id, f"merged-{ledger.new_id()[:12]}")) as writer:
        for stored, here in zip_longest(outputs.result_lines(ledger, batch), _lines(output), fillvalue=b""):
            is_merged = here != stored and (after_id(here) is not None or b'"succeeded"' in here)
            num_merged += is_merged
            writer.write_lines([here if is_merged else _NO_ANSWER])
        results = writer.commit()
    source = replace(
        batch,
        batch_id=f"{batch.batch_id}-merged",
        results=results,
        counts=Counts(succeeded=num_merged),
        fingerprints={pool: made_by},
    )
    return MergedAnswers(source=source if num_merged else None, sha256=receipt.output.sha256)


def _lines(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
        for line in iter_lines(chunks, line_bytes_max=RESULT_BYTES_MAX):
            yield line.data or b""
