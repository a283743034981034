"""`/v1/batches` in OpenAI's API format: batches of uploaded files."""

import asyncio
import hashlib
import re
import secrets
from dataclasses import replace
from typing import Annotated

from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from batchfile.endpoints import tasks_for
from batchfile.files import stored_files
from batchfile.files.stored_files import file_input, source
from batchfile.ledger.idempotency import KeyedBatch
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.status import BatchSnapshot
from batchfile.lines.parse import kind_of_url, why_unserved
from batchfile.plan import pending
from batchfile.plan.options import CreateOptions
from batchfile.plan.reuse_sources import reuse_for, with_reuse
from batchfile.plan.submit import create_once, made_before
from batchfile.routing import pools_for
from batchfile.types import Defaults, RoutingTable

from ..create import create_options
from ..http.auth import Caller
from ..http.errors import AnyRequest, Refusal, not_found
from ..http.negotiation import OpenAIProblem
from ..http.routes import CallerDep, Routes
from ..ops.background import BackgroundTasks
from ..service import Service, ServiceDep, Shown
from . import schemas

BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")
OF_FILES = Shown(ids_like=BATCH_ID, has=lambda found: file_input(found.batch) is not None)
BODY_BYTES_MAX = 1024 * 1024
OTHER_NAME = f"must be one of {', '.join(schemas.ENDPOINTS)}"  # for a path with a server, or the like

batches = Routes("/v1/batches", tag="openai batches", problem=OpenAIProblem)


@batches.post("", 400, 413, 422, summary="Create a batch from a file", request_max_body_size=BODY_BYTES_MAX)
async def create(
    data: JSONBody[schemas.CreateBatch],
    request: AnyRequest,
    service: ServiceDep,
    background: NamedDependency[BackgroundTasks],
    caller: CallerDep,
) -> schemas.Batch:
    """The file is validated after the response: if it is invalid, the batch becomes `failed` with the reasons."""
    _check_endpoint(service.settings.routing(), data.endpoint)
    if "reuse" in request.query_params:
        raise Refusal(400, "reuse: send it in the body, next to input_file_id", param="reuse")
    options = create_options(request, service, caller, metadata=data.metadata or {}, reuse=data.reuse)

    def act() -> schemas.Batch:
        batch_id = _create(service, caller, data, options)
        background.wake(batch_id)
        return schemas.batch_of(service.read(caller, batch_id))

    return await asyncio.to_thread(act)


@batches.get("", 400, summary="List batches created from files")
def list_batches(
    service: ServiceDep,
    caller: CallerDep,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    after: Annotated[str | None, QueryParameter(description="The last id of the previous page.")] = None,
) -> schemas.BatchPage:
    """Newest first."""
    page = service.page(caller, limit=limit, after=after, shown=OF_FILES)
    data = [schemas.batch_of(status) for status in page.data]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return schemas.BatchPage(data=data, first_id=first, last_id=last, has_more=page.has_more)


@batches.get("/{batch_id:str}", summary="Get a batch")
def status(batch_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> schemas.Batch:
    return schemas.batch_of(_status(service, caller, batch_id))


@batches.post("/{batch_id:str}/cancel", 400, summary="Cancel a batch")
def cancel(
    batch_id: FromPath[str], service: ServiceDep, background: NamedDependency[BackgroundTasks], caller: CallerDep
) -> schemas.Batch:
    """Finished requests keep their results; the others are in the error file."""
    before = _status(service, caller, batch_id)
    if before.batch.state == "ended" and before.is_known:
        raise Refusal(400, f"Cannot cancel a batch with status '{schemas.batch_of(before).status}'.")
    after = service.cancel(caller, batch_id)
    background.wake(batch_id)
    return schemas.batch_of(after)


def _create(service: Service, caller: Caller, data: schemas.CreateBatch, options: CreateOptions) -> str:
    """The id of the batch: a new one, or for a repeated create the existing one."""
    ledger, settings = service.ledger, service.settings
    without = {"reuse"} if data.reuse is None else None  # so that an older version made the same digest
    digest = hashlib.sha256(data.model_dump_json(exclude=without).encode()).hexdigest()
    made = made_before(ledger, options, digest)
    if made is not None:
        return made.batch_id
    service.check_room(caller)
    file = stored_files.read_file(ledger, caller.tenant, data.input_file_id)
    if file is None:
        detail = f"input_file_id: file {data.input_file_id[:80]!r} not found; upload it with purpose 'batch' first"
        raise Refusal(400, detail, param="input_file_id")
    reuse = reuse_for(ledger, options)

    def make(keyed: KeyedBatch) -> BatchRecord:
        made_of = source(
            ledger,
            file,
            endpoint=data.endpoint,
            requests_max=settings.api.requests_max,
            kept_s=None if data.output_expires_after is None else float(data.output_expires_after.seconds),
        )
        draft = options.draft(keyed.batch_id, keyed.created_at, settings.routing(), Defaults(url=data.endpoint))
        return pending.create(ledger, draft, replace(made_of, rules=with_reuse(made_of.rules, reuse)))

    return create_once(ledger, options, digest, f"batch_{secrets.token_hex(16)}", make).batch_id


def _check_endpoint(routing: RoutingTable, endpoint: str) -> None:
    """Raises: Refusal where it is unknown, or the model of no pool serves it."""
    if endpoint not in schemas.ENDPOINTS:
        raise Refusal(400, f"endpoint: {why_unserved(endpoint) or OTHER_NAME}", param="endpoint")
    kind = kind_of_url(endpoint)
    if kind is not None and not pools_for(routing, kind):
        needed = f"it needs a pool with task = {tasks_for(kind)}, or with an endpoint that serves it"
        raise Refusal(400, f"endpoint: no pool of this service serves {endpoint}; {needed}", param="endpoint")


def _status(service: Service, caller: Caller, batch_id: str) -> BatchSnapshot:
    if not BATCH_ID.fullmatch(batch_id):
        raise not_found()
    found = service.look(caller, batch_id)
    if file_input(found.batch) is None:
        raise not_found()
    return found
