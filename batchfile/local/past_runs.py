"""How fast runs were on this machine: measured by a run, kept with its receipt, and found again for an estimate.

Receipts are kept in the user's state folder, one for each engine and model. Losing them costs nothing but estimates.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from batchfile.errors import StoreError
from batchfile.inbox import documents
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import update_batch
from batchfile.ledger.records import BatchRecord
from batchfile.local.options import SPEED
from batchfile.local.receipt import Receipt, Speed, speed_of
from batchfile.machine.capacity import Lengths
from batchfile.runner.stats import RunnerStats

STATE_VARIABLE, STATE_FOLDER = "XDG_STATE_HOME", "~/.local/state"  # as in the XDG base directory specification
# Without an earlier run: a longer request has media, and prompts may share most of their tokens.
BYTES_PER_TOKEN, TEXT_BYTES_MAX, ANSWER_TOKENS, SHARED = 4, 32 * 1024, 256, 0.9
REQUESTS_ENOUGH = 20  # a run of fewer does not replace a longer one


def remember_speed(
    ledger: Ledger, batch_id: str, startup_s: float, num_slots: int, stats: RunnerStats
) -> BatchRecord | None:
    """Store with the batch what this process measured, or all replicas together, unless another one measured more.

    Returns its record, or None where nothing was stored: a store that is full or unavailable does not fail a run here.
    """
    speed = Speed(
        startup_s=round(startup_s, 3),
        busy_s=round(stats.busy_s, 3),
        requests=stats.succeeded,
        input_tokens=stats.input_tokens,
        output_tokens=stats.output_tokens,
        slots=num_slots,
    )

    def decide(record: BatchRecord) -> BatchRecord | None:
        old = speed_of(record.metadata)
        if old is not None and old.requests >= speed.requests:
            return None
        return replace(record, metadata={**record.metadata, SPEED: msgspec.json.encode(speed).decode()})

    if stats.succeeded and not stats.usage_unknown:
        with suppress(StoreError):
            found = update_batch(ledger, keys.batch_key(batch_id), decide)
            return None if found is None else found.record
    return None


def keep(receipt: Receipt) -> None:
    """For estimates of later runs. The echo engine says nothing about them."""
    if receipt.speed is None or receipt.engine.kind == "echo":
        return
    name = hashlib.sha256(f"{receipt.engine.kind}\0{receipt.engine.model}".encode()).hexdigest()[:16]
    with suppress(OSError, RuntimeError):  # no home, or one that cannot be written
        path = _folder() / f"{name}.json"
        old = _read(path)
        if old is not None and receipt.speed.requests < min(REQUESTS_ENOUGH, old.speed.requests if old.speed else 0):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(documents.encode(receipt))
        temporary.replace(path)


def last_run(model: str) -> Receipt | None:
    """The receipt of the last run of `model` on this machine, by any engine. It has a speed."""
    runs = (receipt for receipt in _kept() if receipt.speed is not None and receipt.engine.model == model)
    return max(runs, key=lambda receipt: receipt.ended_at, default=None)


def expected_lengths(model: str, batches: Sequence[BatchRecord], max_tokens: int | None) -> Lengths | None:
    """The mean tokens of these requests, by their size and the last run of `model`; None: unknown, as with media."""
    num = sum(batch.total for batch in batches)
    size = sum(batch.input.size for batch in batches) / max(1, num)
    if not num or size > TEXT_BYTES_MAX:
        return None
    run = last_run(model)
    if run is None or run.speed is None or not run.input.jsonl_bytes:
        return Lengths(
            input=size / BYTES_PER_TOKEN,
            output=min(max_tokens or ANSWER_TOKENS, ANSWER_TOKENS),
            shared=SHARED * size / BYTES_PER_TOKEN,
        )
    tokens_per_byte = run.speed.input_tokens / run.speed.requests * run.input.requests / run.input.jsonl_bytes
    tokens = size * tokens_per_byte
    return Lengths(
        input=tokens, output=run.speed.output_tokens / run.speed.requests, shared=tokens * run.cache_hit_rate
    )


def _kept() -> Iterator[Receipt]:
    with suppress(OSError, RuntimeError):
        for path in sorted(_folder().glob("*.json")):
            receipt = _read(path)
            if receipt is not None:
                yield receipt


def _read(path: Path) -> Receipt | None:
    with suppress(OSError):
        return documents.read(path.read_bytes(), Receipt)
    return None


def _folder() -> Path:
    return Path(os.environ.get(STATE_VARIABLE) or STATE_FOLDER).expanduser() / "batchfile" / "receipts"
