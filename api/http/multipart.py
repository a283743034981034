"""A form with one file in it: read twice from disk, first its fields, then the bytes of the file. Memory: one chunk."""

from collections.abc import Iterator
from dataclasses import dataclass

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from .errors import Refusal
from .spool import Spooled

CHUNK_BYTES = 256 * 1024
SEGMENTS_MAX = 32
FIELD_BYTES_MAX = 64 * 1024
FILENAME_CHARS_MAX = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """`fields` without the file, in any order of both."""

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
    """`name`: of the field that carries the file. Raises: Refusal 400, 413, 415."""
    kind, options = parse_options_header(content_type or "")
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise Refusal(415, "Content-Type: send multipart/form-data with its boundary.")
    body, boundary = spooled.view(), options["boundary"]
    filename: str | None = None
    pieces: dict[str, list[bytes]] = {}
    num_bytes = 0
    for segment, data in _segments(body, boundary):
        if segment.name == name:
            if filename is not None and not data:
                raise Refusal(400, f"{name}: comes twice; send one file at a time", param=name)
            filename = segment.filename or name
            continue
        pieces.setdefault(segment.name, []).append(data)
        num_bytes += len(data)
        if num_bytes > FIELD_BYTES_MAX:
            raise Refusal(413, f"The fields beside {name!r} may have {FIELD_BYTES_MAX:,} bytes in all.")
    if filename is None:
        raise Refusal(400, f"{name}: is missing; send the file as the form's field {name!r}", param=name)
    return Form(
        fields={key: b"".join(parts).decode("utf-8", "replace") for key, parts in pieces.items()},
        filename=filename[:FILENAME_CHARS_MAX],
        _body=body,
        _boundary=boundary,
        _name=name,
    )


def _segments(body: memoryview, boundary: str) -> Iterator[tuple[MultipartSegment, bytes]]:
    """Every piece of every segment with its segment; one empty piece where a segment begins."""
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
        raise Refusal(status, f"The body is no whole multipart form: {error}") from None
