"""A spooled body into a committed batch. Synchronous: runs in a thread. Knows no route.

In this order, so that a create can be repeated at any point: what the body says of the whole is checked, the batch's id
is written down for whoever repeats the create, the requests are stored and planned in one pass, the batch is committed.
"""

import re
import secrets
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from batchfile.errors import InvalidFile, InvalidRequest, TooLarge
from batchfile.ledger import batches, idempotency
from batchfile.ledger.base import Ledger
from batchfile.ledger.idempotency import KeyedBatch
from batchfile.ledger.records import BatchRecord
from batchfile.lines.split_document import EXAMPLE, STAGE_EXAMPLE, iter_requests, read_document
from batchfile.plan.policy import Place, Policy, by_line, by_number
from batchfile.plan.submit import submit
from batchfile.routing import route
from batchfile.settings import Settings
from batchfile.types import Defaults, RoutingTable

from .http.errors import Refusal
from .http.spool import Spooled

CHUNK_BYTES = 256 * 1024
KEY_CHARS_MAX = 255
DEFAULTS = Defaults(max_tokens=2048, temperature=0.2, needs_answer=True)

# Of batches without a stage, which are Anthropic's Message Batches: what that API says.
MESSAGE_DEFAULTS = Defaults(temperature=1.0, needs_max_tokens=True)
MESSAGES_MAX = 100_000
CUSTOM_IDS = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
ID_LETTERS = string.digits + string.ascii_letters

