"""The promises, checked at every write and every answer against what was sent, started and committed.

The numbers are those of docs/reliability.md. Knows no fault: what it refuses must never happen, whatever goes wrong.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from batchfile.types import Counts
from tests.helpers.inbox import inbox_path
from tests.helpers.ledger import (
    CRASHES_OF_ONE_LINE,
    BatchRecord,
    Lease,
    Limits,
    Plan,
    ShardRecord,
    bitmaps,
    decode,
    keys,
)
from tests.helpers.lines import decode_part, decode_result
from tests.helpers.plan import pending
from tests.helpers.store import Object
from tests.sim.bodies import Sent
from tests.sim.dropped import Files, Version
from tests.sim.faults import OLDER_SHARES_OF_TTL
from tests.sim.receiver import Receiver
from tests.sim.store import SharedStore
from tests.sim.world import Broken, Process, World

# From when nothing new goes wrong to the end of every batch but the one with an object that stays ill, in addition to
# the time that one slot needs for all requests. Pauses, restarts and leases that began before are in it.
HEALTHY_S_MAX = 300.0
CANCEL_S_MAX = 90.0  # from a cancel to the last line that starts, where nothing goes wrong any more

_NEXT = {
    "planning": {"open", "ending", "ended"},
    "open": {"ending", "ended"},
    "ending": {"ended"},
    "ended": {"deleted"},
    "deleted": set[str](),
}


@dataclass(slots=True)
class Known:
    """A batch that was committed. `plan`: None until it has one."""

    sent: Sent
    record: BatchRecord
    plan: Plan | None = None
    results: bytes | None = None
    is_gone: bool = False
    canceled_at: float | None = None  # when a cancel was acknowledged
    ended_at: float | None = None  # by the right clock
    is_unwanted: bool = False  # its client asks for it to be deleted
    shards: dict[str, ShardRecord] = field(default_factory=dict)


class Model:
    """What is known from outside. All without a default are set once there is a stage."""

    store: SharedStore
    limits: Limits
    files: Files | None = None
    receiver: Receiver | None = None

    def __init__(self, world: World) -> None:
        self.world = world
        self._begun_at: dict[str, float] = {}  # batch -> when the first trace of its create was written
        self.sent: dict[str, Sent] = {}  # by the digest of the body
        self.batches: dict[str, Known] = {}
        self.calm_since = float("inf")
        self.starts: Counter[tuple[str, str]] = Counter()  # batch, custom_id
        self._committed: dict[tuple[str, int, int], bytes] = {}  # batch, range, line -> its result
        self._done_of_lease: dict[str, int] = {}
        self._crashes_alone: Counter[tuple[str, int, int]] = Counter()
        self._parts: dict[str, dict[int, bytes]] = {}  # that a record names
        self._seen: dict[tuple[str, str], Counts] = {}

    def is_settled(self, *, but: Sequence[Sent] = ()) -> bool:
        """Has every batch ended that is not of one of these?"""
        living = (known for known in self.batches.values() if known.record.state not in {"ended", "deleted"})
        return all(known.sent in but for known in living)

    # -- the store changes

    def put(self, key: str, old: Object | None, data: bytes) -> None:
        place = key.split("/")
        if place[0] == "index":
            self._begun_at.setdefault(keys.index_batch_id(key), self.world.now)
        if place[0] == "outbox" and self.files is not None:
            states: dict[str, str] = {batch_id: known.record.state for batch_id, known in self.batches.items()}
            self.files.put(key, old, data, states)
        if place[0] != "batches":
            return
        batch_id, known = place[1], self.batches.get(place[1])
        if place[2] == "batch.json":
            self._batch(batch_id, decode(data, BatchRecord), None if old is None else decode(old.data, BatchRecord))
        elif known is None or known.record.state == "deleted":
            return  # not committed yet, or garbage of one that is gone
        elif place[2] == "shards":
            self._shard(known, key, decode(data, ShardRecord), None if old is None else decode(old.data, ShardRecord))
        elif old is not None and old.data != data and (key in self._parts or self._is_named(known, key)):
            self.fail(5, f"{key} was replaced, and a record names it")

    def deleted(self, key: str, old: Object) -> None:
        place = key.split("/")
        known = self.batches.get(place[1]) if place[0] == "batches" else None
        if known is None:
            return
        state = known.record.state
        if place[2] == "batch.json":
            known.is_gone = True
        is_needed = place[2] in {"batch.json", "shards"} or key in self._parts or self._is_named(known, key)
        if state in {"planning", "open", "ending"} and is_needed:
            self.fail(1, f"{key} was removed while its batch lives")
        if state == "ended" and (place[2] == "batch.json" or self._is_named(known, key)):
            self.fail(3, f"{key} was removed and its batch was not deleted")

    def _is_named(self, known: Known, key: str) -> bool:
        record = known.record
        return key in {ref.key for ref in (record.results, record.errors, record.input) if ref is not None}

    def _batch(self, batch_id: str, new: BatchRecord, old: BatchRecord | None) -> None:
        if old is None:
            if new.state != "deleted":
                self._committed_batch(batch_id, new)
            return
        if new.state != old.state and new.state not in _NEXT[old.state]:
            self.fail(3, f"{batch_id} went from {old.state} to {new.state}")
        if old.state in {"ended", "deleted"} and new.results != old.results:
            self.fail(3, f"{batch_id} had ended, and names other results now")
        if old.plan_key not in {"", new.plan_key}:
            self.fail(3, f"{batch_id} has another plan now")
        if old.state == "ending" and new.reason != old.reason:
            self.fail(3, f"{batch_id} was ending as {old.reason} and is {new.reason} now")
        known = self.batches.get(batch_id)
        if known is not None:
            self._check_times(known, new, old)
            known.record = new
            self._planned(known)
            if new.state == "ended" and old.state != "ended":
                known.ended_at = self.world.now
                self._ended(known)

    def _check_times(self, known: Known, new: BatchRecord, old: BatchRecord) -> None:
        """However wrong the clocks of the processes are: nothing is over before its time."""
        now, early_s = self.world.now, OLDER_SHARES_OF_TTL[-1] * self.limits.lease_ttl_s
        if new.reason == "expired" and old.reason != "expired":
            open_s = now - self._begun_at[new.batch_id]
            if open_s < self.limits.completion_window_s - early_s:
                self.fail(1, f"{new.batch_id} expired after {open_s:.0f} s")
        if new.state == "deleted" and old.state == "ended" and not known.is_unwanted and known.ended_at is not None:
            kept_s = now - known.ended_at
            if kept_s < self.limits.retention_s - early_s:
                self.fail(3, f"{new.batch_id} was deleted {kept_s:.0f} s after its end")

    def _committed_batch(self, batch_id: str, new: BatchRecord) -> None:
        sent = self._sent_of(new)
        if sent is None or (inbox_path(new) is None and self.store.peek(new.input.key) != sent.data):
            self.fail(1, f"{batch_id} was committed with an input that nobody sent, or before it")
        if sent.is_refused:
            self.fail(4, f"{batch_id} was committed, and its create was refused")
        others = [other for other, known in self.batches.items() if known.sent is sent]
        if any(self.batches[other].record.state != "deleted" for other in others):
            self.fail(4, f"{batch_id} was made for the key {sent.key}, which made {others} before")
        known = self.batches[batch_id] = Known(sent, new)
        if self.store.illness is not None:
            self.store.illness.begin(sent, batch_id, self.world.now)
        self._planned(known)

    def _sent_of(self, new: BatchRecord) -> Sent | None:
        if inbox_path(new) is None or self.files is None:
            return self.sent.get(new.input.sha256)
        return self.files.made(new).sent

    def _version(self, known: Known) -> Version | None:
        return None if self.files is None else self.files.of(known.record)

    def _is_changed(self, known: Known) -> bool:
        """Was it made of a file that was replaced or removed meanwhile?"""
        version = self._version(known)
        return version is not None and version.is_gone

    def _planned(self, known: Known) -> None:
        """Its plan is there as soon as the record names it."""
        record = known.record
        if known.plan is None and record.plan_key:
            plan = self.store.peek(record.plan_key)
            if plan is None:
                self.fail(1, f"{record.batch_id} was committed before its plan")
            known.plan = decode(plan, Plan)

    def _shard(self, known: Known, key: str, new: ShardRecord, old: ShardRecord | None) -> None:
        where = "/".join(key.split("/")[1:])
        done = bitmaps.parse(new.done)
        if old is not None:
            if old.state in {"done", "closed"}:
                self.fail(3, f"{where} was {old.state} and is written again")
            is_question = new == replace(old, is_doubted=True)  # to its holder, whose next write goes over it
            if old.lease == new.lease and new.seq <= old.seq and not is_question:
                self.fail(2, f"{where} went back from seq {old.seq} to {new.seq}")
            if bitmaps.parse(old.done) & ~done:
                self.fail(5, f"{where}: committed work was dropped")
            if old.lease != new.lease and old.state == "leased" and len(old.bisect_set) == 1 and old.has_dispatched:
                self._crashes_alone[known.record.batch_id, old.n, old.bisect_set[0]] += 1
        self._check_parts(known, where, new)
        self._done_of_lease[new.lease] = done
        known.shards[key] = new

    def _check_parts(self, known: Known, where: str, new: ShardRecord) -> None:
        seen: dict[int, bytes] = {}
        for part in new.parts:
            lines = self._parts.get(part.key)
            if lines is None:
                data = self.store.peek(part.key)
                if data is None or hashlib.sha256(data).hexdigest() != part.sha256:
                    self.fail(1, f"{where} names the part {part.key}, which is not there")
                lines = self._parts[part.key] = {item.line: item.result for item in decode_part(data)}
            if seen.keys() & lines.keys():
                self.fail(1, f"{where}: a line is in two of its parts")
            seen.update(lines)
        if bitmaps.of(seen) != bitmaps.parse(new.done) or len(seen) != new.counts.finished:
            self.fail(2, f"{where}: its counts, its bitmap and its parts do not agree")
        for line, result in seen.items():
            if self._committed.setdefault((known.record.batch_id, new.n, line), result) != result:
                self.fail(5, f"{where}: the committed result of line {line} was replaced")

    # -- a batch ends

    def _ended(self, known: Known) -> None:
        """Every request has its one result, and the counts say so."""
        record, sent = known.record, known.sent
        if known.plan is None:
            self._ended_unplanned(known)
            return
        results = None if record.results is None else self.store.peek(record.results.key)
        errors = None if record.errors is None else self.store.peek(record.errors.key)
        if results is None or errors is None or hashlib.sha256(results).hexdigest() != record.results.sha256:  # type: ignore[union-attr]
            self.fail(1, f"{record.batch_id} ended without its results")
        rows = results.splitlines()
        if len(rows) != len(sent.lines):
            self.fail(1, f"{record.batch_id}: {len(rows)} results for {len(sent.lines)} requests")
        counts: Counter[str] = Counter()
        for number, row in enumerate(rows):
            counts[self._result(known, number, row)] += 1
        statuses = {status: counts[status] for status in ("succeeded", "errored", "canceled", "expired")}
        failures = [error for error in (decode_result(row).error for row in rows) if error is not None]
        rejected = sum(error.type == "invalid_request_error" for error in failures)
        if Counts(**statuses, rejected=rejected) != record.counts:
            self.fail(2, f"{record.batch_id}: the counts are {record.counts} and the results {dict(counts)}")
        failed = [line.raw for line, row in zip(sent.lines, rows, strict=True) if b'"status":"succeeded"' not in row]
        if errors.splitlines() != failed and not self._is_changed(known):  # what is gone cannot be copied
            self.fail(1, f"{record.batch_id}: its errors file is not the input lines that did not succeed")
        if sum(group.num_requests for group in record.failures) != len(failures):
            self.fail(2, f"{record.batch_id}: {len(failures)} requests failed, and the groups are {record.failures}")
        reasons = b"" if record.reasons is None else self.store.peek(record.reasons.key) or b""
        if [json.loads(row)["message"] for row in reasons.splitlines()] != [error.message for error in failures]:
            self.fail(1, f"{record.batch_id}: its reasons file does not say why {len(failures)} requests failed")
        known.results = results

    def _ended_unplanned(self, known: Known) -> None:
        record = known.record
        is_refusable = any(line.kind == "rejected" for line in known.sent.lines)
        version = self._version(known)
        is_killer = version is not None and version.kind == "killer"
        is_refusable = is_refusable or is_killer
        is_failed = record.reason == "failed" and not is_refusable and not self._may_be_poison(record.batch_id)
        is_unchanged = record.reason == "input_changed" and not self._is_changed(known)
        if record.results is not None or is_failed or is_unchanged:
            self.fail(1, f"{record.batch_id} was never planned, and ended as {record.reason} with {record.results}")
        known.results = b""

    def _may_be_poison(self, batch_id: str) -> bool:
        """Did three processes die while they planned it? Then nobody can tell whether it was the file."""
        found = self.store.peek(keys.planning_key(batch_id))
        return found is not None and decode(found, ShardRecord).crash_count >= pending.CRASHES_MAX

    def _result(self, known: Known, number: int, row: bytes) -> str:
        record, line, result = known.record, known.sent.lines[number], decode_result(row)
        what = f"{record.batch_id} line {number} ({line.kind})"
        n, place = self._place(known.plan, number)
        committed = self._committed.get((record.batch_id, n, place))
        if record.reason == "input_changed" and committed is None and line.kind != "rejected":
            if not self._is_changed(known) or result.error is None or result.error.type != "input_changed":
                self.fail(7, f"{what} ended as {result.error} in a batch whose input changed")
            return result.status
        # What did not run has no name any more where its file was taken out of the inbox.
        is_nameless = result.custom_id is None and committed is None and self._is_changed(known)
        if line.kind != "rejected" and result.custom_id != line.custom_id and not is_nameless:
            self.fail(1, f"{what}: the result is of {result.custom_id}")
        if committed is not None and committed != row and line.kind != "rejected":
            self.fail(5, f"{what}: the committed result was replaced")
        if result.status in {"canceled", "expired"}:
            if result.status != record.reason:
                self.fail(7, f"{what} is {result.status} in a batch that was {record.reason}")
            return result.status
        if committed is None and line.kind != "rejected":
            self.fail(1, f"{what}: {result.status} was never committed ({result.error})")
        error = None if result.error is None else result.error.type
        if error != self._error_wanted(known, number) and not self._may_be_blamed(known, number, error):
            self.fail(7, f"{what} ended as {result.error}")
        if error is None and (result.message is None or result.message.content[0].text != line.text):
            self.fail(1, f"{what}: the answer is not that of its request")
        return result.status

    def _error_wanted(self, known: Known, number: int) -> str | None:
        kinds = {
            "good": None,
            "bad": "invalid_request_error",
            "rejected": "invalid_request_error",
            "poison": "engine_crash",
            "killer": "runner_crash",
        }
        return kinds[known.sent.lines[number].kind]

    def _may_be_blamed(self, known: Known, number: int, error: str | None) -> bool:
        """Was it, alone, what its process was about to run at three deaths? Then nobody can tell."""
        n, place = self._place(known.plan, number)
        return error == "runner_crash" and self._crashes_alone[known.record.batch_id, n, place] >= CRASHES_OF_ONE_LINE

    @staticmethod
    def _place(plan: Plan | None, number: int) -> tuple[int, int]:
        for n, span in enumerate(plan.ranges if plan is not None else ()):
            if span.first <= number < span.first + span.num_lines:
                return n, number - span.first
        raise Broken(f"the plan has no line {number}")

    # -- what engines and clients see

    def started(self, process: Process, held: Lease, line: int, custom_id: str) -> None:
        """A request is given to an engine."""
        batch_id, lease = held.batch.batch_id, held.record.lease
        known = self.batches.get(batch_id)
        if known is None or known.plan is None:
            self.fail(4, f"{custom_id} starts, and its batch {batch_id} was never committed")
        number = known.plan.ranges[held.record.n].first + line
        if known.sent.lines[number].custom_id != custom_id:
            self.fail(1, f"{custom_id} starts as line {number} of {batch_id}")
        if self._done_of_lease.get(lease, 0) >> line & 1:
            self.fail(5, f"{custom_id} starts again, and its result was committed before its holder took it")
        self.starts[batch_id, custom_id] += 1
        if known.canceled_at is not None and process.disturbed_at < self.calm_since:
            since = max(known.canceled_at, self.calm_since)
            if self.world.now - since > CANCEL_S_MAX:
                self.fail(6, f"{custom_id} starts {self.world.now - since:.0f} s after the cancel")

    def created(self, sent: Sent, batch_id: str) -> None:
        """A create was answered with this batch."""
        known = self.batches.get(batch_id)
        if known is None:
            self.fail(4, f"the key {sent.key} was answered with {batch_id}, which was not committed")
        if known.sent is not sent:
            self.fail(4, f"the key {sent.key} was answered with the batch of another body")
        living = {other for other in sent.batch_ids if self.batches[other].record.state != "deleted"}
        if living - {batch_id}:
            self.fail(4, f"the key {sent.key} was answered with {living} and {batch_id}")
        sent.batch_ids.add(batch_id)

    def refused(self, sent: Sent, *, for_good: bool = True) -> None:
        """A create was answered with 4xx. `for_good`: because of its body."""
        sent.is_refused = for_good
        if any(known.sent is sent for known in self.batches.values()):
            self.fail(4, f"a create with the key {sent.key} was refused, and its batch exists")

    def seen(self, reader: str, batch_id: str, counts: Counts, total: int, *, has_ended: bool) -> None:
        """A status, as one client saw it through one process."""
        before = self._seen.get((reader, batch_id), Counts())
        pairs = [(getattr(before, name), getattr(counts, name)) for name in Counts.__slots__]
        if any(old > new for old, new in pairs):
            self.fail(2, f"{batch_id}: the counts went back from {before} to {counts} for {reader}")
        if counts.finished > total or (has_ended and counts.finished != total):
            self.fail(2, f"{batch_id}: {counts} do not add up to {total}")
        self._seen[reader, batch_id] = counts

    def read(self, batch_id: str, results: bytes) -> None:
        """Results of an ended batch, as a client got them."""
        if results != self.batches[batch_id].results:
            self.fail(3, f"{batch_id}: its results were read as other bytes than before")

    def read_live(self, batch_id: str, number: int, result: bytes) -> None:
        """One result, as a client got it before the end."""
        known = self.batches[batch_id]
        n, place = self._place(known.plan, number)
        is_final = known.results is not None and known.results.splitlines()[number] == result
        is_rejected = known.sent.lines[number].kind == "rejected"
        if self._committed.get((batch_id, n, place)) != result and not is_final and not is_rejected:
            self.fail(5, f"{batch_id} line {number}: a live result is none that was committed")

    # -- at the end

    def check_rest(self, *, is_quiet: bool) -> None:
        """After everything has ended. `is_quiet`: nothing went wrong, so nothing may have run twice."""
        for batch_id, known in self.batches.items():
            record = known.record
            if record.state not in {"ended", "deleted"}:
                self.fail(6, f"{batch_id} never ended; its shards are {self._states(known)}")
            results = None if record.results is None else self.store.peek(record.results.key)
            if record.state == "ended" and record.results is not None and results != known.results:
                self.fail(3, f"{batch_id}: its results are other bytes than when it ended")
            if record.state == "ended" and record.reason == "completed":
                self._check_starts(batch_id, known, is_quiet=is_quiet)
        if self.files is not None:
            results = {batch_id: known.results for batch_id, known in self.batches.items()}
            self.files.check_rest(results, is_quiet=is_quiet)
        if self.receiver is not None:
            records = {batch_id: known.record for batch_id, known in self.batches.items()}
            self.receiver.check(records)

    def is_told(self) -> bool:
        """Has the tenant's server heard of every batch that has ended and is there?"""
        if self.receiver is None:
            return True
        ended = [key for key, known in self.batches.items() if known.record.state == "ended" and not known.is_unwanted]
        return all(self.receiver.is_told(self.store, key) for key in ended)

    def _check_starts(self, batch_id: str, known: Known, *, is_quiet: bool) -> None:
        has_odd = any(line.kind in {"poison", "killer"} for other in self.batches.values() for line in other.sent.lines)
        for number, line in enumerate(known.sent.lines):
            num = self.starts[batch_id, line.custom_id or ""]
            if num == 0 and self._may_be_blamed(known, number, "runner_crash"):
                continue  # both deaths came after it was announced, and just before it started
            if line.kind == "good" and (num < 1 or (is_quiet and not has_odd and num > 1)):
                self.fail(1 if num < 1 else 5, f"{line.custom_id} of {batch_id} was started {num} times")

    def _states(self, known: Known) -> dict[str, str]:
        return {"/".join(key.split("/")[3:]): shard.state for key, shard in known.shards.items()}

    def fail(self, promise: int, what: str) -> NoReturn:
        error = Broken(f"promise {promise}: {what}")
        self.world.broken = self.world.broken or error
        self.world.say("", f"BROKEN {error}")
        raise error
