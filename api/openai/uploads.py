"""`/v1/uploads`, as OpenAI's clients use it: a file in parts."""

import asyncio
from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from batchfile.files import uploads
from batchfile.files.uploads import UploadRecord

from ..http.auth import Caller
from ..http.errors import Refusal
from ..http.forms import PART_FORM, received_form
from ..http.openapi import READ, problems
from ..native.schemas import OpenAIProblem
from ..service import Service
from . import schemas as shapes
from . import serializers as views
from .files import KEPT_S

UPLOADS = "/v1/uploads"
PART_BYTES_MAX = 64 * 1024 * 1024  # OpenAI's own
BODY_BYTES_MAX = 1024 * 1024


@post(
    UPLOADS,
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    responses=problems(READ, 400, 413, shape=OpenAIProblem),
    tags=["uploads"],
    summary="Begin a file that comes in parts",
)
async def create(
    data: JSONBody[shapes.CreateUpload], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> shapes.Upload:
    """It can be completed within an hour."""
    kept_s = KEPT_S if data.expires_after is None else float(data.expires_after.seconds)
    return views.upload(
        await asyncio.to_thread(
            lambda: uploads.begin(
                service.ledger,
                caller.tenant,
                filename=data.filename,
                mime_type=data.mime_type,
                purpose=data.purpose,
                size=data.bytes,
                file_kept_s=kept_s,
            )
        )
    )


@post(
    UPLOADS + "/{upload_id:str}/parts",
    status_code=200,
    request_max_body_size=None,  # the spool counts
    operation_class=PART_FORM,
    responses=problems(READ, 400, 408, 413, 415, shape=OpenAIProblem),
    tags=["uploads"],
    summary="Add a part",
)
async def add_part(
    request: Request[Any, Any, Any],
    upload_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
) -> shapes.UploadPart:
    """Parts may come in any order and at the same time."""
    upload = await asyncio.to_thread(_find, service, caller, upload_id)
    async with received_form(request, service, "data", PART_BYTES_MAX) as form:
        part_id = await asyncio.to_thread(
            lambda: uploads.add_part(service.ledger, upload, form.chunks(), bytes_max=PART_BYTES_MAX)
        )
    return shapes.UploadPart(id=part_id, created_at=int(service.ledger.clock.now()), upload_id=upload_id)


@post(
    UPLOADS + "/{upload_id:str}/complete",
    status_code=200,
    request_max_body_size=BODY_BYTES_MAX,
    responses=problems(READ, 400, 413, shape=OpenAIProblem),
    tags=["uploads"],
    summary="Make a file of the parts",
)
async def complete(
    data: JSONBody[shapes.CompleteUpload],
    upload_id: FromPath[str],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
) -> shapes.Upload:
    """In the order of `part_ids`. Their bytes must be as many as were announced, and fit `md5` where it is given."""

    def act() -> UploadRecord:
        upload = _find(service, caller, upload_id)
        return uploads.complete(service.ledger, upload, data.part_ids, md5=data.md5)

    return views.upload(await asyncio.to_thread(act))


@post(
    UPLOADS + "/{upload_id:str}/cancel",
    status_code=200,
    responses=problems(READ, 400, shape=OpenAIProblem),
    tags=["uploads"],
    summary="Give an upload up",
)
async def cancel(
    upload_id: FromPath[str], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> shapes.Upload:
    def act() -> UploadRecord:
        return uploads.cancel(service.ledger, _find(service, caller, upload_id))

    return views.upload(await asyncio.to_thread(act))


def _find(service: Service, caller: Caller, upload_id: str) -> UploadRecord:
    found = uploads.read_upload(service.ledger, caller.tenant, upload_id)
    if found is None:
        raise Refusal(404, f"No such Upload object: {upload_id[:80]}", param="id")
    return found
