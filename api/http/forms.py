"""Requests whose body is a form with a file: received to disk, and how the OpenAPI document shows them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from litestar import Request
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from batchfile.errors import TooLarge

from ..service import Service
from .errors import Refusal
from .multipart import Form, read_form
from .spool import SpoolLimits, spool

BESIDE_BYTES_MAX = 1024 * 1024  # of a form without its file

_FILE = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)


@asynccontextmanager
async def received_form(
    request: Request[Any, Any, Any], service: Service, name: str, bytes_max: int
) -> AsyncIterator[Form]:
    """`name`: of the field with the file, which may have `bytes_max` bytes.

    Raises: what `spool` and `read_form` do; Refusal 413 also for TooLarge from within.
    """
    headers = request.headers
    length = headers.get("content-length")
    try:
        async with spool(
            request.stream(),
            content_encoding=headers.get("content-encoding"),
            content_length=int(length) if length else None,
            limits=replace(SpoolLimits.of(service.settings.api), bytes_max=bytes_max + BESIDE_BYTES_MAX),
        ) as spooled:
            yield await asyncio.to_thread(read_form, spooled, headers.get("content-type"), name)
    except TooLarge:
        raise Refusal(413, f"{name}: may have {bytes_max:,} bytes; send more in several pieces", param=name) from None


def _form(required: list[str], properties: dict[str, Schema]) -> RequestBody:
    schema = Schema(type=OpenAPIType.OBJECT, required=required, properties=properties)  # type: ignore[arg-type]
    return RequestBody(required=True, content={"multipart/form-data": OpenAPIMediaType(schema=schema)})


@dataclass
class FILE_FORM(Operation):
    """Documents an uploaded file."""

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
    """Documents one part of an upload."""

    def __post_init__(self) -> None:
        self.request_body = _form(["data"], {"data": _FILE})
