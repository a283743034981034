"""The dashboard: its static files, and the routes under `/api/` that were made for it."""

import asyncio
from pathlib import Path
from typing import Annotated

from litestar import Response
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath, QueryParameter

from batchfile.errors import InvalidFile, SettingsError
from batchfile.routing import check_pool, check_stage
from batchfile.rows.given_file import GivenFile

from ..http.create_query import PoolName
from ..http.errors import AnyRequest, Refusal
from ..http.etag import ETAGGED
from ..http.openapi import JSON_LINES, RenderedPage, plain
from ..http.responses import names_any
from ..http.routes import CallerDep, Routes
from ..http.spool import SpoolLimits, spool_body
from ..ops.pools import PoolStatus
from ..service import Service, ServiceDep
from . import schemas
from .check import CHECK_BYTES_MAX, check
from .latest import LatestReader

LATEST_MAX = 50
NAME_CHARS_MAX = 200
# The page runs its own modules and loads nothing else. No string can become markup or code in it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
MEDIA_TYPES = {  # Litestar adds the charset
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
STATIC = Path(__file__).parent / "static"
FILES = {
    path.name: RenderedPage.of(path.read_bytes(), MEDIA_TYPES[path.suffix])
    for path in sorted(STATIC.iterdir())
    if path.suffix in MEDIA_TYPES
}

pages = Routes("", tag="dashboard", common=(404, 405, 500))
batches = Routes("/api/batches", tag="batches")
files = Routes("/api", tag="batches")


@pages.get("/", include_in_schema=False)
async def index(request: AnyRequest) -> Response[bytes]:
    return _served(request, "index.html")


@pages.get("/dashboard/{name:str}", include_in_schema=False)
async def static(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
    return _served(request, name)


@batches.get("/{batch_id:str}/latest", 400, summary="Get the latest results with their prompts", **ETAGGED)
def latest(
    batch_id: FromPath[str],
    service: ServiceDep,
    caller: CallerDep,
    latest_reader: NamedDependency[LatestReader],
    limit: Annotated[int, QueryParameter(ge=1, le=LATEST_MAX)] = 10,
) -> schemas.Latest:
    """A few results to look at, with long texts cut: the newest ones of a running batch, the first ones of an ended
    one. `results` has all of them.
    """
    batch = service.read(caller, batch_id).batch
    return latest_reader.read(batch, service.reader.shards(batch_id), limit)


Name = Annotated[str, QueryParameter(description="The name of the file, whose ending says what it is.")]
Prompt = Annotated[
    str | None, QueryParameter(description="How a row becomes a prompt: a text with `{{ column }}` for its columns.")
]


class FILE_BODY(Operation):
    """Documents the body of routes that take any file."""

    def __post_init__(self) -> None:
        any_bytes = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, format="binary"))  # type: ignore[arg-type]
        self.request_body = RequestBody(required=True, content={"application/octet-stream": any_bytes})


@files.post("/check", 400, 408, 413, 415, summary="Check a file", request_max_body_size=None, operation_class=FILE_BODY)
async def check_file(
    request: AnyRequest,
    service: ServiceDep,
    caller: CallerDep,
    pool_status: NamedDependency[PoolStatus],
    name: Name = "file",
    stage: Annotated[str | None, QueryParameter(description="The stage of all requests.")] = None,
    pool: PoolName = None,
    prompt: Prompt = None,
) -> schemas.CheckReport:
    """What a file is, every problem that would reject or fail its requests, and an estimate. Nothing is created. Up to
    32 MiB.
    """
    routing = service.settings.routing()
    try:
        if stage is not None:
            check_stage(routing.stages, stage[:80])
        if pool is not None:
            check_pool(routing.pools, pool[:80])
    except SettingsError as error:
        raise InvalidFile(str(error)) from None
    async with spool_body(request, _limits(service)) as spooled, service.creating:
        file = GivenFile.of(spooled.view(), name[:NAME_CHARS_MAX], prompt)
        return await asyncio.to_thread(check, file, routing, stage, pool, pool_status)


@files.post(
    "/requests",
    *(400, 408, 413, 415),
    summary="Convert a file to requests",
    request_max_body_size=None,
    operation_class=FILE_BODY,
    responses={200: plain(str, "The requests.", JSON_LINES)},
)
async def convert_file(
    request: AnyRequest, service: ServiceDep, caller: CallerDep, name: Name = "file", prompt: Prompt = None
) -> Response[bytes]:
    """The requests of a file as JSON Lines, ready to be submitted: the rows of a table with a prompt over its columns
    (up to 8 MiB), the lines of a text, or the elements of a JSON array.
    """
    async with spool_body(request, _limits(service)) as spooled, service.creating:
        file = GivenFile.of(spooled.view(), name[:NAME_CHARS_MAX], prompt)
        lines = await asyncio.to_thread(lambda: b"".join(file.lines()))
    return Response(lines, media_type=JSON_LINES)


def _limits(service: Service) -> SpoolLimits:
    limits = SpoolLimits.of(service.settings.api)
    return SpoolLimits(bytes_max=min(limits.bytes_max, CHECK_BYTES_MAX), wait_s=limits.wait_s, folder=limits.folder)


def _served(request: AnyRequest, name: str) -> Response[bytes]:
    page = FILES.get(name)
    if page is None:
        raise Refusal(404, f"GET {request.url.path[:200]} not found; see /docs for all paths.")
    headers = {"ETag": page.etag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    headers |= {"Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin"}
    if names_any(request.headers.get("if-none-match", ""), {page.etag}):
        return Response(b"", status_code=304, headers=headers)
    return Response(page.body, media_type=page.media_type, headers=headers)
