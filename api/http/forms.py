"""Reads multipart forms with a file, and documents them in OpenAPI.

The form is received to disk and read twice: first the fields, then the bytes of the file. Memory: one chunk.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from batchfile.errors import TooLarge
from batchfile.settings_tables import Api

from .errors import AnyRequest, Refusal
from .spool import Spooled, SpoolLimits, spool_body

CHUNK_BYTES = 256 * 1024
SEGMENTS_MAX = 32
FIELD_BYTES_MAX = 64 * 1024
FILENAME_CHARS_MAX = 255
BESIDE_BYTES_MAX = 1024 * 1024  # of a form, in addition to its file

_FILE = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """`fields`: all except the file. Fields and file may come in any order."""

    fields: dict[str, str]
    filename: str
    _body: memoryview
    _boundary: str
    _name: str

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the file."""
        for segment, data in _segments(self._body, self._boundary):
            if segment.name == self._name:
                yield data


def read_form(spooled: Spooled, content_type: str | None, name: str) -> Form:
    """`name`: the field with the file. Raises: Refusal 400, 413, 415."""
    kind, options = parse_options_header(content_type or "")
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise Refusal(415, "Content-Type: must be multipart/form-data with a boundary.")
    body, boundary = spooled.view(), options["boundary"]
    filename: str | None = None
    pieces: dict[str, list[bytes]] = {}
    num_bytes = 0
    for segment, data in _segments(body, boundary):
        if segment.name == name:
            if filename is not None and not data:
                raise Refusal(400, f"{name}: is repeated; send one file per request", param=name)
            filename = segment.filename or name
            continue
        pieces.setdefault(segment.name, []).append(data)
        num_bytes += len(data)
        if num_bytes > FIELD_BYTES_MAX:
            raise Refusal(413, f"The fields other than {name!r} exceed {FIELD_BYTES_MAX:,} bytes; shorten them.")
    if filename is None:
        raise Refusal(400, f"{name}: is missing; send the file in the form field {name!r}", param=name)
    return Form(
        fields={key: b"".join(parts).decode("utf-8", "replace") for key, parts in pieces.items()},
        filename=filename[:FILENAME_CHARS_MAX],
        _body=body,
        _boundary=boundary,
        _name=name,
    )


def _segments(body: memoryview, boundary: str) -> Iterator[tuple[MultipartSegment, bytes]]:
    """Every piece of every segment with its segment; one empty piece at the start of each segment."""
    try:
        with PushMultipartParser(boundary, max_segment_count=SEGMENTS_MAX) as parser:
            segment: MultipartSegment | None = None
            for start in range(0, len(body), CHUNK_BYTES):
                for event in parser.parse(bytes(body[start : start + CHUNK_BYTES])):
                    if isinstance(event, MultipartSegment):
                        segment = event
                        yield segment, b""
                    elif event and segment is not None:
                        yield segment, event
    except MultipartError as error:
        status = 413 if error.http_status == 413 else 400
        raise Refusal(status, f"The body is not a complete multipart form: {error}") from None


@asynccontextmanager
async def received_form(request: AnyRequest, settings: Api, name: str, bytes_max: int) -> AsyncIterator[Form]:
    """`name`: the field with the file, which may have `bytes_max` bytes.

    Raises: as `spool` and `read_form`; Refusal 413 also for a TooLarge from the body of the `with`.
    """
    limits = replace(SpoolLimits.of(settings), bytes_max=bytes_max + BESIDE_BYTES_MAX)
    try:
        async with spool_body(request, limits) as spooled:
            yield await asyncio.to_thread(read_form, spooled, request.headers.get("content-type"), name)
    except TooLarge:
        raise Refusal(413, f"{name}: exceeds {bytes_max:,} bytes; send it in smaller pieces", param=name) from None


def _form(required: list[str], properties: dict[str, Schema]) -> RequestBody:
    schema = Schema(type=OpenAPIType.OBJECT, required=required, properties=properties)  # type: ignore[arg-type]
    return RequestBody(required=True, content={"multipart/form-data": OpenAPIMediaType(schema=schema)})


@dataclass
class FILE_FORM(Operation):
    """Documents the form of an uploaded file."""

    def __post_init__(self) -> None:
        seconds = Schema(type=OpenAPIType.INTEGER, minimum=3600, maximum=2_592_000)
        self.request_body = _form(
            ["file", "purpose"],
            {
                "file": _FILE,
                "purpose": Schema(type=OpenAPIType.STRING, enum=["batch"]),
                "expires_after[anchor]": Schema(type=OpenAPIType.STRING, enum=["created_at"]),
                "expires_after[seconds]": seconds,
            },
        )


@dataclass
class PART_FORM(Operation):
    """Documents the form of one part of an upload."""

    def __post_init__(self) -> None:
        self.request_body = _form(["data"], {"data": _FILE})
