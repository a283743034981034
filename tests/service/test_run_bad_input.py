"""What bad input gets from `batchfile run`: a bad line is an errored result, a bad file is refused at once."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm

WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
GOOD = b'{"custom_id":"good","params":{"messages":[{"role":"user","content":"hi"}]}}\n'


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    return warm.run("batchfile", ["run", "--engine", "echo", *arguments], cwd=folder, env=kept)


def params(inside: str) -> bytes:
    return b'{"custom_id":"bad","params":{"messages":[{"role":"user","content":"hi"}],%s}}' % inside.encode()


# what is wrong with line 2, the error's message has these words, the custom_id of the result
BAD_LINES = {
    "not JSON": (b'{"custom_id": "bad", oops', "is not valid JSON", None),
    "not an object": (b"[1, 2]", "must be an object", None),
    "no custom_id": (b'{"params":{"messages":[]}}', "custom_id", None),
    "an empty custom_id": (b'{"custom_id":"","params":{"messages":[]}}', "custom_id", ""),
    "a custom_id that is a fraction": (b'{"custom_id":7.5,"params":{}}', "custom_id", None),
    "no params": (b'{"custom_id":"bad"}', "params", "bad"),
    "params that are no object": (b'{"custom_id":"bad","params":[]}', "params", "bad"),
    "no messages": (b'{"custom_id":"bad","params":{}}', "params.messages", "bad"),
    "an unknown key outside": (b'{"custom_id":"bad","params":{},"parms":1}', "did you mean params", "bad"),
    "an unknown key inside": (params('"max_token":3'), "did you mean max_tokens", "bad"),
    "a wrong type": (params('"temperature":"hot"'), "params.temperature", "bad"),
    "max_tokens 0": (params('"max_tokens":0'), "params.max_tokens", "bad"),
    "max_tokens negative": (params('"max_tokens":-4'), "params.max_tokens", "bad"),
    "NaN": (params('"temperature":NaN'), "", "bad"),
    "invalid UTF-8": (b'{"custom_id":"bad","params":{"messages":[{"role":"user","content":"\xff"}]}}', "", None),
    "deep nesting": (params('"metadata":' + "[" * 100_000 + "]" * 100_000), "nest", None),
    "a duplicate": (GOOD.strip(), "line 1", "good"),
}


def test_bad_lines_are_errored_results_and_the_rest_runs(tmp_path: Path) -> None:
    # "bad" with a number behind it: no line may be a duplicate by accident.
    wrong = [line.replace(b'"bad"', b'"bad%d"' % n) for n, (line, _, _) in enumerate(BAD_LINES.values())]
    last = GOOD.replace(b'"good"', b'"last"')
    (tmp_path / "in.jsonl").write_bytes(GOOD + b"".join(line + b"\n" for line in wrong) + last)
    done = run(tmp_path, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 3, done.stderr
    assert b"Traceback" not in done.stderr
    first, *bad, third = [json.loads(found) for found in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert (first["custom_id"], first["status"]) == ("good", "succeeded")
    assert (third["custom_id"], third["status"]) == ("last", "succeeded")
    for n, (result, (kind, (_, words, custom_id))) in enumerate(zip(bad, BAD_LINES.items(), strict=True)):
        assert result["status"] == "errored", kind
        assert result["error"]["type"] == "invalid_request_error", kind
        assert words in result["error"]["message"], kind
        if custom_id:
            assert result["custom_id"] == custom_id.replace("bad", f"bad{n}"), kind
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == b"".join(line + b"\n" for line in wrong)


@pytest.mark.parametrize("kind", ["not JSON", "max_tokens 0", "a duplicate"])
def test_strict_refuses_the_file_for_one_bad_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD + BAD_LINES[kind][0] + b"\n")
    strict = run(tmp_path, "in.jsonl", "-o", "out.jsonl", "--strict")
    assert strict.returncode == 4, strict.stderr
    assert b"line 2" in strict.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_line_over_the_limit_is_an_errored_result(tmp_path: Path) -> None:
    huge = b'{"custom_id":"huge","params":{"messages":[{"role":"user","content":"' + b"x" * 17 * 2**20 + b'"}]}}\n'
    (tmp_path / "in.jsonl").write_bytes(GOOD + huge + GOOD.replace(b'"good"', b'"last"'))
    assert run(tmp_path, "in.jsonl", "-o", "out.jsonl").returncode == 3
    lines = [json.loads(found) for found in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [line["status"] for line in lines] == ["succeeded", "errored", "succeeded"]
    assert "16 MiB" in lines[1]["error"]["message"]
    assert lines[1]["custom_id"] == "huge"  # as the line begins
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == huge


def test_the_summary_names_the_errors_file_which_holds_over_long_lines_too(tmp_path: Path) -> None:
    huge = b'{"custom_id":"huge","params":{"messages":[{"role":"user","content":"' + b"x" * 17 * 2**20 + b'"}]}}\n'
    (tmp_path / "in.jsonl").write_bytes(GOOD + huge)
    said = run(tmp_path, "in.jsonl", "-o", "out.jsonl").stderr
    assert b"1 line is rejected and does not run: line 2: the line is longer than 16 MiB" in said
    assert b"1 of 2 requests succeeded" in said
    assert b"; 1 rejected: out.jsonl.reasons.jsonl says why and out.jsonl.errors.jsonl has the lines; fix them" in said
    (tmp_path / "in.jsonl").write_bytes(GOOD + huge + b"bad\n")
    said = run(tmp_path, "in.jsonl", "-o", "out.jsonl", "--restart").stderr
    assert b"; 2 rejected: out.jsonl.reasons.jsonl says why and out.jsonl.errors.jsonl has the lines; fix" in said
    assert b"; fix them in the input, and the same command runs only those\n" in said


def test_blank_lines_a_bom_crlf_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    last = GOOD.replace(b'"good"', b'"last"').strip()
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n  \n\n" + last)
    assert run(tmp_path, "in.jsonl", "-o", "out.jsonl", "--strict").returncode == 0
    lines = [json.loads(found) for found in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [line["custom_id"] for line in lines] == ["good", "last"]


def test_a_custom_id_comes_back_byte_for_byte(tmp_path: Path) -> None:
    ids = ['quo"te', "new\nline", "emoji 🙂 ü", "x" * 10_000, "back\\slash", "\u2028", " "]
    turns = [{"role": "user", "content": "hi"}]
    lines = [json.dumps({"custom_id": custom_id, "params": {"messages": turns}}) for custom_id in ids]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert run(tmp_path, "in.jsonl", "-o", "out.jsonl").returncode == 0
    assert [json.loads(found)["custom_id"] for found in (tmp_path / "out.jsonl").read_bytes().splitlines()] == ids


def _make_file(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "blank":
        path.write_text("\n \n\n")
    elif kind == "UTF-16":
        path.write_text(GOOD.decode(), encoding="utf-16")
    elif kind == "zip":
        path.write_bytes(b"PK\x03\x04rest")
    elif kind == "truncated":
        path.write_bytes(gzip.compress(GOOD * 1000)[:-10])
    elif kind == "parquet":
        path.write_bytes(b"PAR1rest")
    elif kind == "unreadable":
        path.write_bytes(GOOD)
        path.chmod(0)


BAD_FILES = {
    "missing": "no such file",
    "directory": "is a directory",
    "empty": "is empty",
    "blank": "every line is blank",
    "UTF-16": "save it as UTF-8",
    "zip": "decompress it",
    "truncated": "is truncated",
    "parquet": "damaged",
    "unreadable": "check its permissions",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_and_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    _make_file(tmp_path / "in.jsonl", kind)
    done = run(tmp_path, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 4, done.stderr
    assert BAD_FILES[kind].encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    left = [path for path in (tmp_path / ".batchfile").rglob("*") if path.is_file() and ".store" not in path.parts]
    assert left == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("folder", "is a directory"),
        ("nowhere/out.jsonl", "does not exist; create it first"),
        ("in.jsonl", "is the input itself"),
        ("link.jsonl", "is the input itself"),
        ("/dev/null", "`-o -`"),
        ("out.csv", "use a name ending in .jsonl or .parquet"),
    ],
)
def test_an_output_that_can_not_be_written_is_refused_first(tmp_path: Path, output: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    done = run(tmp_path, "in.jsonl", "-o", output)
    assert done.returncode == 2, done.stderr
    assert words.encode() in done.stderr
    assert (tmp_path / "in.jsonl").read_bytes() == GOOD
    assert not (tmp_path / ".batchfile").exists()


@pytest.mark.parametrize("ending", [".errors.jsonl", ".receipt.json"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_run_writes_over_no_input_beside_its_output(tmp_path: Path, ending: str, is_link: bool) -> None:
    given = tmp_path / f"out.jsonl{ending}"
    given.write_bytes(GOOD)
    if is_link:
        os.link(given, tmp_path / "mended.jsonl")
        given = tmp_path / "mended.jsonl"
    done = run(tmp_path, given.name, "-o", "out.jsonl", "--restart")
    assert done.returncode == 2, done.stderr
    assert f"out.jsonl{ending}: is the input itself".encode() in done.stderr
    assert given.read_bytes() == GOOD


@pytest.mark.parametrize("ending", [".errors.jsonl", ".receipt.json"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_can_not_be_replaced_beside_the_output_is_said_before_anything_runs(
    tmp_path: Path, ending: str, make: Callable[[Path], None]
) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    make(tmp_path / f"out.jsonl{ending}")
    done = run(tmp_path, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 2, done.stderr
    assert f"out.jsonl{ending}: is not a regular file".encode() in done.stderr
    assert not (tmp_path / ".batchfile").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    (tmp_path / "folder").mkdir(mode=0o500)
    done = run(tmp_path, "in.jsonl", "-o", "folder/out.jsonl")
    assert done.returncode == 2
    assert b"is not writable" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in.jsonl"], "--output"),
        (["in.jsonl", "-o", "o", "--limit", "0"], "--limit"),
        (["in.jsonl", "-o", "o", "--engine", "gpt"], "--engine"),
        (["in.jsonl", "-o", "o", "--engine", "http"], "--base-url"),
        (["in.jsonl", "-o", "-", "--json"], "stdout"),
        (["in.jsonl", "-o", "o", "--frobnicate"], "--frobnicate"),
        (["in.jsonl", "-o", "o", "--stage", "nobody"], "sales_intel"),
    ],
)
def test_wrong_usage_is_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    done = run(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert words.encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_full_disk_is_said_plainly_and_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD * 1)
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
        "sys.argv = ['batchfile', 'run', '--engine', 'echo', 'in.jsonl.gz', '-o', 'out.jsonl']; "
        "from batchfile.cli import main; main()"
    )
    lines = (GOOD.replace(b'"good"', b'"%d"' % n) for n in range(200))
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHFILE_")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, env=kept, timeout=WAIT_S, check=False
    )
    assert done.returncode == 1, done.stderr
    assert b"full" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert run(tmp_path, "in.jsonl.gz", "-o", "out.jsonl").returncode == 0
