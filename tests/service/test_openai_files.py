"""OpenAI's own Python client, unmodified, against a real server: files and uploads, in whole and in parts."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import FileDeleted, FileObject, Upload
from openai.types.chat import ChatCompletion
from openai.types.uploads import UploadPart

from tests.service.openai_kit import (
    CHAT,
    KEY,
    OTHER_KEY,
    begin,
    client,
    connect,
    jsonl,
    line,
    rows,
    served,
    strict,
    work,
)

__all__ = ["client", "connect", "served"]

NUM_LINES = 10_000


def test_pages_of_files_hold_every_file_once_in_both_orders(connect: Any) -> None:
    client = connect(OTHER_KEY)
    before = {file.id for file in client.files.list()}
    made = [client.files.create(file=(f"{n}.jsonl", b"{}\n"), purpose="batch").id for n in range(11)]
    newest = [strict(FileObject, file).id for file in client.files.list(limit=3) if file.id not in before]
    oldest = [file.id for file in client.files.list(limit=3, order="asc", purpose="batch") if file.id not in before]
    assert sorted(newest) == sorted(made)
    assert newest == oldest[::-1]
    assert list(client.files.list(purpose="vision")) == []
    client.files.delete(made[5])
    assert made[5] not in [file.id for file in client.files.list(limit=2)]


def test_a_file_is_read_in_whole_and_in_part_and_removed(served: Any, client: Any) -> None:
    data = bytes(range(256)) * 5000
    file = client.files.create(
        file=("b.jsonl", data), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    assert strict(FileObject, client.files.retrieve(file.id)) == file
    assert client.files.content(file.id).content == data
    part = client.files.with_raw_response.content(file.id, extra_headers={"range": "bytes=100-199"})
    assert (part.http_response.status_code, part.content) == (206, data[100:200])
    assert part.headers["x-request-id"]
    assert strict(FileDeleted, client.files.delete(file.id)).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(file.id)


def test_ten_thousand_lines_come_in_parts_and_go_out_in_order(served: Any, client: Any) -> None:
    data = jsonl(*(line(f"r{number}") for number in range(NUM_LINES)))
    upload = client.uploads.upload_file_chunked(
        file=data,
        filename="big.jsonl",
        bytes=len(data),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=500_000,
        md5=hashlib.md5(data).hexdigest(),
    )
    strict(Upload, upload)
    assert (upload.status, upload.file.bytes, upload.file.filename) == ("completed", len(data), "big.jsonl")
    assert client.files.content(upload.file.id).content == data
    batch = client.batches.create(input_file_id=upload.file.id, endpoint=CHAT, completion_window="24h")
    batch = work(served, client, batch.id)
    assert (batch.request_counts.completed, batch.error_file_id) == (NUM_LINES, None)
    for number, row in enumerate(rows(client, batch.output_file_id)):
        assert row["custom_id"] == f"r{number}"
        assert ChatCompletion.model_validate(row["response"]["body"]).object == "chat.completion"


def test_parts_are_joined_in_the_order_that_is_named_and_completing_twice_is_one_file(client: Any) -> None:
    upload = begin(client, 6)
    assert upload.expires_at == upload.created_at + 3600
    second, first = (
        strict(UploadPart, client.uploads.parts.create(upload.id, data=part)).id for part in (b"def", b"abc")
    )
    one, again = (client.uploads.complete(upload.id, part_ids=[first, second]) for _ in range(2))
    assert one.file.id == again.file.id
    assert client.files.content(one.file.id).content == b"abcdef"
    for call in (lambda: client.uploads.cancel(upload.id), lambda: client.uploads.parts.create(upload.id, data=b"x")):
        with pytest.raises(openai.BadRequestError, match="completed"):
            call()


def test_an_upload_that_is_not_what_was_announced_is_refused_and_may_be_mended(client: Any) -> None:
    upload = begin(client, 4)
    part = client.uploads.parts.create(upload.id, data=b"abc").id
    rest = client.uploads.parts.create(upload.id, data=b"d").id
    with pytest.raises(openai.BadRequestError, match="3 bytes"):
        client.uploads.complete(upload.id, part_ids=[part])
    with pytest.raises(openai.BadRequestError, match="not a part"):
        client.uploads.complete(upload.id, part_ids=[part, "part_x"])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(upload.id, part_ids=[part, rest], md5="0" * 32)
    assert client.uploads.complete(upload.id, part_ids=[part, rest]).file.bytes == 4


def test_a_cancelled_upload_takes_nothing_more(client: Any) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=b"abc").id
    for _ in range(2):
        assert strict(Upload, client.uploads.cancel(upload.id)).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.complete(upload.id, part_ids=[part])


def test_a_large_file_passes_through_in_bounded_memory(start_api: Any, watch: Any) -> None:
    api = start_api()
    data = b"x" * 999_999 + b"\n"
    head = {"content-type": "multipart/form-data; boundary=xyz"}

    def body() -> Iterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
        for _ in range(100):
            yield data
        yield b'\r\n--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--xyz--\r\n'

    api.http.get("/v1/files")
    with watch(api) as memory:
        answer = api.http.post("/v1/files", headers=head, content=body())
    assert answer.json()["bytes"] == 100_000_000
    assert memory.grown_bytes < 50_000_000


def test_a_form_may_come_in_either_order_and_in_chunks_of_unknown_length(served: Any) -> None:
    data = jsonl(line("a")) * 2000
    head = {"authorization": f"Bearer {KEY}", "content-type": "multipart/form-data; boundary=xyz"}
    file = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n' + data + b"\r\n"
    purpose = b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    for parts in ((file, purpose), (purpose, file)):
        body = io.BytesIO(b"".join(parts) + b"--xyz--\r\n")
        answer = served.http.post("/v1/files", headers=head, content=iter(lambda body=body: body.read(1000), b""))
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == len(data)
    for body, status in ((file, 400), (purpose + b"--xyz--\r\n", 400), (b"", 400)):
        wrong = served.http.post("/v1/files", headers=head, content=body)
        assert (wrong.status_code, list(wrong.json()["error"])) == (status, ["message", "type", "param", "code"])
