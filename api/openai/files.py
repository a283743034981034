"""`/v1/files` in OpenAI's API format: uploaded files and output files."""

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from litestar import Response
from litestar.di import NamedDependency
from litestar.enums import HttpMethod
from litestar.params import FromPath, QueryParameter

from batchfile.files import stored_files
from batchfile.files.keys import is_file_id
from batchfile.files.stored_files import FileRecord
from batchfile.ledger.records import FileRef

from ..http.auth import Caller
from ..http.errors import AnyRequest, Refusal
from ..http.forms import FILE_FORM, Form, received_form
from ..http.negotiation import OpenAIProblem
from ..http.openapi import FILE
from ..http.responses import serve_file, stream
from ..http.routes import CallerDep, Routes
from ..service import Service, ServiceDep
from . import schemas
from .output_files import OutputFiles

T = TypeVar("T")

PAGE_MAX = 10_000
KEPT_S = 30 * 24 * 3600.0  # unless the form says otherwise; OpenAI's default for batch files
BYTES = "application/octet-stream"
LINES = "application/jsonl"

files = Routes("/v1/files", tag="files", problem=OpenAIProblem)


@files.post("", 400, 408, 413, 415, summary="Upload a file", request_max_body_size=None, operation_class=FILE_FORM)
async def create(request: AnyRequest, service: ServiceDep, caller: CallerDep) -> schemas.File:
    """Send a form with `file` and `purpose`, in any order."""
    bytes_max = service.settings.api.file_bytes_max
    async with received_form(request, service.settings.api, "file", bytes_max) as form:
        return schemas.file_of(await asyncio.to_thread(_store, service, caller, form, bytes_max))


@files.get("", 400, summary="List uploaded files")
def list_files(
    service: ServiceDep,
    caller: CallerDep,
    purpose: Annotated[str | None, QueryParameter(description="Only `batch` exists.")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = PAGE_MAX,
    order: Annotated[Literal["asc", "desc"], QueryParameter(description="Sort order by creation time.")] = "desc",
    after: Annotated[str | None, QueryParameter(description="The last id of the previous page.")] = None,
) -> schemas.FilePage:
    """Output files are not listed; each batch names its own."""
    if after is not None and not is_file_id(after):
        raise Refusal(404, f"after: uploaded file {after[:80]!r} not found", param="after")
    if purpose not in {None, "batch"}:
        return schemas.FilePage(data=[], first_id=None, last_id=None, has_more=False)
    found = _page(service, caller, limit + 1, order == "asc", after)
    data = [schemas.file_of(record) for record in found[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return schemas.FilePage(data=data, first_id=first, last_id=last, has_more=len(found) > limit)


@files.get("/{file_id:str}", summary="Get a file")
def retrieve(
    file_id: FromPath[str], service: ServiceDep, output_files: NamedDependency[OutputFiles], caller: CallerDep
) -> schemas.File:
    output = output_files.find(caller, file_id)
    if output is not None:
        return output_files.view(caller, output)
    return schemas.file_of(_known(stored_files.read_file(service.ledger, caller.tenant, file_id), file_id))


@files.delete("/{file_id:str}", summary="Delete a file")
def remove(
    file_id: FromPath[str], service: ServiceDep, output_files: NamedDependency[OutputFiles], caller: CallerDep
) -> schemas.FileDeleted:
    """Batches created from it continue."""
    output = output_files.find(caller, file_id)
    if output is None:
        _known(stored_files.remove_file(service.ledger, caller.tenant, file_id) or None, file_id)
    else:
        output_files.remove(caller, output)
    return schemas.FileDeleted(id=file_id)


@files.get("/{file_id:str}/content", 416, summary="Get the content of a file", responses=FILE)
def content(
    request: AnyRequest,
    file_id: FromPath[str],
    service: ServiceDep,
    output_files: NamedDependency[OutputFiles],
    caller: CallerDep,
) -> Response[Any]:
    """Supports `Range` for uploaded files. Output files are rendered when read, with the same bytes each time."""
    output = output_files.find(caller, file_id)
    if output is not None and request.method == HttpMethod.HEAD:
        return Response(b"", media_type=LINES)
    if output is not None:
        return stream(request, output_files.chunks(output), LINES)
    record = _known(stored_files.read_file(service.ledger, caller.tenant, file_id), file_id)
    stored = FileRef(key=record.key, size=record.size, sha256=record.sha256, num_lines=0)
    return serve_file(request, service.ledger, stored, BYTES)


def _store(service: Service, caller: Caller, form: Form, bytes_max: int) -> FileRecord:
    purpose = form.fields.get("purpose")
    if purpose != "batch":
        raise Refusal(400, f"purpose: must be 'batch', not {(purpose or '')[:80]!r}", param="purpose")
    return stored_files.store_file(
        service.ledger,
        caller.tenant,
        form.chunks(),
        filename=form.filename,
        purpose=purpose,
        kept_s=_kept_s(form.fields),
        bytes_max=bytes_max,
    )


def _kept_s(fields: dict[str, str]) -> float:
    """The retention from the form's `expires_after`, in seconds."""
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise Refusal(400, "expires_after[anchor]: must be 'created_at'", param="expires_after")
    text = fields.get("expires_after[seconds]")
    if text is None:
        return KEPT_S
    low, high = schemas.EXPIRES_S_MIN, schemas.EXPIRES_S_MAX
    if not (text.isascii() and text.isdigit() and len(text) < 9 and low <= int(text) <= high):
        raise Refusal(400, f"expires_after[seconds]: must be an integer from {low} to {high}", param="expires_after")
    return float(text)


def _page(service: Service, caller: Caller, num: int, is_oldest_first: bool, after: str | None) -> list[FileRecord]:
    ids: Iterator[str] = stored_files.list_file_ids(
        service.ledger, caller.tenant, after=None if is_oldest_first else after
    )
    if is_oldest_first:
        ids = (file_id for file_id in reversed(list(ids)) if after is None or file_id < after)
    found: list[FileRecord] = []
    while len(found) < num:
        some = list(islice(ids, num - len(found)))
        if not some:
            break
        found += service.files(caller, some)
    return found


def _known(found: T | None, file_id: str) -> T:
    if found is None:
        raise Refusal(404, f"No such File object: {file_id[:80]}", param="id")
    return found
