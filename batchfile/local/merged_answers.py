"""Answers that `batchfile merge` has put into an output. No batch has them, so a run of a changed input gets them as a
source of its own: the requests of the old batch, with the merged results in place of all others.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from typing import BinaryIO

from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.inputs import HashingWriter
from batchfile.ledger.records import BatchRecord
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX, after_id
from batchfile.local import outputs
from batchfile.local.display import counted, from_here
from batchfile.types import Counts

_NO_ANSWER = b"{}"  # in place of a result, so that it is not taken over
_ENDING = "-merged"  # of the batch's id, as the id of the source
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
    """Those at the output of an ended batch, a path. `pool`: of the batch.

    Of an output that was edited since, there are none: `export` keeps it as it is. Raises: OSError, StoreError.
    """
    receipt = outputs.read_receipt(output)
    if receipt is None or not receipt.merged or receipt.batch_id != batch.batch_id or batch.results is None:
        return NOT_MERGED
    if batch.input.format != "native":
        num = counted(receipt.merged, "merged result")
        note = f"{from_here(output)} has {num} in OpenAI's format, which cannot be taken over: these requests run again"
        return MergedAnswers(note=note)
    made_by = receipt.merged_by
    if made_by != batch.fingerprints.get(pool):  # otherwise a later run would find answers of two models
        made_by = ("",)
    num_merged, digest = 0, sha256()
    # Its key is below the old batch, so it is removed with that.
    key = keys.results_key(batch.batch_id, f"merged-{ledger.new_id()[:12]}")
    with suppress(FileNotFoundError), open(output, "rb") as file, HashingWriter(ledger, key) as writer:
        for stored, here in zip_longest(
            outputs.result_lines(ledger, batch), _lines(file, digest.update), fillvalue=b""
        ):
            is_merged = here != stored and (after_id(here) is not None or b'"succeeded"' in here)
            num_merged += is_merged
            writer.write_lines([here if is_merged else _NO_ANSWER])
        if num_merged and digest.hexdigest() == receipt.output.sha256:
            return MergedAnswers(
                source=replace(
                    batch,
                    batch_id=batch.batch_id + _ENDING,
                    results=writer.commit(),
                    counts=Counts(succeeded=num_merged),
                    fingerprints={pool: made_by},
                ),
                sha256=receipt.output.sha256,
            )
    return NOT_MERGED


def with_whole_batches(planned: Planned) -> Planned:
    """Merged answers count as those of the batch whose output has them."""
    found = Counter[str]()
    for name, num in planned.reused_from.items():
        found[name.removesuffix(_ENDING)] += num
    return replace(planned, reused_from=dict(found))


def _lines(file: BinaryIO, on_chunk: Callable[[bytes], None]) -> Iterator[bytes]:
    def chunks() -> Iterator[bytes]:
        while chunk := file.read(_CHUNK_BYTES):
            on_chunk(chunk)
            yield chunk

    for line in iter_lines(chunks(), line_bytes_max=RESULT_BYTES_MAX):
        yield line.data or b""
