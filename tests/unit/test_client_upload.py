"""What is submitted, whatever its format: as lines, read as often as need be, and told of piece by piece."""

import gzip
import io
import os
import sys
from pathlib import Path

import pytest

import batchfile
from batchfile.client.upload import open_upload, repeatable
from batchfile.errors import InvalidFile
from batchfile.testing import MemoryStore

LINES = b'{"custom_id": "a", "params": {}}\n' * 1000


class Stdin:
    """Standard input that holds these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize(("name", "data"), [("in.jsonl", LINES), ("in.jsonl.gz", gzip.compress(LINES, mtime=0))])
def test_a_file_is_read_as_often_as_need_be_and_each_byte_is_told(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    upload = open_upload(str(tmp_path / name))
    for _ in range(2):
        heard: list[int] = []
        assert b"".join(upload.chunks(heard.append)) == LINES
        assert sum(heard) == upload.size == len(data)


@pytest.mark.parametrize("data", [LINES, gzip.compress(LINES, mtime=0)])
def test_stdin_is_spooled_only_where_it_must_be_read_again(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    upload = open_upload("-")
    assert not upload.is_repeatable
    with repeatable(upload) as spooled:
        for _ in range(2):
            assert b"".join(spooled.chunks(lambda num: None)) == LINES


def test_a_file_that_is_changed_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINES)
    chunks = open_upload(str(path)).chunks(lambda num: None)
    next(chunks)
    path.write_bytes(LINES + LINES)
    with pytest.raises(InvalidFile, match="was changed while it was read"):
        list(chunks)


@pytest.mark.parametrize("name", ["s3://bucket", "s3://bucket/", "s3://bucket/folder/"])
def test_a_bucket_or_a_folder_of_it_is_no_object(name: str) -> None:
    with pytest.raises(InvalidFile, match="is not the URL of an object"):
        open_upload(name)


def test_a_pipe_by_its_name_is_told_the_way_through_stdin(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidFile, match=r"is not a regular file; pipe it to stdin and use - as the input$"):
        open_upload(str(tmp_path / "pipe"))


def test_rows_are_submitted_with_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("id,review\na,good\nb,bad\n")
    with batchfile.connect(MemoryStore()) as client:
        rows = client.submit(tmp_path / "reviews.csv", prompt="Is it {{ review }}?", limit=1, stage="email")
        assert rows.last_status.total == 1
        with pytest.raises(InvalidFile, match="has no column 'revew'"):
            client.submit(tmp_path / "reviews.csv", prompt="{{ revew }}")
        with pytest.raises(TypeError, match=r"^submit\(\) got an unexpected keyword argument 'engine'$"):
            client.submit(tmp_path / "reviews.csv", engine="echo")  # type: ignore[call-arg]
        assert [batch.id for batch in client.batches()] == [rows.id]
