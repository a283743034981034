"""Results of requests that were run again take the place of those that failed, whatever the files hold."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import batchfile
from batchfile.errors import BatchfileError, InvalidFile, OutputTaken, SettingsError
from tests.helpers.local import merge, outputs

pytestmark = pytest.mark.slow


def result(name: str | None, status: str = "succeeded", text: str = "a") -> dict[str, Any]:
    return {"custom_id": name, "status": status, "message": text}


def openai(name: str, status: int = 200) -> dict[str, Any]:
    return {"id": "x", "custom_id": name, "response": {"status_code": status, "body": {}}, "error": None}


def written(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_failed_results_are_replaced_and_the_order_stays(tmp_path: Path) -> None:
    out = written(
        tmp_path / "out.jsonl", result("a"), result("b", "errored"), result(None, "errored"), result("c", "expired")
    )
    fixed = written(tmp_path / "fixed.jsonl", result("c", text="new"), result("b", "errored", "again"))
    done = merge(out, fixed)
    assert read(out) == [result("a"), result("b", "errored", "again"), result(None, "errored"), result("c", text="new")]
    assert (done.num_replaced, done.num_kept, done.counts.succeeded, done.counts.errored) == (2, 0, 2, 2)
    data = Path(out).read_bytes()
    merge(out, fixed)
    assert Path(out).read_bytes() == data, "the same merge again changes nothing"


def test_the_bytes_of_results_stay_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_bytes(
        b'{ "custom_id":"a","status":"succeeded" ,"z":1e5}\r\n\n{"custom_id":"b","status":"errored"}'
    )
    (tmp_path / "fixed.jsonl").write_bytes(b'{"status":"succeeded",  "custom_id":"b","message":"\xc3\xa9"}')
    merge(str(tmp_path / "out.jsonl"), str(tmp_path / "fixed.jsonl"), str(tmp_path / "new.jsonl"))
    assert (tmp_path / "new.jsonl").read_bytes() == (
        b'{ "custom_id":"a","status":"succeeded" ,"z":1e5}\n'
        b'{"status":"succeeded",  "custom_id":"b","message":"\xc3\xa9"}\n'
    )
    assert b"errored" in (tmp_path / "out.jsonl").read_bytes(), "with -o, OUT stays"


def test_a_success_is_not_replaced_by_a_failure(tmp_path: Path) -> None:
    out = written(tmp_path / "out.jsonl", result("a"), result("b"))
    done = merge(out, written(tmp_path / "fixed.jsonl", result("a", "errored"), result("b", text="new")))
    assert read(out) == [result("a"), result("b", text="new")]
    assert (done.num_replaced, done.num_kept) == (1, 1)


def test_results_in_the_openai_format_are_merged_too(tmp_path: Path) -> None:
    out = written(tmp_path / "out.jsonl", openai("a"), openai("b", 400), {**openai("c"), "response": None})
    done = merge(out, written(tmp_path / "fixed.jsonl", openai("b"), openai("c")))
    assert read(out) == [openai("a"), openai("b"), openai("c")]
    assert done.counts.succeeded == 3


@pytest.mark.parametrize(
    ("old", "added", "message"),
    [
        ([result("a")], [result("b"), *(result(f"n{n}") for n in range(5))], "'b', 'n0', 'n1' and 3 more"),
        ([result("a")], [result("a"), result("a")], "line 2: 'a' is there twice"),
        ([result("a"), result("a", "errored")], [result("a")], "line 2: 'a' is there twice, so it is unknown"),
        ([result("a")], [result(None)], "line 1: the result has no custom_id"),
        (
            [result("a")],
            [openai("a")],
            r"out\.jsonl: line 1: is a result in the native format, and others",
        ),
        ([result("a")], [{"custom_id": "a", "params": {}}], r"fixed\.jsonl: line 1: is not a result"),
        ([{"review": "good", "answer": "yes"}], [result("a")], r"out\.jsonl: line 1: is not a result"),
        ([result("a")], [[1]], "line 1: is not a result"),
        ([result("a")], [], "has no results"),
    ],
)
def test_what_cannot_be_merged_changes_nothing(
    tmp_path: Path, old: list[object], added: list[object], message: str
) -> None:
    out, fixed = written(tmp_path / "out.jsonl", *old), written(tmp_path / "fixed.jsonl", *added)
    before = Path(out).read_bytes()
    with pytest.raises(InvalidFile, match=message):
        merge(out, fixed)
    assert Path(out).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    "data", [b"id,review\na,good\n", b"PAR1\x15\x04\xff\n", gzip.compress(b"{}", mtime=0), b"text\n"]
)
def test_of_tables_it_is_said_what_to_do_instead(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "out").write_bytes(data)
    out, fixed = str(tmp_path / "out"), written(tmp_path / "fixed.jsonl", result("a"))
    for pair in ((out, fixed), (fixed, out)):
        with pytest.raises(InvalidFile, match="fix the input and run the same command again"):
            merge(*pair)


def test_places_that_cannot_be_written_or_are_in_use_are_rejected(tmp_path: Path) -> None:
    out, fixed = written(tmp_path / "out.jsonl", result("a")), written(tmp_path / "fixed.jsonl", result("a"))
    with pytest.raises(InvalidFile, match="no such file"):
        merge(out, str(tmp_path / "missing.jsonl"))
    with pytest.raises(InvalidFile, match="merged into itself"):
        merge(out, out)
    with pytest.raises(InvalidFile, match="merged into itself"):
        merge(out, fixed, fixed)
    with pytest.raises(SettingsError, match="does not exist"):
        merge(out, fixed, str(tmp_path / "no" / "new.jsonl"))
    taken: type[BatchfileError] = OutputTaken
    with pytest.raises(taken, match="exists"):
        merge(out, fixed, written(tmp_path / "new.jsonl", result("other")))
    with outputs.lock_output(out), pytest.raises(taken, match="another batchfile process is writing"):
        merge(out, fixed)


def test_the_receipt_and_the_errors_file_follow_and_the_run_keeps_its_merged_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hi"}]}} for n in range(4)]
    for row in rows[1:3]:
        row["params"] = {"messages": []}
    options: dict[str, Any] = {"engine": "echo", "progress": False}
    first = batchfile.run(written(tmp_path / "in.jsonl", *rows), "out.jsonl", **options)
    assert first.errors is not None
    assert first.errors.lines == 2
    rows[1]["params"] = rows[0]["params"]
    batchfile.run(written(tmp_path / "again.jsonl", rows[1]), "fixed.jsonl", **options)
    done = merge("out.jsonl", "fixed.jsonl")
    assert done.has_receipt
    assert [row["status"] for row in read("out.jsonl")] == ["succeeded", "succeeded", "errored", "succeeded"]
    assert [row["custom_id"] for row in read("out.jsonl.errors.jsonl")] == ["r2"]
    assert [row["custom_id"] for row in read("out.jsonl.reasons.jsonl")] == ["r2"]
    merged = Path("out.jsonl").read_bytes()
    receipt = batchfile.run("in.jsonl", "out.jsonl", **options)
    assert Path("out.jsonl").read_bytes() == merged, "the same command takes the merged results for its own"
    assert (receipt.merged, receipt.counts.succeeded, receipt.errors and receipt.errors.lines) == (1, 3, 1)
    assert receipt.reasons is not None
    assert (receipt.counts.rejected, receipt.reasons.lines) == (1, 1)
    assert [(group.custom_id, group.num_requests) for group in receipt.failures] == [("r2", 1)]
    rows[2]["params"] = rows[0]["params"]
    batchfile.run(written(tmp_path / "again.jsonl", rows[2]), "fixed2.jsonl", **options)
    merge("out.jsonl", "fixed2.jsonl")
    assert not Path("out.jsonl.errors.jsonl").exists()
    assert not Path("out.jsonl.reasons.jsonl").exists()
    receipt = batchfile.run("in.jsonl", "out.jsonl", **options)
    assert (receipt.merged, receipt.is_all_succeeded, receipt.errors) == (2, True, None)
    assert (receipt.reasons, receipt.failures, receipt.counts.rejected) == (None, (), 0)


Rows = list[dict[str, Any]]


class Output:
    """An output of which request r2 failed, in the current folder; its answer was merged in."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, fixed: Rows | None = None) -> None:
        monkeypatch.chdir(folder)
        self.rows = [
            {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"hi {n}"}]}} for n in range(4)
        ]
        self.bad = {"custom_id": "r2", "params": {}}
        self.run(*self.rows[:2], self.bad)
        if fixed is None:
            batchfile.run(written(folder / "again.jsonl", self.rows[2]), "fixed.jsonl", engine="echo")
        else:
            written(folder / "fixed.jsonl", *fixed)
        merge("out.jsonl", "fixed.jsonl")
        self.merged = Path("out.jsonl").read_bytes()

    def run(self, *rows: dict[str, Any], **options: Any) -> batchfile.Receipt:
        receipt: batchfile.Receipt = batchfile.run(
            written(Path("in.jsonl"), *rows), "out.jsonl", engine="echo", **options
        )
        return receipt


