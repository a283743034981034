"""The stored documents, and how they are encoded. It knows no store.

Each has a version. A reader ignores unknown fields and rejects a higher version. A writer rejects both, because its
rewrite would lose the fields that a newer version has added. So a new field needs no new version; a new value of a
Literal, or another meaning of a known field, does.
"""

import uuid
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from msgspec import inspect

from batchfile.errors import UNREADABLE, BatchDamaged, RecordNewer
from batchfile.ledger.profile import Profile
from batchfile.ledger.unknown import unknown_paths
from batchfile.types import REQUESTS_MAX, TENANT, Counts, Defaults, FailureGroup, InputFormat, RoutingTable, Usage

VERSION = 1

Facts = TypeVar("Facts")

BatchState = Literal["planning", "open", "ending", "ended", "deleted"]
EndReason = Literal["completed", "canceled", "expired", "failed", "input_changed"]
ShardState = Literal["leased", "open", "done", "closed"]
RunnerState = Literal["loading", "running", "idle", "draining", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRef:
    """The input as it was pinned: every later read carries `etag`. `size` in bytes."""

    key: str
    etag: str
    size: int
    sha256: str
    format: InputFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A finished file in the store."""

    key: str
    size: int
    sha256: str
    num_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """Why an input is rejected: `line` of the file, from 1 (None: the whole file), `param` the place in the line."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """What the planner requires of the input of a batch that exists before its plan.

    `endpoint`: one line that is not a request to it fails the batch. None: such lines are rejected one by one, and the
    batch fails if none is left. More than `requests_max` requests fail it as well. `reuse_from`: the batches whose
    results it takes over, in order of preference; sampled ones too if `is_sampled_reused`.
    `reuse_notes`: why other batches are not used.
    """

    endpoint: str | None = None
    requests_max: int = REQUESTS_MAX
    reuse_from: tuple[str, ...] = ()
    is_sampled_reused: bool = False
    reuse_notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a batch was made from, for the module that made it. The ledger stores `facts` and never reads them.

    `kind` says which module; `name` is the same for each attempt to make the batch.
    """

    kind: str
    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingInput:
    """What `plan.pending` makes a batch from. The fields are those of BatchRecord."""

    input: InputRef
    origin: Origin
    rules: PlanRules
    kept_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """`batch.json`. It has many writers: `write_id` identifies the write that a read-back shows. Times: epoch seconds.

    While `state` is planning, `plan_key` is empty and `total` 0; they stay so if the batch ends before it has a plan.
    `problems`: why it failed before it ran. `kept_s`: how long its results are kept after its end (None: the retention
    time). `gpu_s`: GPU seconds that its committed results took; 0 if no GPU is known. Once it has ended, `reasons` is
    the file with the reason of each request that did not succeed (None: all did), and `failures` has the most frequent.
    `fingerprints`: pool -> those of the engines that made its results, once it has ended, and from its creation on of
    the results that it reuses; an empty one is unknown. `reused`: how many of its results are from other batches, by
    their id; `reuse_note`: why one of these was not used. `profile`: how it went, once it has ended. `traceparent`: of
    the trace of its creation (W3C Trace Context); empty: it is not traced.
    """

    batch_id: str
    created_at: float
    expires_at: float
    input: InputRef
    plan_key: str
    total: int
    routing: RoutingTable
    defaults: Defaults
    state: BatchState = "open"
    reason: EndReason | None = None
    detail: str | None = None
    tenant: str = TENANT
    stage: str | None = None
    priority: int = 5
    metadata: dict[str, str] = field(default_factory=dict)
    origin: Origin | None = None
    rules: PlanRules | None = None
    problems: tuple[LineError, ...] = ()
    kept_s: float | None = None
    planned_at: float | None = None
    ending_at: float | None = None
    ended_at: float | None = None
    deleted_at: float | None = None
    results: FileRef | None = None
    errors: FileRef | None = None
    reasons: FileRef | None = None
    counts: Counts = field(default_factory=Counts)
    usage: Usage = field(default_factory=Usage)
    failures: tuple[FailureGroup, ...] = ()
    gpu_s: float = 0.0
    fingerprints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reused: dict[str, int] = field(default_factory=dict)
    reuse_note: str | None = None
    profile: Profile | None = None
    traceparent: str = ""
    seq: int = 0
    write_id: str = ""
    version: int = VERSION

    @property
    def is_all_reused(self) -> bool:
        """Nothing of it is left to run."""
        return bool(self.reused) and sum(self.reused.values()) == self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Whole lines of the input: bytes [start, end); `first` is the index of its first request in the batch.

    `num_lines` counts requests, not blank lines. `first_row` is the physical line number, from 1, of the range's first
    byte. `rejected` is a bitmap (see `bitmaps`) of lines that must not run: rejected, or taken over.
    """

    start: int
    end: int
    first: int
    first_row: int
    num_lines: int
    rejected: str = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`plan-{nonce}.json`. `pools`: pool -> {range number: how many of its lines are this pool's}.

    `ids`: the custom_ids of the requests, kept if the input is not an object that the store wrote. `hashes`: of its
    requests, for batches that are to reuse its results.
    """

    ranges: tuple[Range, ...]
    pools: dict[str, dict[int, int]]
    ids: FileRef | None = None
    hashes: FileRef | None = None
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRef:
    """An immutable part with committed results. `sha256` is of its bytes."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """The holder of a shard, what is done, and where the results are. One owner: `lease`; `epoch` counts the owners.

    `done` is a bitmap over the lines of the range. `num_lines`: this pool's lines in it. `gpu_s`: GPU seconds so far, 0
    if no GPU is known. `request_s`: as in `Profile`. `failures`: the most frequent reasons why lines did not succeed.
    `fingerprints`: the distinct ones of the engines whose results are committed here; an empty one is unknown.
    `has_dispatched`, `crash_count`, `bisect_set`, `crashes_alone` and `is_doubted` find a line that kills its runner
    (see `ledger/lease.py`).
    """

    pool: str
    n: int
    num_lines: int
    state: ShardState
    lease: str
    runner: str
    epoch: int = 1
    seq: int = 1
    done: str = "0"
    parts: tuple[PartRef, ...] = ()
    counts: Counts = field(default_factory=Counts)
    usage: Usage = field(default_factory=Usage)
    failures: tuple[FailureGroup, ...] = ()
    gpu_s: float = 0.0
    request_s: tuple[int, ...] = ()
    fingerprints: tuple[str, ...] = ()
    reason: EndReason | None = None
    has_dispatched: bool = False
    crash_count: int = 0
    bisect_set: tuple[int, ...] = ()
    crashes_alone: int = 0
    is_doubted: bool = False
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerTotals:
    """What a runner has done since its start."""

    succeeded: int = 0
    failed: int = 0
    rejected: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    engine_deaths: int = 0
    leases_lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRecord:
    """A live runner, as it reports itself: a hint that nothing depends on.

    Rates are of the last minute's time with requests in flight (0: there was none). Latencies are of the last 1,000
    requests (None: none yet), from when the engine gets the request to its answer. `draining`: it finishes what it
    holds and ends. `down`: its endpoint is unavailable. `shards`: held ones as `batch_id/n`, the first 100.
    `set_aside`: batches that it leaves alone because an object cannot be read or written, and why, the first 20.
    `started_at`: epoch seconds. `fingerprint`: of its engine (see `engine/identity.py`); empty: unknown, or not loaded.
    `commits`: of the models that came from a hub, by their names. `waiting`: requests that are ready and wait for a
    slot. `kv_use`: the share of the KV cache in use; None: unknown. `gpu_s`: GPU seconds since its start; 0 if no GPU
    is known. `problem`: why it cannot answer, in words without addresses.
    """

    pool: str
    runner_id: str
    model: str
    engine: str
    state: RunnerState
    started_at: float
    engine_version: str = ""
    fingerprint: str = ""
    host: str = ""
    num_slots: int = 0
    in_flight: int = 0
    requests_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    cache_hit_share: float = 0.0
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    totals: RunnerTotals = field(default_factory=RunnerTotals)
    shards: tuple[str, ...] = ()
    set_aside: dict[str, str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    waiting: int = 0
    kv_use: float | None = None
    gpu_s: float = 0.0
    problem: str = ""
    version: int = VERSION


def origin_of(kind: str, name: str, facts: object) -> Origin:
    """`facts`: a dataclass."""
    return Origin(kind=kind, name=name, facts=msgspec.to_builtins(facts))


def facts_of(batch: BatchRecord, kind: str, shape: type[Facts]) -> Facts | None:
    """For the module that owns this kind; None if the batch has another. Raises: BatchDamaged."""
    if batch.origin is None or batch.origin.kind != kind:
        return None
    try:
        return msgspec.convert(batch.origin.facts, shape)
    except msgspec.ValidationError as error:
        raise BatchDamaged(f"{batch.batch_id}: its stored {shape.__name__} cannot be read: {error}") from error


class Versioned(Protocol):
    """Any stored document: a frozen dataclass whose `version` is VERSION unless a newer process wrote it."""

    @property
    def version(self) -> int: ...


Record = TypeVar("Record", bound=Versioned)

_encoder = msgspec.json.Encoder()
_decoders: dict[type, msgspec.json.Decoder[object]] = {}


def encode(record: Versioned) -> bytes:
    return _encoder.encode(record)


class _Versioned(msgspec.Struct):
    """What every version of every record contains."""

    version: int = 1


_versioned = msgspec.json.Decoder(_Versioned)


def decode(data: bytes, kind: type[Record]) -> Record:
    """Raises: BatchDamaged if the bytes are not such a document; RecordNewer if a newer version wrote them."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        record = decoder.decode(data)
    except UNREADABLE as error:
        _check_version(data, kind)  # a newer version may have changed the type of a field
        raise BatchDamaged(f"a stored {kind.__name__} cannot be read: {error}") from error
    assert isinstance(record, kind)
    if record.version > VERSION:
        raise _newer(kind, f"has version {record.version}, this process knows {VERSION}")
    return record


def unknown_fields(data: bytes, record: Versioned) -> tuple[str, ...]:
    """The paths in `data` that `record`, decoded from it, does not have. Cheap for documents of this version."""
    if encode(record) == data:
        return ()
    return tuple(unknown_paths(msgspec.json.decode(data), inspect.type_info(type(record)), ""))


def check_known(data: bytes, record: Versioned) -> None:
    """Raises: RecordNewer if rewriting `record`, decoded from `data`, would lose fields."""
    unknown = unknown_fields(data, record)
    if unknown:
        raise _newer(type(record), f"has fields that this process does not know ({', '.join(unknown[:5])})")


def _check_version(data: bytes, kind: type[Record]) -> None:
    try:
        version = _versioned.decode(data).version
    except UNREADABLE:
        return
    if version > VERSION:
        raise _newer(kind, f"has version {version}, this process knows {VERSION}")


def _newer(kind: type[Versioned], why: str) -> RecordNewer:
    return RecordNewer(f"a stored {kind.__name__} {why}: a newer batchfile wrote it; upgrade this process")


def new_id(rng: Random) -> str:
    """32 hex digits: lease ids, write ids, nonces."""
    return uuid.UUID(int=rng.getrandbits(128), version=4).hex