LINE_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """What a native create may ask for beside its body. `priority`: 0 (first) to 9. `pool`: where all of it goes.

    Not `is_strict`: lines that can not run become errored results, and OpenAI's lines are taken too.
    """

    priority: int = 5
    metadata: dict[str, str] = field(default_factory=dict)
    is_strict: bool = True
    pool: str | None = None

    @property
    def digest(self) -> str:
        """Empty where nothing was asked for."""
        if self == CreateOptions():
            return ""
        pool = "" if self.pool is None else f" {self.pool}"
        return f"{self.priority} {self.is_strict} {sorted(self.metadata.items())}{pool}"

    def route(self, routing: RoutingTable) -> RoutingTable:
        """Raises: InvalidFile where there is no such pool."""
        if self.pool is None:
            return routing
        if self.pool not in routing.pools:
            pools = ", ".join(sorted(routing.pools))
            raise InvalidFile(f"pool: {self.pool[:80]!r} is unknown; use one of {pools}")
        return replace(routing, everything=self.pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """A body that was opened: JSONL in chunks, and how its user finds a request in it.

    `is_native`: whatever has no stage goes by our own rules, not by Anthropic's.
    """

    is_native: bool
    stage: str | None
    routing: RoutingTable
    chunks: Iterable[bytes]
    place: Place

    @property
    def is_messages(self) -> bool:
        return self.stage is None and not self.is_native

    def new_batch_id(self) -> str:
        if not self.is_messages:
            return f"batch_{secrets.token_hex(6)}"
        return "msgbatch_" + "".join(secrets.choice(ID_LETTERS) for _ in range(24))

    def defaults(self, settings: Settings) -> Defaults:
        if self.is_messages:
            return MESSAGE_DEFAULTS
        own = Defaults() if self.is_native else DEFAULTS  # of natively posted OpenAI lines: what OpenAI says
        return replace(own, output_schema=settings.schema_of(self.stage))

    def requests_max(self, settings: Settings) -> int:
        limit = settings.api.requests_max
        return min(limit, MESSAGES_MAX) if self.is_messages else limit


def create_batch(
    ledger: Ledger,
    settings: Settings,
    spooled: Spooled,
    *,
    content_type: str | None,
    stage_query: str | None,
    needs_stage: bool = True,
    tenant: str,
    idempotency_key: str | None,
    retry_count: int | None,
    arrived_at: float,
    full: Refusal | None = None,
    create_options: CreateOptions | None = None,
) -> BatchRecord:
    """The batch of a body: a new one, or for a repeated create the one that it made before.

    One without a stage, which `needs_stage` does not allow, goes by Anthropic's rules; lines that come with
    `create_options` need none and go by our own. `arrived_at`: when the request did, by the ledger's monotonic clock.
    `full`: why there can be no new one, if so.
    Raises: InvalidFile, of it RequestRefused and TooLarge; KeyReused; Refusal 415; `full`; StoreUnavailable (the same
    again completes it). After any but the last nothing was made.
    """
    upload = _open(spooled, content_type, stage_query, settings, needs_stage, is_native=create_options is not None)
    create_options = create_options or CreateOptions()
    routing = create_options.route(upload.routing)
    digest = f"{spooled.sha256} {upload.stage or ''}{create_options.digest}"
    if full is not None:
        made = made_before(ledger, digest, tenant, idempotency_key, retry_count)
        if made is None:
            raise full
        return made
    keyed = get_or_create(ledger, upload.new_batch_id(), digest, tenant, idempotency_key, retry_count, arrived_at)
    if not keyed.is_first:
        standing = batches.read_batch(ledger, keyed.batch_id)
        if standing is not None:
            return standing
    draft = batches.Draft(
        batch_id=keyed.batch_id,
        routing=routing,
        defaults=upload.defaults(settings),
        stage=upload.stage,
        tenant=tenant,
        created_at=keyed.created_at,
        priority=create_options.priority,
        metadata=create_options.metadata,
    )
    return submit(
        ledger,
        draft,
        upload.chunks,
        size=spooled.size,
        policy=Policy(
            on_problem="refuse" if create_options.is_strict else "reject",
            place=upload.place,
            requests_max=upload.requests_max(settings),
            custom_ids=CUSTOM_IDS if upload.is_messages else None,
        ),
        is_shared=keyed.is_shared,
    )


def get_or_create(
    ledger: Ledger,
    batch_id: str,
    digest: str,
    tenant: str,
    idempotency_key: str | None,
    retry_count: int | None,
    arrived_at: float,
) -> KeyedBatch:
    """The batch that a create makes, or made before. `digest`: of what was asked. Raises: InvalidFile, KeyReused."""
    if idempotency_key:
        if len(idempotency_key) > KEY_CHARS_MAX:
            raise InvalidFile(f"Idempotency-Key: is longer than {KEY_CHARS_MAX} characters; send a UUID, say")
        return idempotency.get_or_create(
            ledger, kind="key", tenant=tenant, value=idempotency_key, digest=digest, batch_id=batch_id
        )
    if retry_count is None:
        return KeyedBatch(batch_id=batch_id, created_at=ledger.clock.now())
    return idempotency.get_or_create_retry(
        ledger, tenant=tenant, digest=digest, batch_id=batch_id, is_retry=retry_count > 0, arrived_at=arrived_at
    )


def made_before(
    ledger: Ledger, digest: str, tenant: str, idempotency_key: str | None, retry_count: int | None
) -> BatchRecord | None:
    """The batch of an earlier create of the same, if it stands."""
    batch_id = None
    if idempotency_key:
        batch_id = idempotency.known(ledger, kind="key", tenant=tenant, value=idempotency_key, digest=digest)
    elif retry_count:
        batch_id = idempotency.known(ledger, kind="body", tenant=tenant, value=digest, digest=digest)
    return None if batch_id is None else batches.read_batch(ledger, batch_id)


def _open(
    spooled: Spooled,
    content_type: str | None,
    stage_query: str | None,
    settings: Settings,
    needs_stage: bool,
    *,
    is_native: bool,
) -> _Upload:
    routing = settings.routing()
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type in LINE_TYPES:
        stage = None
        if stage_query is not None or (needs_stage and not is_native):
            stage = _known_stage(routing, stage_query, "give it in the query, as ?stage=NAME, one of")
        chunks = _slices(spooled.view(), settings.api.requests_max)
        return _Upload(is_native=is_native, stage=stage, routing=routing, chunks=chunks, place=by_line)
    if media_type != "application/json" and not media_type.endswith("+json"):
        detail = f"Content-Type: {media_type[:80]!r} is not read here; send application/json or application/x-ndjson."
        raise Refusal(415, detail)
    example = STAGE_EXAMPLE if needs_stage else EXAMPLE
    if not spooled.size:
        raise InvalidFile(f"the body is empty; send an object such as {example}")
    document = read_document(spooled.view(), spooled.scratch(), example=example)
    if document.stage is None and stage_query is None and not needs_stage:
        if document.model_hint is not None:
            raise InvalidFile("model_hint: goes with a stage; name the model in the params of each request")
        chunks = iter_requests(document.requests)
        return _Upload(is_native=False, stage=None, routing=routing, chunks=chunks, place=by_number)
    stage = _known_stage(routing, document.stage or stage_query, "give one of")
    if stage_query not in {None, stage}:
        raise InvalidFile(f"stage: the body says {stage!r} and the query {stage_query!r}; say it once")
    if document.model_hint is not None:
        # The hint of the whole is where the stage leads for this batch: what a request says itself still comes first.
        routing = replace(routing, stages={stage: _pool_of(routing, document.model_hint)})
    chunks = iter_requests(document.requests)
    return _Upload(is_native=is_native, stage=stage, routing=routing, chunks=chunks, place=by_number)


def _known_stage(routing: RoutingTable, stage: str | None, how: str) -> str:
    names = ", ".join(sorted(routing.stages))
    if not stage:
        raise InvalidFile(f"stage: is missing; {how} {names}")
    if stage not in routing.stages:
        raise InvalidFile(f"stage: {stage[:80]!r} is not known; stages are {names}")
    return stage


def _pool_of(routing: RoutingTable, hint: str) -> str:
    try:
        return route(routing, stage=None, hint=hint, model=None)
    except InvalidRequest as error:
        raise InvalidFile(str(error).removeprefix("metadata.")) from None


def _slices(view: memoryview, lines_max: int) -> Iterator[bytes]:
    """Blank lines count here: hundreds of millions of them would keep a processor busy for nothing."""
    num_lines = 0
    for at in range(0, len(view), CHUNK_BYTES):
        chunk = bytes(view[at : at + CHUNK_BYTES])
        num_lines += chunk.count(b"\n")
        if num_lines > lines_max:
            raise TooLarge(f"there are more than {lines_max:,} lines; send them in several batches")
        yield chunk