MERGED = [{"custom_id": "r2", "status": "succeeded", "message": "by hand"}]
COPIED = "out.jsonl has 1 merged result that this run does not have; it is kept as out.jsonl.edited"


def test_a_later_run_of_a_changed_input_keeps_merged_answers_of_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Output(tmp_path, monkeypatch)
    for more in ([out.rows[3]], [out.rows[3], {**out.rows[3], "custom_id": "r4"}]):
        receipt = out.run(*out.rows[:2], out.bad, *more)
        assert receipt.is_all_succeeded
        assert receipt.reused == 2 + len(more)
        assert len(receipt.reused_from) == 1
        assert Path("out.jsonl").read_bytes().startswith(out.merged)
    assert not Path("out.jsonl.edited").exists()


def test_merged_answers_to_requests_that_changed_too_are_kept_as_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Output(tmp_path, monkeypatch)
    receipt = out.run(*out.rows[:2], {**out.rows[3], "custom_id": "r2"})
    assert receipt.reused == 2
    assert read("out.jsonl")[2]["message"]["content"][0]["text"] == "hi 3"
    assert Path("out.jsonl.edited").read_bytes() == out.merged
    assert COPIED in capsys.readouterr().err


def test_merged_answers_that_another_model_may_have_made_are_kept_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (
        b'{"custom_id":"r2","status":"succeeded","message":{"content":[{"type":"text","text":"made elsewhere"}]},'
        b'"stop_reason":"end_turn","model":"m","usage":null,"error":null}'
    )
    out = Output(tmp_path, monkeypatch, fixed=[json.loads(made)])
    changed = [*out.rows[:2], out.bad, out.rows[3]]
    with pytest.raises(OutputTaken, match=r"1 merged answer that another model may have made\. Add reuse=True"):
        out.run(*changed)
    assert Path("out.jsonl").read_bytes() == out.merged
    merge("out.jsonl", str(Path("raw.jsonl").write_bytes(made) and "raw.jsonl"))
    for more in ([], [{**out.rows[3], "custom_id": "r4"}]):
        receipt = out.run(*changed, *more, reuse=True)
        assert (receipt.is_all_succeeded, receipt.reused) == (True, 3 + len(more))
        assert Path("out.jsonl").read_bytes().splitlines()[2] == made
    assert not Path("out.jsonl.edited").exists()


