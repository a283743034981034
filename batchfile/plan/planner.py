"""Reads the input once, counts its lines and cuts it into ranges; a policy decides about lines that cannot run.

Rejected lines get their results at once, as parts of the pseudo-pool `_rejected`. Memory: 8 bytes a line to find
duplicates, one range, and the finished cuts.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace

from batchfile.errors import InvalidFile, InvalidRequest, ObjectMissing, RequestRefused, StoreError, TooLarge
from batchfile.ledger import bitmaps, born_done, keys, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.inputs import CustomIdsWriter
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import InputRef, LineError, PartRef, Plan, Range, encode
from batchfile.lines.diagnostics import short
from batchfile.lines.envelope import Envelope, custom_id_of, decode_envelope
from batchfile.lines.failures import merged, tally_of
from batchfile.lines.framing import NO_REQUEST, Line, iter_lines
from batchfile.lines.parse import kind_of
from batchfile.lines.result import FinishedLine, encode_result
from batchfile.lines.validate import DuplicateFinder
from batchfile.plan.hash_file import HashFileWriter, hash_file
from batchfile.plan.policy import PROBLEMS_MAX, REFUSE, REJECT, LinesRefused, Policy, by_line, line_error, located
from batchfile.plan.ranges import RANGE_BYTES_MAX, RANGE_LINES_MIN, Cut, Span, range_lines
from batchfile.plan.request_hash import DigestOf
from batchfile.plan.reuse import NewBatch, Reuse, ReuseOutcome, notes_sampled, reuse_results
from batchfile.routing import check_endpoint, route
from batchfile.store.base import Writer
from batchfile.types import LINE_BYTES_MAX, Defaults, Failure, InputFormat, RoutingTable

SAMPLE_BYTES = 1024 * 1024  # the first lines of a file show how long its lines are


def plan_input(
    ledger: Ledger,
    batch_id: str,
    input_key: str,
    *,
    routing: RoutingTable,
    stage: str | None = None,
    policy: Policy = REJECT,
    lines_per_range: int | None = None,
    beat: Callable[[], None] = lambda: None,
    name: str = "the file",
    keeps_ids: bool = False,
    defaults: Defaults | None = None,
    reuse: Reuse | None = None,
    digest_of: DigestOf | None = None,
) -> Planned:
    """Plan the object `input_key`, called `name` in messages. `lines_per_range` None: use `range_lines`.

    `keeps_ids`: store the custom_ids next to it, because the object is not the store's own and may change. `defaults`:
    of the batch; without them, no later batch can reuse its results, and it reuses none itself. `reuse`: results that
    need not be generated again; sources that cannot be used are named in `Planned.reuse_note`, and never fail the plan.
    `digest_of`: of files that requests name; without it, such requests are never reused.
    `beat` is called every MiB or so. Raises: InvalidFile (no request, too many, rejected by the policy), ObjectChanged,
    ObjectMissing.
    """
    entry = ledger.store.head(input_key)
    if entry is None:
        raise ObjectMissing(f"{input_key} is not in the store")
    with (
        CustomIdsWriter(ledger, batch_id) if keeps_ids else nullcontext() as ids,
        hash_file(ledger, batch_id, stage, defaults, digest_of, notes_sampled=notes_sampled(reuse)) as hashes,
    ):
        planner = _Planner(
            ledger, batch_id, routing, stage, policy, beat, hashes, reuse, lines_per_range=lines_per_range, ids=ids
        )
        cuts = planner.read(ledger.store.stream(input_key, match=entry.etag), entry.size)
        if not planner.total:
            raise InvalidFile(f"{name} {NO_REQUEST}")
        return planner.finish(cuts, input_key, entry.etag)


def plan_upload(
    ledger: Ledger,
    batch_id: str,
    chunks: Iterable[bytes],
    *,
    size: int,
    routing: RoutingTable,
    stage: str | None = None,
    policy: Policy = REFUSE,
    beat: Callable[[], None] = lambda: None,
    defaults: Defaults | None = None,
    reuse: Reuse | None = None,
) -> Planned:
    """Store JSONL as the input of a batch and plan it in the same pass. `size`: its approximate size in bytes.

    A policy that refuses accepts only lines with `params`, and nothing of a rejected upload is kept. It judges
    envelopes: if only a request's own `model` leads to no pool, that line alone is rejected.
    `beat` is called with every chunk, and when the input is read again. `defaults`, `reuse`: as in `plan_input`.
    Raises: RequestRefused, which names the place of the first invalid request; InvalidFile (no request); TooLarge.
    """
    with hash_file(ledger, batch_id, stage, defaults, notes_sampled=notes_sampled(reuse)) as hashes:
        planner = _Planner(ledger, batch_id, routing, stage, policy, beat, hashes, reuse)
        key = keys.input_key(batch_id, ledger.new_id()[:12])
        with ledger.store.writer(key, is_new=True) as writer:
            cuts = planner.read(chunks, size, writer)
            if not planner.total:
                is_lines = policy.place is by_line
                raise InvalidFile(
                    f"the input {NO_REQUEST}" if is_lines else "requests: is empty; send at least one request"
                )
            etag = writer.commit()
        try:
            return planner.finish(cuts, key, etag)
        except InvalidFile:
            with suppress(StoreError):
                ledger.store.delete(key)
            raise


class _Planner:
    """One pass over the lines, and a second only if a custom_id seems to be used twice.

    `beat` is called with each chunk that is read and each object that is written. `hashes` gets each request, `ids`
    the custom_id of each line.
    """

    def __init__(
        self,
        ledger: Ledger,
        batch_id: str,
        routing: RoutingTable,
        stage: str | None,
        policy: Policy,
        beat: Callable[[], None],
        hashes: HashFileWriter | None,
        reuse: Reuse | None,
        *,
        lines_per_range: int | None = None,
        ids: CustomIdsWriter | None = None,
    ) -> None:
        self.total = 0
        self._ledger = ledger
        self._batch_id = batch_id
        self._routing = routing
        self._stage = stage
        self._policy = policy
        self._place = policy.place if policy.on_problem == "refuse" else by_line
        self._beat = beat
        self._hashes = hashes
        self._reuse = reuse
        self._lines_per_range = lines_per_range
        self._ids = ids
        self._size = 0
        self._digest = hashlib.sha256()
        self._first: InputFormat | None = None
        self._num_rejected = 0
        self._num_hints = 0
        self._first_problem: str | None = None
        self._problems: list[LineError] = []  # the first of those collected; with any, the plan is discarded
        self._num_problems = 0
        self._duplicates = DuplicateFinder()
        self._pools: dict[str | None, str] = {}  # the pool of each hint, for this stage
        self._lease = ledger.new_id()
        self._num_parts = 0

    def read(self, chunks: Iterable[bytes], size: int, writer: Writer | None = None) -> list[Cut]:
        """The ranges. `size`: of all chunks, approximately. The chunks are also written to `writer`."""
        cuts: list[Cut] = []
        span: Span | None = None
        wanted = self._lines_per_range or RANGE_LINES_MIN
        for line in iter_lines(self._taken(chunks, writer)):
            if span is None:
                span = Span(line.start, self.total, line.row)
            self._add(line, span)
            if line.end <= SAMPLE_BYTES and self._lines_per_range is None:
                wanted = range_lines(
                    size, self.total, line.end, reuses=self._reuse is not None and bool(self._reuse.sources)
                )
            if span.num_lines >= wanted or line.end - span.start >= RANGE_BYTES_MAX:
                cuts.append(self._cut(span, line.end))
                span = None
            if self.total > self._policy.requests_max:
                limit = self._policy.requests_max
                self._raise_problems()
                raise TooLarge(f"more than {limit:,} requests; split them into several batches")
        if span is not None:
            cuts.append(self._cut(span, line.end))
        return cuts

    def finish(self, cuts: list[Cut], key: str, etag: str) -> Planned:
        """Store the plan of an input that was read. `key`, `etag`: of the object with its bytes.

        Raises: LinesRefused, RequestRefused; what `reuse_results` does.
        """
        self._raise_problems()
        suspects = self._duplicates.suspects()
        if suspects:
            lines = iter_lines(self._beating(self._ledger.store.stream(key, match=etag)))
            first_place: dict[str, str] = {}
            cuts = [self._reject_in(cut, lines, suspects, first_place) for cut in cuts]
            self._raise_problems()
        found = self._first or "native"
        pinned = InputRef(key=key, etag=etag, size=self._size, sha256=self._digest.hexdigest(), format=found)
        outcome = ReuseOutcome(cuts)
        if self._hashes is not None:
            batch = NewBatch(
                ledger=self._ledger,
                batch_id=self._batch_id,
                pool_of=self._pool_of,
                cuts=cuts,
                input=pinned,
                hashes=self._hashes.commit(),
                is_excluded=self._hashes.is_sampled or bytearray(self.total),
                beat=self._beat,
                hasher=self._hashes.hasher,
            )
            outcome = reuse_results(batch, self._reuse)
        return self._publish(outcome, pinned)

    def _beating(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._beat()
            yield chunk

    def _taken(self, chunks: Iterable[bytes], writer: Writer | None) -> Iterator[bytes]:
        for chunk in self._beating(chunks):
            self._digest.update(chunk)
            if writer is not None:
                writer.write(chunk)
            self._size += len(chunk)
            yield chunk

    def _add(self, line: Line, span: Span) -> None:
        """Count the line for its pool, or handle its problem."""
        custom_id = None
        is_inside = False  # a problem inside params never rejects the whole input
        try:
            if line.data is None:
                custom_id = custom_id_of(line.head)
                raise InvalidRequest(f"the line is longer than {LINE_BYTES_MAX // 2**20} MiB; shorten the request")
            envelope = decode_envelope(line.data, self._policy.expected_format)
            custom_id, hint = envelope.custom_id, envelope.hint
            self._first = self._first or envelope.format
            self._policy.check(envelope, self._first)
            self._duplicates.add(custom_id)
            if hint is not None:
                self._num_hints += 1
            is_inside = hint is None and self._stage is None
            pool = self._pool_of(envelope)
            check_endpoint(self._routing, pool, kind_of(envelope, self._policy.endpoint))
            span.pools[pool] = span.pools.get(pool, 0) + 1
            if self._hashes is not None:
                self._hashes.add(envelope, pool, hint if hint in self._routing.adapters else None)
        except InvalidRequest as error:
            if custom_id is None:
                custom_id = getattr(error, "custom_id", None)
            if self._hashes is not None:
                self._hashes.skip()
            if self._is_to_reject(self.total, line.row, error, is_inside=is_inside):
                span.rejected.append(self._reject(span.num_lines, line.row, custom_id, error))
        if self._ids is not None:
            span.ids.append(custom_id)
        span.num_lines += 1
        self.total += 1

    def _pool_of(self, envelope: Envelope) -> str:
        """Raises: InvalidRequest if no pool matches."""
        if self._routing.everything is not None:
            return self._routing.everything
        hint = envelope.hint
        if self._stage is None and hint is None:
            return route(self._routing, stage=None, hint=None, model=envelope.model)
        pool = self._pools.get(hint)
        if pool is None:
            pool = self._pools[hint] = route(self._routing, stage=self._stage, hint=hint, model=None)
        return pool

    def _is_to_reject(self, number: int, row: int, error: InvalidRequest, *, is_inside: bool = False) -> bool:
        """Does the policy reject only this line? Raises: RequestRefused."""
        if self._policy.on_problem == "collect":
            self._num_problems += 1
            if len(self._problems) < PROBLEMS_MAX:
                self._problems.append(line_error(row, error))
            return False
        if self._policy.on_problem == "refuse" and not is_inside:
            raise RequestRefused(located(self._place(number, row), str(error)), number) from None
        return True

    def _raise_problems(self) -> None:
        if self._problems:
            raise LinesRefused(tuple(self._problems), self._num_problems)

    def _reject(self, line: int, row: int, custom_id: str | None, error: InvalidRequest) -> FinishedLine:
        message = located(by_line(0, row), str(error))
        self._num_rejected += 1
        self._first_problem = self._first_problem or message
        # Posted requests have no line numbers, and each has a custom_id.
        known_by = row if custom_id is None else None
        shown = str(error) if self._policy.on_problem == "refuse" else message
        result = encode_result(custom_id, Failure(type=error.type, message=shown), "", line=known_by)
        return FinishedLine(line, "errored", result)

    def _cut(self, span: Span, end: int) -> Cut:
        if self._ids is not None:
            self._ids.write(span.ids)
        made = Range(
            start=span.start,
            end=end,
            first=span.first,
            first_row=span.first_row,
            num_lines=span.num_lines,
            rejected=bitmaps.render(bitmaps.of(item.line for item in span.rejected)),
        )
        failures = tally_of(span.rejected, span.first_row).top()
        return Cut(made, span.pools, *self._store(span.first, span.rejected), failures)

    def _store(self, first: int, rejected: list[FinishedLine]) -> tuple[list[PartRef], list[FinishedLine]]:
        """Store these lines as parts; returns what stays in memory to count them."""
        if not rejected:
            return [], []
        self._beat()
        self._num_parts += 1
        key = keys.part_key(self._batch_id, keys.REJECTED_POOL, first, self._lease, self._num_parts)
        stripped = [FinishedLine(item.line, item.status, b"", item.usage) for item in rejected]
        return [shards.write_part(self._ledger, key, rejected)], stripped

    def _reject_in(self, cut: Cut, lines: Iterator[Line], suspects: set[int], first_place: dict[str, str]) -> Cut:
        """Reject the second and later uses of a custom_id, or the whole input."""
        known = bitmaps.parse(cut.range.rejected)
        pools, duplicates = dict(cut.pools), list[FinishedLine]()
        for place_in_range in range(cut.range.num_lines):
            line = next(lines)
            is_rejected = known >> place_in_range & 1 and self._policy.on_problem == "reject"
            if is_rejected or line.data is None:
                continue
            envelope = decode_envelope(line.data)
            custom_id = envelope.custom_id
            if not self._duplicates.is_suspect(custom_id, suspects):
                continue
            number = cut.range.first + place_in_range
            if custom_id not in first_place:
                first_place[custom_id] = self._place(number, line.row)
                continue
            first = first_place[custom_id]
            by = "by" if first[-1] == "]" else "on"
            error = InvalidRequest(
                f"{self._policy.id_name}: {short(custom_id)!r} was used {by} {first}; make it unique"
            )
            if self._is_to_reject(number, line.row, error):
                duplicates.append(self._reject(place_in_range, line.row, custom_id, error))
                pools[self._pool_of(envelope)] -= 1
        if not duplicates:
            return cut
        rejected = bitmaps.render(known | bitmaps.of(item.line for item in duplicates))
        parts, stripped = self._store(cut.range.first, duplicates)
        failures = merged(cut.failures, tally_of(duplicates, cut.range.first_row).top())
        span = replace(cut.range, rejected=rejected)
        return Cut(span, pools, [*cut.parts, *parts], [*cut.rejected, *stripped], failures)

    def _publish(self, outcome: ReuseOutcome, pinned: InputRef) -> Planned:
        """Store the plan, the ids if they are kept, and the records of the rejected lines."""
        cuts = outcome.cuts
        pools: dict[str, dict[int, int]] = {}
        for n, cut in enumerate(cuts):
            for pool, num_lines in cut.pools.items():
                if num_lines:
                    pools.setdefault(pool, {})[n] = num_lines
            if cut.rejected:
                pools.setdefault(keys.REJECTED_POOL, {})[n] = len(cut.rejected)

        def put_done(n: int) -> None:
            cut, pool = cuts[n], keys.REJECTED_POOL
            done = bitmaps.of(item.line for item in cut.rejected)
            born_done.put_done(
                self._ledger, self._batch_id, pool, n, cut.range, cut.parts, done, "errored", cut.failures
            )

        for _ in in_order(self._ledger, put_done, pools.get(keys.REJECTED_POOL, {})):
            self._beat()
        ids = None if self._ids is None else self._ids.commit()
        plan = Plan(ranges=tuple(cut.range for cut in cuts), pools=pools, ids=ids, hashes=outcome.hashes)
        plan_key = keys.plan_key(self._batch_id, self._ledger.new_id()[:12])
        self._ledger.store.put(plan_key, encode(plan))
        return Planned(
            input=pinned,
            plan=plan,
            plan_key=plan_key,
            total=self.total,
            num_rejected=self._num_rejected,
            first_problem=self._first_problem,
            num_hints=self._num_hints,
            num_reused=sum(pools.get(keys.REUSED_POOL, {}).values()),
            reused_from=outcome.num_from,
            num_equal=outcome.num_equal,
            num_unhashed=outcome.num_unhashed,
            num_by_url=0 if self._hashes is None else self._hashes.hasher.num_by_url,
            unusable=outcome.unusable,
            fingerprints=outcome.fingerprints,
            reuse_note=outcome.note,
        )
