"""`/v1/uploads` in OpenAI's API format: uploads of a file in parts."""

import asyncio

from litestar.params import FromPath, JSONBody

from batchfile.files import uploads as stored_uploads
from batchfile.files.uploads import UploadRecord

from ..http.auth import Caller
from ..http.errors import AnyRequest, Refusal
from ..http.forms import PART_FORM, received_form
from ..http.negotiation import OpenAIProblem
from ..http.routes import CallerDep, Routes
from ..service import Service, ServiceDep
from . import schemas
from .files import KEPT_S

PART_BYTES_MAX = 64 * 1024 * 1024  # OpenAI's limit
BODY_BYTES_MAX = 1024 * 1024

uploads = Routes("/v1/uploads", tag="uploads", problem=OpenAIProblem)


@uploads.post("", 400, 413, summary="Create an upload", request_max_body_size=BODY_BYTES_MAX)
def create(data: JSONBody[schemas.CreateUpload], service: ServiceDep, caller: CallerDep) -> schemas.Upload:
    """An upload expires after one hour."""
    upload = stored_uploads.begin(
        service.ledger,
        caller.tenant,
        filename=data.filename,
        mime_type=data.mime_type,
        purpose=data.purpose,
        size=data.bytes,
        file_kept_s=KEPT_S if data.expires_after is None else float(data.expires_after.seconds),
    )
    return schemas.upload_of(upload)


@uploads.post(
    "/{upload_id:str}/parts",
    *(400, 408, 413, 415),
    summary="Add a part",
    request_max_body_size=None,
    operation_class=PART_FORM,
)
async def add_part(
    request: AnyRequest, upload_id: FromPath[str], service: ServiceDep, caller: CallerDep
) -> schemas.UploadPart:
    """Parts may be sent in any order and concurrently."""
    upload = await asyncio.to_thread(_find, service, caller, upload_id)
    async with received_form(request, service.settings.api, "data", PART_BYTES_MAX) as form:
        part_id = await asyncio.to_thread(
            lambda: stored_uploads.add_part(service.ledger, upload, form.chunks(), bytes_max=PART_BYTES_MAX)
        )
    return schemas.UploadPart(id=part_id, created_at=int(service.ledger.clock.now()), upload_id=upload_id)


@uploads.post("/{upload_id:str}/complete", 400, 413, summary="Complete an upload", request_max_body_size=BODY_BYTES_MAX)
def complete(
    data: JSONBody[schemas.CompleteUpload], upload_id: FromPath[str], service: ServiceDep, caller: CallerDep
) -> schemas.Upload:
    """Join the parts in the order of `part_ids`. Their size must match `bytes` of the upload, and `md5` if given."""
    upload = _find(service, caller, upload_id)
    return schemas.upload_of(stored_uploads.complete(service.ledger, upload, data.part_ids, md5=data.md5))


@uploads.post("/{upload_id:str}/cancel", 400, summary="Cancel an upload")
def cancel(upload_id: FromPath[str], service: ServiceDep, caller: CallerDep) -> schemas.Upload:
    return schemas.upload_of(stored_uploads.cancel(service.ledger, _find(service, caller, upload_id)))


def _find(service: Service, caller: Caller, upload_id: str) -> UploadRecord:
    found = stored_uploads.read_upload(service.ledger, caller.tenant, upload_id)
    if found is None:
        raise Refusal(404, f"No such Upload object: {upload_id[:80]}", param="id")
    return found