def test_a_result_that_was_written_by_hand_is_kept_as_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Output(tmp_path, monkeypatch, fixed=MERGED)
    assert out.run(*out.rows[:2], out.bad, out.rows[3], reuse=True).counts.succeeded == 3
    assert Path("out.jsonl.edited").read_bytes() == out.merged
    assert COPIED in capsys.readouterr().err


def test_another_output_can_take_merged_answers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Output(tmp_path, monkeypatch)
    receipt = batchfile.run("in.jsonl", "other.jsonl", engine="echo", reuse_from="out.jsonl")
    assert (receipt.is_all_succeeded, receipt.reused, len(receipt.reused_from)) == (True, 3, 1)
    assert Path("other.jsonl").read_bytes() == out.merged


def test_an_interrupted_run_keeps_merged_answers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Output(tmp_path, monkeypatch)
    changed = [*out.rows[:2], out.bad, out.rows[3]]
    with monkeypatch.context() as patched:
        patched.setattr("batchfile.local.api.work_on", lambda *_, **__: None)
        with pytest.raises(BatchfileError, match="stopped"):
            out.run(*changed)
    assert Path("out.jsonl").read_bytes() == out.merged
    receipt = out.run(*changed, {**out.rows[3], "custom_id": "r4"})
    assert (receipt.is_all_succeeded, receipt.reused) == (True, 3)
    assert not Path("out.jsonl.edited").exists()


def test_merged_results_in_the_openai_format_are_said_to_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = [[{"role": "user", "content": "hi"}], [], [{"role": "user", "content": "more"}]]
    bodies = [{"model": "m", "messages": messages} for messages in said]
    rows: Rows = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate(bodies)
    ]
    fixed = [{**rows[1], "body": rows[0]["body"]}]
    batchfile.run(written(tmp_path / "in.jsonl", *rows[:2]), "out.jsonl", engine="echo")
    batchfile.run(written(tmp_path / "again.jsonl", *fixed), "fixed.jsonl", engine="echo")
    merge("out.jsonl", "fixed.jsonl")
    merged = Path("out.jsonl").read_bytes()
    receipt = batchfile.run(written(tmp_path / "in.jsonl", *rows), "out.jsonl", engine="echo")
    assert (receipt.counts.succeeded, receipt.reused) == (2, 1)
    assert Path("out.jsonl.edited").read_bytes() == merged
    told = capsys.readouterr().err
    assert "1 merged result in OpenAI's format, which cannot be taken over: these requests run again" in told
    assert COPIED in told


def test_requests_that_failed_again_have_the_newer_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = [{"custom_id": name, "params": {"messages": []}} for name in "ab"]
    first = batchfile.run(written(tmp_path / "in.jsonl", *bad), "out.jsonl", engine="echo", progress=False)
    fixed = {"custom_id": "a", "status": "errored", "error": {"type": "model_error", "message": "said 7 things"}}
    edited = Path("out.jsonl.reasons.jsonl")
    edited.write_bytes(edited.read_bytes() + b"a note of mine\n")
    merge("out.jsonl", written(tmp_path / "fixed.jsonl", fixed))
    receipt = batchfile.run("in.jsonl", "out.jsonl", engine="echo", progress=False)
    assert (first.counts.rejected, receipt.counts.rejected, receipt.counts.errored) == (2, 1, 2)
    assert [(group.type, group.line) for group in receipt.failures] == [
        ("model_error", 1),
        ("invalid_request_error", 2),
    ]
    assert edited.read_text().splitlines()[2] == "a note of mine"
