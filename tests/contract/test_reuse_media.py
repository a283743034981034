"""Requests with media are reused exactly when the bytes of these are the same; those with media by URL never."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import batchfile
from batchfile.errors import OutputTaken
from tests.contract.reuse_kit import World, from_, line
from tests.helpers.local import media_files
from tests.media_kit import media_server, png

NUM = 5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHFILE_ECHO_EXECUTIONS", "executed")
    for n in range(NUM + 1):
        Path(f"{n}.png").write_bytes(png(width=n + 1))
    return tmp_path


def by_path(n: int) -> dict[str, Any]:
    parts = [{"type": "text", "text": "see"}, {"type": "image", "source": {"type": "path", "path": f"{n}.png"}}]
    return {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": parts}]}}


def by_url(n: int, url: str) -> dict[str, Any]:
    parts = [{"type": "image", "source": {"type": "url", "url": f"{url}/{n}.png"}}]
    return {"custom_id": f"u{n}", "params": {"messages": [{"role": "user", "content": parts}]}}


def text(n: int) -> dict[str, Any]:
    return {"custom_id": f"t{n}", "params": {"messages": [{"role": "user", "content": f"lead {n}"}]}}


def run(*lines: dict[str, Any]) -> tuple[int, list[str | None]]:
    """How many requests ran, and the answers."""
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = Path("executed")
    before = len(log.read_text().splitlines()) if log.exists() else 0
    batchfile.run("in.jsonl", "out.jsonl", engine="echo")
    rows = [json.loads(row) for row in Path("out.jsonl").read_text().splitlines()]
    answers = [row["message"] and row["message"]["content"][0]["text"] for row in rows]
    return len(log.read_text().splitlines()) - before, answers


def size(n: int) -> str:
    return f"see\n\n[image {n + 1}x3]"


def test_images_by_path_are_reused_as_long_as_their_bytes_are_the_same() -> None:
    lines = [by_path(n) for n in range(NUM)]
    assert run(*lines) == (NUM, [size(n) for n in range(NUM)])
    assert run(*lines, by_path(NUM)) == (1, [size(n) for n in range(NUM + 1)])
    Path("1.png").write_bytes(png(width=50))
    Path("2.png").touch()
    assert run(by_path(1), by_path(2), by_path(3)) == (1, [size(49), size(2), size(3)])


def test_a_missing_file_fails_its_line_and_runs_once_it_is_there() -> None:
    Path("0.png").unlink()
    assert run(by_path(0), by_path(1)) == (1, [None, size(1)])
    Path("0.png").write_bytes(png(width=9))
    assert run(by_path(0), by_path(1), by_path(2)) == (2, [size(8), size(1), size(2)])


def test_what_changed_between_its_hash_and_its_answer_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    later = png(width=50)
    with monkeypatch.context() as patched:
        patched.setattr(media_files, "_digest", lambda path, *stamp: sha256(later).digest())
        run(by_path(0), text(0))
    Path("0.png").write_bytes(later)
    assert run(by_path(0), text(0), text(1)) == (2, [size(49), "lead 0", "lead 1"])


def test_each_file_is_read_once_for_a_plan_and_none_for_text(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = media_files._digest
    monkeypatch.setattr(media_files, "_digest", lambda path, *stamp: (read.append(path), digest(path, *stamp))[1])
    same = [{**by_path(n % 2), "custom_id": f"{n}"} for n in range(100)]
    run(text(0), *same)
    assert sorted(map(Path, read)) == [Path("0.png").resolve(), Path("1.png").resolve()]


def test_media_by_url_are_never_reused_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    told = "2 requests with media by URL are not reused, since what the URL returns may have changed"
    with media_server({f"/{n}.png": png(width=n + 1) for n in range(3)}) as server:
        urls = [by_url(n, server.url) for n in range(2)]
        run(*urls, text(0), text(1), text(2))
        capsys.readouterr()
        assert run(*urls, text(0), text(1), text(2), text(3))[0] == 3
        said = capsys.readouterr().err
        assert f"{told}\n3 of 6 reused\n" in said
        assert "not in the input now" not in said
        with pytest.raises(OutputTaken, match=rf"{told}; no other request is the same as one that has succeeded\. "):
            run(*urls, text(7))
        Path("out.jsonl").unlink()
        batchfile.run("in.jsonl", "other.jsonl", engine="echo")
        Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reversed(urls)))
        with pytest.raises(OutputTaken, match=rf"None of them can be reused: {told}\. Choose another output"):
            batchfile.run("in.jsonl", "other.jsonl", engine="echo")


def test_a_batch_of_a_service_counts_requests_with_media_by_url() -> None:
    world = World()
    rows = [line("a", "hi"), json.dumps(by_url(0, "http://192.0.2.1")).encode()]
    planned = world.plan("new", rows, from_(world.finished("old", rows)))
    assert planned.reused_from == {"old": 1}
    told = "1 request with media by URL is not reused, since what the URL returns may have changed"
    assert planned.reuse_note == told
    assert world.create("new", planned).reuse_note == told
