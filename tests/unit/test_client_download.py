"""A download is whole, checked and continued; nothing else ever stands under its name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchfile.client.base import Download
from batchfile.client.results import fetch
from batchfile.errors import BatchfileError, ServiceUnavailable

DATA = bytes(range(256)) * 40


class Source:
    """A file elsewhere. `starts`: where each attempt began; the first ends after `breaks_at` bytes."""

    def __init__(self, breaks_at: int | None = None, data: bytes = DATA) -> None:
        self.starts: list[int] = []
        self._breaks_at = breaks_at
        self._data = data

    def download(self) -> Download:
        return Download(size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest(), read=self._read)

    def _read(self, start: int) -> Iterator[bytes]:
        self.starts.append(start)
        for at in range(start, len(self._data), 1000):
            if self._breaks_at is not None and at >= self._breaks_at:
                self._breaks_at = None
                raise ServiceUnavailable("gone")
            yield self._data[at : at + 1000]


def got(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_what_arrived_is_kept_and_the_next_attempt_goes_on_from_there(tmp_path: Path) -> None:
    source, path = Source(breaks_at=3000), tmp_path / "out.jsonl"
    with pytest.raises(ServiceUnavailable):
        fetch(source.download(), str(path), lambda num: None)
    assert not path.exists()
    heard: list[int] = []
    fetch(source.download(), str(path), heard.append)
    assert source.starts == [0, 3000]
    assert sum(heard) == len(DATA)
    assert path.read_bytes() == DATA
    assert got(tmp_path) == ["out.jsonl"]


def test_another_file_than_was_promised_is_thrown_away_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(BatchfileError, match="run the same command again"):
        fetch(Source(data=DATA[::-1]).download(), str(path), lambda num: None)
    assert path.read_bytes() == b"old"
    assert got(tmp_path) == ["out.jsonl"]


def test_the_beginning_of_another_file_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    (tmp_path / f".out.jsonl.{hashlib.sha256(DATA).hexdigest()[:12]}.partial").write_bytes(DATA * 2)
    fetch(Source().download(), str(path), lambda num: None)
    assert path.read_bytes() == DATA
