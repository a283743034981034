"""Where the runs of `map` are: the same run has the same folder, and the cache forgets those that nobody uses."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchfile.errors import SettingsError, StoreFull
from batchfile.local.map_state import KEPT_S, open_state


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("BATCHFILE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "batchfile" / "map"


def test_the_same_rows_and_options_have_the_same_folder(cache: Path) -> None:
    state = open_state(None)
    with state.written([b"1\n", b"2\n"]) as rows, state.written([b"1\n2\n"]) as same, state.written([b"1\n"]) as other:
        assert (rows.num, rows.sha256) == (2, same.sha256) != (1, other.sha256)
        folder = state.folder({"model": "m"}, {"rows": rows.sha256})
        assert folder == state.folder({"model": "m"}, {"rows": same.sha256})
        assert folder != state.folder({"model": "m"}, {"rows": other.sha256})
        assert folder.parent == state.folder({"model": "m"}, {"rows": other.sha256}).parent, "they have one store"
        assert folder.parent != state.folder({"model": "n"}, {"rows": rows.sha256}).parent
        for path in (folder, folder.parent):
            assert path.stat().st_mode & 0o077 == 0, "for this user only"
        assert folder.parent.parent == cache
        assert rows.move_to(folder).read_bytes() == b"1\n2\n"
        first = os.stat(folder / "rows.jsonl").st_ino
        assert same.move_to(folder).stat().st_ino == first, "the batch refers to the file of the first call"
    assert not [*cache.glob("*.unfinished")]


def test_what_was_not_used_for_thirty_days_leaves_the_cache_but_not_a_folder_of_ones_own(
    cache: Path, tmp_path: Path
) -> None:
    for store in (None, tmp_path / "own"):
        state = open_state(store)
        old, kept = (state.folder({"n": number}, {}).parent for number in (1, 2))
        unused = state.folder({"n": 2}, {"rows": 1})
        (old / "rows.jsonl").write_text("x")
        (state.root / "map-killed.unfinished").write_text("x")
        (state.root / "other").write_text("x")
        for path in (
            old / "last-used",
            unused / "last-used",
            state.root / "map-killed.unfinished",
            state.root / "other",
        ):
            os.utime(path, (0, path.stat().st_mtime - KEPT_S - 60))
        found = {path.name for path in open_state(store).root.iterdir()}
        gone = set() if store else {old.name, "map-killed.unfinished"}
        assert found == {old.name, kept.name, "map-killed.unfinished", "other"} - gone
        assert unused.exists() is (store is not None)


def test_a_full_disk_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines() -> Iterator[bytes]:
        yield b"1\n"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(StoreFull, match=r"/map/map-.*: .*disk is full: free some space"),
        open_state(None).written(lines()),
    ):
        pass
    assert not [*cache.iterdir()]


def test_where_the_store_is(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = open_state(tmp_path / "own")
    name = inside.folder({}, {}).parent.name
    assert inside.store_of(inside.folder({}, {})) == f"{tmp_path}/own/{name}/.batchfile"
    bucket = open_state("s3://bucket/prefix/")
    assert (bucket.root, bucket.store_of(bucket.folder({}, {}))) == (cache, f"s3://bucket/prefix/{name}")
    elsewhere = open_state("s3://bucket/prefix?endpoint=http://x/")
    assert elsewhere.store_of(elsewhere.folder({}, {})) == f"s3://bucket/prefix/{name}?endpoint=http://x/"
    monkeypatch.setenv("BATCHFILE_CACHE", str(tmp_path / "models"))
    assert open_state(None).root == tmp_path / "models" / "map"
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"store: .*/file/x cannot be written: .*; pass another folder"):
        open_state(tmp_path / "file" / "x")
