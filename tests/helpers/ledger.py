"""The ledger: records, keys and their rules."""

from batchfile.ledger import (
    assemble,
    batches,
    bitmaps,
    cas,
    damage,
    ending,
    idempotency,
    inputs,
    keys,
    lease,
    retention,
    shards,
    status,
)
from batchfile.ledger.assemble import Records
from batchfile.ledger.base import IN_FLIGHT, LOCAL, Limits
from batchfile.ledger.batch_status import PoolProgress
from batchfile.ledger.batches import Draft, Planned, create, read_batch
from batchfile.ledger.cas import READS_MAX, Lost, Stored, load, swap, update_batch
from batchfile.ledger.heartbeats import (
    HEARTBEAT_AGE_S_MAX,
    SWEEP_AFTER_S,
    Roster,
    Scale,
    Seen,
    read_heartbeats,
    read_roster,
    read_scale,
    remove_heartbeat,
    sweep_heartbeats,
    write_heartbeat,
)
from batchfile.ledger.idempotency import IdempotencyRecord, KeyedBatch
from batchfile.ledger.inputs import HashingWriter, repin
from batchfile.ledger.keys import REJECTED_POOL, assembly_key, batch_key, batch_prefix, input_key, shard_key
from batchfile.ledger.lease import CRASHES_BEFORE_BISECT, CRASHES_OF_ONE_LINE
from batchfile.ledger.profile import REQUEST_BOUNDS_S, Profile, ShardEnd, profile_of, spread, summed
from batchfile.ledger.records import (
    BatchRecord,
    BatchState,
    EndReason,
    FileRef,
    HeartbeatRecord,
    InputRef,
    LineError,
    Origin,
    PartRef,
    PendingInput,
    Plan,
    PlanRules,
    Range,
    RunnerState,
    RunnerTotals,
    ShardRecord,
    check_known,
    decode,
    encode,
    origin_of,
    unknown_fields,
)
from batchfile.ledger.retention import purge, stand_in
from batchfile.ledger.set_aside import UNANSWERED_MAX, SetAside
from batchfile.ledger.shards import Lease, give_back_owed
from batchfile.ledger.status import BatchSnapshot, StatusReader
from batchfile.ledger.tail import Cursor, iter_live
