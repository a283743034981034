"""Turns the body of a request into a committed batch: receives it on disk, then creates the batch in a thread.

The steps are in this order, so that a create can be repeated at any point: check the fields of the whole body, record
the batch's id under the idempotency key, store and plan the requests in one pass, commit the batch.
"""

import asyncio
import re
import secrets
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from batchfile.errors import InvalidFile, InvalidRequest, TooLarge
from batchfile.ledger.base import Ledger
from batchfile.ledger.idempotency import KeyedBatch
from batchfile.ledger.records import BatchRecord
from batchfile.lines.kinds import KIND_BYTES, detect, refusal
from batchfile.lines.split_document import EXAMPLE, STAGE_EXAMPLE, iter_requests, read_document
from batchfile.plan.options import CreateOptions
from batchfile.plan.policy import Place, by_line, by_number
from batchfile.plan.reuse_sources import reuse_for
from batchfile.plan.submit import create_once, made_before, submit
from batchfile.routing import route
from batchfile.settings import Settings
from batchfile.types import Defaults, RoutingTable

from .http.auth import Caller
from .http.errors import AnyRequest, Refusal
from .http.spool import Spooled, SpoolLimits, spool_body
from .service import Service

CHUNK_BYTES = 256 * 1024
STAGE_DEFAULTS = Defaults(max_tokens=2048, temperature=0.2, needs_answer=True)

# For batches without a stage, which are Anthropic's Message Batches: the limits of that API.
MESSAGE_DEFAULTS = Defaults(temperature=1.0, needs_max_tokens=True)
MESSAGES_MAX = 100_000
CUSTOM_IDS = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
ID_LETTERS = string.digits + string.ascii_letters

RETRY_COUNT = "x-stainless-retry-count"  # the official SDKs number their attempts from 0
NUMBER = re.compile(r"[0-9]{1,9}")
LINE_EXAMPLE = '{"custom_id": "a", "params": {...}}'
LINE_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}

