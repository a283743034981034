"""A form on disk: its fields and its file, wherever the chunks of it end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from api.http import forms
from api.http.errors import Refusal
from api.http.spool import Spooled

TYPE = "multipart/form-data; boundary=edge"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    extra = "" if filename is None else f'; filename="{filename}"'
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"


END = b"--edge--\r\n"


@contextmanager
def spooled(tmp_path: Path, body: bytes) -> Iterator[Spooled]:
    (tmp_path / "body").write_bytes(body)
    with (tmp_path / "body").open("rb") as file:
        yield Spooled(fd=file.fileno(), size=len(body), sha256="")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.sampled_from([b"\r\n", b"--", b"--edge", b"\r\n--edg", b"x", b"\0", b"\r"]), max_size=30),
    size=st.integers(1, 40),
    is_file_first=st.booleans(),
)
def test_the_file_is_what_was_sent_however_the_chunks_fall(
    tmp_path: Path, data: list[bytes], size: int, is_file_first: bool
) -> None:
    content = b"".join(data)
    assume(b"\r\n--edge" not in b"\r\n" + content)  # a client takes another boundary then
    parts = [part("file", content, "a.jsonl"), part("purpose", b"batch")]
    body = b"".join(parts if is_file_first else parts[::-1]) + END
    with pytest.MonkeyPatch.context() as patch, spooled(tmp_path, body) as whole:
        patch.setattr(forms, "CHUNK_BYTES", size)
        form = forms.read_form(whole, TYPE, "file")
        assert (form.fields, form.filename) == ({"purpose": "batch"}, "a.jsonl")
        assert b"".join(form.chunks()) == content


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (part("file", b"x") + END, "application/json", 415),
        (part("file", b"x") + END, "multipart/form-data", 415),
        (part("file", b"x") + END, None, 415),
        (part("purpose", b"batch") + END, TYPE, 400),
        (part("file", b"x"), TYPE, 400),
        (part("file", b"x") * 2 + END, TYPE, 400),
        (b"", TYPE, 400),
        (b"nothing of the kind", TYPE, 400),
        (part("file", b"x") + part("a", b"y" * 70_000) + END, TYPE, 413),
        (part("file", b"x") + part("a", b"y") * 40 + END, TYPE, 413),
    ],
)
def test_what_is_no_such_form_is_refused(tmp_path: Path, body: bytes, content_type: str | None, status: int) -> None:
    with spooled(tmp_path, body) as whole, pytest.raises(Refusal) as refused:
        forms.read_form(whole, content_type, "file")
    assert refused.value.status == status
