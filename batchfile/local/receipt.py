"""The receipt next to an output: its input, results and engine. Knows no store."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from batchfile import __version__
from batchfile.inbox.documents import FileFacts
from batchfile.ledger.records import BatchRecord
from batchfile.lines.failures import with_advice
from batchfile.local import options
from batchfile.local.progress import cost_usd
from batchfile.types import Counts, FailureGroup, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """`sha256`: of the input as given (for example compressed). `jsonl_*`: of the requests as JSONL."""

    path: str
    sha256: str
    requests: int
    jsonl_bytes: int
    jsonl_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """`commits`: of the models that came from a hub, by their names. `chosen`: vLLM's arguments that nobody has set."""

    kind: str
    model: str
    version: str
    commits: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one process of a run measured: of several, the one with most `requests`, all of which succeeded.

    `startup_s`: until its engine was ready. `busy_s`: with requests in flight. `slots`: requests at the same time.
    """

    startup_s: float
    busy_s: float
    requests: int
    input_tokens: int
    output_tokens: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a run did: its input, results and engine. Also in the file OUTPUT.receipt.json.

    `seconds`: from the batch's creation to its end, including pauses between runs. `errors`: the file of the input
    lines that did not succeed; None if all did. `reasons`: the file that says why; `failures` has the most frequent
    reasons, with what to do. `gpu_seconds`: None if no GPU is known; `cost_usd`: of these, if `gpu_hour` was given.
    `reused`: how many results are from earlier runs; `reused_from`: how many, by batch; `usage` and `seconds` do not
    include them. `merged`: how many results `batchfile merge` has replaced since. `fingerprints`: of the engines that
    have answered, and `merged_by`: of those of the merged results; an empty one is unknown. `speed`: None where nothing
    was measured.

    >>> receipt = batchfile.run("requests.jsonl", "results.jsonl", engine="echo", progress=False)
    >>> receipt.input.requests, receipt.counts.succeeded, receipt.errors
    (2, 2, None)
    """

    batch_id: str
    reason: str
    input: InputFacts
    output: FileFacts
    errors: FileFacts | None
    counts: Counts
    usage: Usage
    cache_hit_rate: float
    seconds: float
    created_at: float
    ended_at: float
    engine: EngineFacts
    settings: dict[str, str]
    batchfile_version: str
    python_version: str
    reused: int = 0
    reused_from: dict[str, int] = field(default_factory=dict)
    merged: int = 0
    fingerprints: tuple[str, ...] = ()
    merged_by: tuple[str, ...] = ()
    speed: Speed | None = None
    gpu_seconds: float | None = None
    cost_usd: float | None = None
    reasons: FileFacts | None = None
    failures: tuple[FailureGroup, ...] = ()
    version: int = 1

    @property
    def is_all_succeeded(self) -> bool:
        return self.counts.succeeded == self.input.requests


def make_receipt(
    batch: BatchRecord,
    output: FileFacts,
    errors: FileFacts | None = None,
    reasons: FileFacts | None = None,
    gpu_hour: float | None = None,
) -> Receipt:
    """The receipt of an ended batch. `gpu_hour`: the price of a GPU, if it is known."""
    meta = batch.metadata
    ended_at = batch.ended_at or batch.created_at
    return Receipt(
        batch_id=batch.batch_id,
        reason=batch.reason or "completed",
        input=InputFacts(
            path=meta.get(options.INPUT, ""),
            sha256=meta.get(options.SHA256, batch.input.sha256),
            requests=batch.total,
            jsonl_bytes=batch.input.size,
            jsonl_sha256=batch.input.sha256,
        ),
        output=output,
        errors=errors,
        counts=batch.counts,
        usage=batch.usage,
        cache_hit_rate=round(batch.usage.cached_tokens / max(1, batch.usage.input_tokens), 4),
        seconds=round(ended_at - batch.created_at, 3),
        created_at=batch.created_at,
        ended_at=ended_at,
        engine=EngineFacts(
            kind=meta.get("run.engine", ""),
            model=meta.get("run.model", ""),
            version=meta.get(options.ENGINE_VERSION, ""),
            commits=msgspec.json.decode(meta.get(options.COMMITS, "{}"), type=dict[str, str]),
            chosen=msgspec.json.decode(meta.get(options.CHOSEN, "{}"), type=dict[str, Any]),
        ),
        settings={
            name: meta[f"run.{name}"]
            for name in ("stage", "limit", "max_tokens", "temperature")
            if meta.get(f"run.{name}")
        },
        batchfile_version=__version__,
        python_version=platform.python_version(),
        reused=sum(batch.reused.values()),
        reused_from={source: num for source, num in batch.reused.items() if num},
        fingerprints=tuple(sorted({one for known in batch.fingerprints.values() for one in known})),
        speed=speed_of(meta),
        gpu_seconds=batch.gpu_s or None,
        cost_usd=cost_usd(batch.gpu_s, gpu_hour),
        reasons=reasons,
        failures=with_advice(batch.failures),
    )


def speed_of(metadata: Mapping[str, str]) -> Speed | None:
    return msgspec.json.decode(metadata[options.SPEED], type=Speed) if options.SPEED in metadata else None