# Which rules apply to a body: native; stage, where a batch has a stage; Anthropic's, where it has none.
Contract = Literal["native", "stage", "anthropic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """An opened body: JSONL in chunks, the stage of all requests, and how errors name the place of a request.

    `adapter`: of requests that name no model, if the batch's hint is one.
    """

    stage: str | None
    routing: RoutingTable
    chunks: Iterable[bytes]
    place: Place
    adapter: str | None = None


def create_options(request: AnyRequest, service: Service, caller: Caller, **asked: Any) -> CreateOptions:
    """The options of a create: `asked` from the query or body, the rest from the headers. Call it on arrival."""
    return CreateOptions(
        tenant=caller.tenant,
        idempotency_key=request.headers.get("idempotency-key"),
        retry_count=_retry_count(request),
        arrived_at=service.ledger.clock.monotonic(),
        **asked,
    )


async def create_from(
    request: AnyRequest, service: Service, caller: Caller, options: CreateOptions, contract: Contract
) -> BatchRecord:
    """Raises: exceptions that `api.http.errors` maps to responses."""
    headers = request.headers
    full = None
    try:
        await asyncio.to_thread(service.check_room, caller)
    except Refusal as refusal:
        if not options.idempotency_key and not options.retry_count:
            raise
        full = refusal  # it may repeat the create of an existing batch
    async with spool_body(request, SpoolLimits.of(service.settings.api)) as spooled, service.creating:
        return await asyncio.to_thread(
            lambda: create_batch(
                service.ledger,
                service.settings,
                spooled,
                options,
                content_type=headers.get("content-type"),
                contract=contract,
                full=full,
            )
        )


def create_batch(
    ledger: Ledger,
    settings: Settings,
    spooled: Spooled,
    options: CreateOptions,
    *,
    content_type: str | None,
    contract: Contract = "stage",
    full: Refusal | None = None,
) -> BatchRecord:
    """The batch of a body: a new one, or for a repeated create the existing one.

    `full`: why no new batch can be created, if so.
    Raises: InvalidFile with its subclasses RequestRefused and TooLarge; NotFound, of a batch to reuse; KeyReused;
    Refusal 415; `full`; StoreUnavailable (repeating the create completes it). After any error but the last, no batch
    exists.
    """
    upload = _open(spooled, content_type, options, settings, contract)
    options = replace(options, stage=upload.stage)
    routing = options.route(upload.routing)
    digest = f"{spooled.sha256} {options.stage or ''}{options.digest}"
    if full is not None:
        made = made_before(ledger, options, digest)
        if made is None:
            raise full
        return made
    if options.reuse is not None and (made := made_before(ledger, options, digest)) is not None:
        return made  # what it has reused may have expired since
    reuse = reuse_for(ledger, options)
    is_messages = contract == "anthropic" and options.stage is None
    own = Defaults() if contract == "native" else MESSAGE_DEFAULTS if is_messages else STAGE_DEFAULTS
    limit = settings.api.requests_max
    policy = options.policy(
        place=upload.place,
        requests_max=min(limit, MESSAGES_MAX) if is_messages else limit,
        custom_ids=CUSTOM_IDS if is_messages else None,
    )

    def make(keyed: KeyedBatch) -> BatchRecord:
        defaults = replace(own, output_schema=settings.schema_of(options.stage), model=upload.adapter)
        draft = options.draft(keyed.batch_id, keyed.created_at, routing, defaults)
        return submit(
            ledger, draft, upload.chunks, size=spooled.size, policy=policy, is_shared=keyed.is_shared, reuse=reuse
        )

    return create_once(ledger, options, digest, _new_message_id() if is_messages else _new_id(), make)


def _new_id() -> str:
    return f"batch_{secrets.token_hex(6)}"


def _new_message_id() -> str:
    return "msgbatch_" + "".join(secrets.choice(ID_LETTERS) for _ in range(24))


def _open(
    spooled: Spooled, content_type: str | None, options: CreateOptions, settings: Settings, contract: Contract
) -> _Upload:
    routing, stage = settings.routing(), options.stage
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type in LINE_TYPES:
        if stage is not None or contract == "stage":
            stage = _known_stage(routing, stage, "add ?stage=NAME to the URL, with one of")
        _check_kind(spooled.view(), "the body", is_lines=True)
        chunks = _slices(spooled.view(), settings.api.requests_max)
        return _Upload(stage=stage, routing=routing, chunks=chunks, place=by_line)
    if media_type != "application/json" and not media_type.endswith("+json"):
        detail = f"Content-Type: {media_type[:80]!r} is not supported; send application/json or application/x-ndjson."
        raise Refusal(415, detail)
    example = EXAMPLE if contract == "anthropic" else STAGE_EXAMPLE
    if not spooled.size:
        raise InvalidFile(f"the body is empty; send an object such as {example}")
    document = read_document(spooled.view(), spooled.scratch(), example=example)
    if not options.is_strict:  # else the first request is rejected, by its place
        _check_kind(document.requests, "requests")
    chunks = iter_requests(document.requests)
    if document.stage is None and stage is None and contract == "anthropic":
        if document.model_hint is not None:
            raise InvalidFile("model_hint: works only with a stage; set params.model in each request instead")
        return _Upload(stage=None, routing=routing, chunks=chunks, place=by_number)
    found = _known_stage(routing, document.stage or stage, "use one of")
    if stage not in {None, found}:
        raise InvalidFile(f"stage: is {found!r} in the body and {stage!r} in the query; send only one of them")
    hint = document.model_hint
    adapter = hint if hint in routing.adapters else None
    if hint is not None:
        # The batch's hint replaces the pool of its stage; a request's own hint still takes precedence.
        routing = replace(routing, stages={found: _pool_of(routing, hint)})
    return _Upload(stage=found, routing=routing, chunks=chunks, place=by_number, adapter=adapter)


def _check_kind(data: memoryview, name: str, *, is_lines: bool = False) -> None:
    """Raises: InvalidFile that says what `data` is, if none of its first items is a request, or no line should be."""
    kind = detect("", bytes(data[:KIND_BYTES]))
    if kind.is_ready and not (is_lines and kind.is_array):
        return
    what_to_send = f"; or send one request on each line, such as {LINE_EXAMPLE}" if kind.content == "rows" else ""
    raise InvalidFile(refusal(kind, "FILE", name) + what_to_send)


def _known_stage(routing: RoutingTable, stage: str | None, how: str) -> str:
    names = ", ".join(sorted(routing.stages))
    if not stage:
        raise InvalidFile(f"stage: is missing; {how} {names}")
    if stage not in routing.stages:
        raise InvalidFile(f"stage: {stage[:80]!r} is unknown; use one of {names}")
    return stage


def _pool_of(routing: RoutingTable, hint: str) -> str:
    try:
        return route(routing, stage=None, hint=hint, model=None)
    except InvalidRequest as error:
        raise InvalidFile(str(error).removeprefix("metadata.")) from None


def _slices(view: memoryview, lines_max: int) -> Iterator[bytes]:
    """Blank lines count, because hundreds of millions of them would waste CPU time."""
    num_lines = 0
    for at in range(0, len(view), CHUNK_BYTES):
        chunk = bytes(view[at : at + CHUNK_BYTES])
        num_lines += chunk.count(b"\n")
        if num_lines > lines_max:
            raise TooLarge(f"the body has more than {lines_max:,} lines; send them in several batches")
        yield chunk


def _retry_count(request: AnyRequest) -> int | None:
    """The attempt of an official SDK, from 0; None for other clients."""
    given = request.headers.get(RETRY_COUNT, "")
    return int(given) if NUMBER.fullmatch(given) else None
