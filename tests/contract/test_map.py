"""`batchfile.map`: a table in, the same table with answers out; it resumes, and an unchanged call loads no engine."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest

import batchfile
from batchfile.errors import InvalidFile, OutputTaken, SettingsError

ROOT = Path(__file__).parents[2]
WAIT_S = 600.0  # only against a hang
NUM = 400
SLOW = {"BATCHFILE_ECHO_SLOTS": "1", "BATCHFILE_ECHO_LATENCY_S": "0.05"}
REVIEWS = {"id": ["r1", "r2", "r3"], "review": ["good", None, "bad"]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHFILE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "batchfile" / "map"


@pytest.fixture
def executions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "executions"
    monkeypatch.setenv("BATCHFILE_ECHO_EXECUTIONS", str(path))
    return path


def answered(data: Any, prompt: str | None = "{{ review }}", **more: Any) -> Any:
    return batchfile.map(data, prompt, engine="echo", progress=False, **more)


def numbers() -> list[dict[str, Any]]:
    return [{"n": number} for number in range(NUM)]


MAKERS: list[Callable[[dict[str, list[Any]]], Any]] = [pd.DataFrame, pl.DataFrame, pa.table, datasets.Dataset.from_dict]


@pytest.mark.parametrize("make", MAKERS)
def test_each_kind_of_table_comes_back_with_its_answers_in_order(make: Callable[..., Any]) -> None:
    data = make(REVIEWS)
    back = answered(data, "Classify: {{ review }}", into="label")
    assert type(back) is type(data)
    found = pl.DataFrame(back.with_format("arrow")[:] if isinstance(back, datasets.Dataset) else back)
    assert found.rows() == [
        ("r1", "good", "Classify: good", None),
        ("r2", None, "Classify: ", None),
        ("r3", "bad", "Classify: bad", None),
    ]


def test_rows_of_python_come_back_as_rows_and_need_no_arrow() -> None:
    code = (
        "import sys, batchfile\n"
        "rows = batchfile.map([{'a': 'x'}, {'b': 1}], '{{ a }}', engine='echo', progress=False)\n"
        "print(rows, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    rows = [{"a": "x", "answer": "x", "error": None}, {"b": 1, "answer": None, "error": "prompt: 'a' is undefined"}]
    assert done.stdout.strip() == f"{rows} False"


def test_a_file_of_rows_gives_rows_and_bad_ones_fail_alone() -> None:
    Path("in.csv").write_text("id,review\n1,good\n2\n3,\n")
    pl.DataFrame(REVIEWS).write_parquet("in.parquet")
    rows = answered("in.csv")
    assert [(row["id"], row["answer"]) for row in rows] == [("1", "good"), ("2", None), ("3", None)]
    assert "has 1 fields, but the header has 2" in rows[1]["error"]
    assert rows[2]["error"].endswith("the prompt is empty")
    assert [row["answer"] for row in answered(Path("in.parquet"))] == ["good", None, "bad"]
    Path("requests.jsonl").write_text('{"custom_id": "a", "params": {"messages": []}}\n')
    Path("results.jsonl").write_text('{"custom_id": "a", "response": {}, "error": null}\n')
    with pytest.raises(InvalidFile, match=r"is JSONL of requests, not of rows; run it with batchfile\.run"):
        answered("requests.jsonl")
    with pytest.raises(InvalidFile, match="is a file of results"):
        answered("results.jsonl")


class Review(pydantic.BaseModel):
    label: Literal["good", "bad"]
    stars: int | None = None
    tags: list[str] = []

    @pydantic.field_validator("stars")
    @classmethod
    def is_lucky(cls, stars: int | None) -> int | None:
        if stars == 13:
            raise ValueError("13 is unlucky")
        return stars


ANSWERS = ['{"label":"good","stars":4,"tags":["x"]}', '{"label":"fine"}', "no JSON", '{"label":"bad","stars":13}']


def test_answers_of_a_pydantic_model_become_typed_columns_and_wrong_ones_fail_alone() -> None:
    found = answered(pl.DataFrame({"a": ANSWERS}), "{{ a }}", schema=Review)
    types = {"label": pl.String, "stars": pl.Int64, "tags": pl.List(pl.String), "error": pl.String}
    assert dict(found.schema) == {"a": pl.String, **types}
    assert found.select("label", "stars", "tags").rows() == [("good", 4, ["x"]), *[(None, None, None)] * 3]
    assert found["error"][0] is None
    for part, error in zip(("answer.label", "is not JSON", "stars: .*13 is unlucky"), found["error"][1:], strict=True):
        assert pl.Series([error]).str.contains(part)[0], error
    whole = answered([{"a": ANSWERS[0]}], "{{ a }}", schema=Review, into="all")
    assert whole[0]["all"] == {"label": "good", "stars": 4, "tags": ["x"]}
    same = answered([{"a": ANSWERS[0]}], "{{ a }}", schema=Review.model_json_schema())
    assert (same[0]["label"], same[0]["stars"]) == ("good", 4)


def test_choices_are_the_only_answers() -> None:
    found = answered([{"a": '{"label": "good"}'}, {"a": "good?"}], "{{ a }}", choices=["good", "bad"], into="label")
    assert [row["label"] for row in found] == ["good", None]
    assert found[0]["error"] is None
    assert "is not JSON" in found[1]["error"]


@pytest.fixture
def num_executed(executions: Path) -> Callable[..., int]:
    """Makes the call; how many requests it ran."""

    def run(data: Any, prompt: str = "{{ review }}", **more: Any) -> int:
        before = len(executions.read_text().splitlines()) if executions.exists() else 0
        answered(data, prompt, **more)
        return len(executions.read_text().splitlines()) - before if executions.exists() else 0

    return run


def test_an_unchanged_call_runs_nothing_and_a_changed_one_is_a_new_run(
    num_executed: Callable[..., int], cache: Path
) -> None:
    rows = [{"review": "a", "other": 1}, {"review": "b", "other": 2}]
    assert num_executed(rows) == 2
    assert num_executed(rows) == 0
    assert num_executed(pl.DataFrame(rows)) == 0, "the same rows of another kind of table"
    assert num_executed([{**row, "other": 5} for row in rows]) == 0, "a column that the prompt does not use"
    assert num_executed(rows[::-1]) == 0, "the same prompts in another order"
    assert num_executed(rows, "Classify {{ review }}") == 2
    assert num_executed(rows, model="other") == 2
    assert num_executed(rows, system="{{ other }}") == 2
    assert num_executed(rows, temperature=0.5) == 2
    assert num_executed(rows, restart=True) == 2
    assert num_executed(rows, into="label") == 0, "only the column has another name"
    assert num_executed(rows, into="label", choices=["a", "b"]) >= 2, "a request names the column of choices"
    assert len([*cache.iterdir()]) == 6
    assert num_executed(rows, store="mine") == 2
    assert num_executed(rows, store="mine") == 0


def test_after_a_change_of_the_rows_only_the_new_prompts_run(
    num_executed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = numbers()[:100]
    assert num_executed(rows, "{{ n }}", temperature=1.0) == 100
    changed = [{"n": 1000}, *rows[50:], {"n": 60}]
    assert num_executed(changed, "{{ n }}", temperature=1.0) == 2, "a repeated row is a request of its own"
    assert [row["answer"] for row in answered(changed, "{{ n }}", temperature=1.0)] == [
        str(row["n"]) for row in changed
    ]
    batchfile.map([*rows, {"n": 1000}, {"n": 1}], "{{ n }}", engine="echo", temperature=1.0)
    said = capsys.readouterr().err
    assert "101 of 102 reused\n" in said, "from both earlier calls"
    assert num_executed(rows, "{{ n }}", temperature=1.0) == 0, "the first call is complete as it was"
    assert num_executed(rows[:7], "{{ n }}", temperature=1.0, restart=True) == 7
    Path("in.csv").write_text("n,other\n5,a\n2000,b\n")
    assert num_executed("in.csv", "{{ n }}", temperature=1.0) == 1, "a file has the same prompts"


def test_runs_in_a_bucket_share_their_answers_too(ministack_url: str, num_executed: Callable[..., int]) -> None:
    store = f"s3://contract/map-{uuid.uuid4().hex}?endpoint={ministack_url}"
    assert num_executed([{"review": "a"}, {"review": "b"}], store=store) == 2
    assert num_executed([{"review": "b"}, {"review": "c"}], store=store) == 1
    assert num_executed([{"review": "a"}, {"review": "b"}], store=store) == 0


def test_what_an_interrupted_call_has_answered_is_kept_for_changed_rows(
    executions: Path, cache: Path, num_executed: Callable[..., int]
) -> None:
    code = f"import batchfile\nbatchfile.map([{{'n': n}} for n in range({NUM})], '{{{{ n }}}}', engine='echo')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **SLOW})
    wait_until(lambda: num_succeeded(cache) > 0)
    assert num_executed([{"n": 0}, {"n": -1}], "{{ n }}") >= 1, "another process works on the first call, which goes on"
    assert process.poll() is None
    process.kill()
    process.wait()
    num_kept = num_succeeded(cache, NUM)
    assert num_executed([*numbers(), {"n": -2}], "{{ n }}") <= NUM + 1 - num_kept
    assert num_executed(numbers(), "{{ n }}") == 0, "the first call takes them over in its turn"


def test_an_interrupted_call_raises_and_the_same_call_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], executions: Path
) -> None:
    for name, value in SLOW.items():
        monkeypatch.setenv(name, value)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(executions.exists)
        signal.pthread_kill(main, signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of tests in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        batchfile.map(numbers(), "{{ n }}", engine="echo", grace_s=0)
    thread.join()
    said = capsys.readouterr().err
    assert "stopping: finishing the requests in flight" in said
    assert "stopped; what has finished is kept, and the same call resumes\n" in said
    monkeypatch.setenv("BATCHFILE_ECHO_LATENCY_S", "0")
    found = batchfile.map(numbers(), "{{ n }}", engine="echo")
    assert re.search(rf"^resuming batch_\w+: \d+ of {NUM} rows are done$", capsys.readouterr().err, re.MULTILINE)
    assert [row["answer"] for row in found] == [str(number) for number in range(NUM)]


def test_it_says_how_the_call_ended_and_why_the_first_rows_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def said(**more: Any) -> str:
        batchfile.map([{"review": text} for text in ("good", "", "")], "{{ review }}", engine="echo", **more)
        return re.sub(r"\d\.\d s", "0.1 s", capsys.readouterr().err)

    failed = "; the column error says why\n2 rows failed: the prompt is empty; for example row 2\n"
    assert said().endswith(f"\n3 rows: 1 answered, 2 failed; 1 tokens in, 1 tokens out; 0.1 s{failed}")
    assert said() == f"3 rows: 1 answered, 2 failed; 1 tokens in, 1 tokens out; kept from an earlier call{failed}"
    assert said(progress=False) == ""


def test_a_killed_process_loses_nothing_that_had_finished(executions: Path, cache: Path) -> None:
    code = f"import batchfile\nbatchfile.map([{{'n': n}} for n in range({NUM})], '{{{{ n }}}}', engine='echo')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **SLOW})
    wait_until(lambda: num_succeeded(cache) > 0)
    with pytest.raises(OutputTaken, match="the same rows are being answered by another call; wait for it"):
        answered(numbers(), "{{ n }}")
    process.kill()
    process.wait()
    num_kept, before = num_succeeded(cache), executions.read_text().splitlines()
    found = answered(numbers(), "{{ n }}")
    assert [row["answer"] for row in found] == [str(number) for number in range(NUM)]
    assert len(executions.read_text().splitlines()) - len(before) <= NUM - num_kept, "what had finished ran once"


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def num_succeeded(cache: Path, total: int = NUM) -> int:
    """Of the run in the cache with so many rows."""
    try:
        with batchfile.connect(next(cache.glob("map-*/.batchfile"))) as client:
            seen = (batch.last_status for batch in client.batches())
            return next(status.counts.succeeded for status in seen if status.total == total)
    except (StopIteration, batchfile.BatchfileError):
        return 0


def test_ids_are_numbers_unless_a_column_is_named() -> None:
    rows = [{"id": 7, "review": "a"}, {"id": 7, "review": "b"}]
    assert [row["error"] for row in answered(rows)] == [None, None]
    found = answered(rows, id_column="id")
    assert (found[0]["answer"], found[1]["answer"]) == ("a", None)
    assert "'7' was used on line 1; make it unique" in found[1]["error"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"prompt": "{{ revew }}"},
            InvalidFile,
            r"the table: has no column 'revew', which prompt uses; .*did you mean r",
        ),
        (
            {"prompt": None},
            InvalidFile,
            r"has no column prompt or messages; pass a prompt over its columns: prompt=\.\.\.",
        ),
        ({"into": "id"}, InvalidFile, "has a column 'id' already; name another one with into"),
        ({"id_column": "key"}, InvalidFile, "has no column 'key'; its columns are id, review"),
        ({"data": pd.DataFrame(REVIEWS).iloc[:0]}, InvalidFile, "the table: has no rows"),
        ({"data": pd.DataFrame(index=[1, 2])}, InvalidFile, "the table: has no columns"),
        ({"prompt": "{{ review"}, SettingsError, "prompt: line 1: unexpected"),
        ({"choices": "good,bad"}, SettingsError, r"choices: 'good,bad' is not a list of texts, such as \['good'"),
        ({"choices": []}, SettingsError, r"choices: \[\] is not a list of texts"),
        ({"choices": {"good", "bad"}}, SettingsError, "is not a list of texts"),
        ({"choices": iter(["good", "bad"])}, SettingsError, "is not a list of texts"),
        ({"prompt": " "}, SettingsError, "prompt: is empty; write a prompt over the columns"),
        ({"choices": ["a", "a"]}, SettingsError, "choices: each must be different and not empty, got 'a, a'"),
        ({"choices": ["a"], "schema": {}}, SettingsError, "choices and schema cannot be combined"),
        ({"schema": "review.json"}, SettingsError, "is not a Pydantic model or a JSON schema as a dict"),
        ({"schema": {"type": "nope"}}, SettingsError, 'schema: is not a valid JSON schema: type: "nope" is not'),
        ({"limit": 1}, TypeError, r"^map\(\) got an unexpected keyword argument 'limit'$"),
        ({"temperature": 3}, SettingsError, "temperature: 3 must be from 0 to 2"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    options: dict[str, Any], error: type[Exception], message: str, executions: Path, cache: Path
) -> None:
    data = options.pop("data", pd.DataFrame(REVIEWS))
    with pytest.raises(error, match=message):
        answered(data, **{"prompt": "{{ review }}", **options})
    assert not executions.exists()
    assert not cache.exists() or not [*cache.iterdir()]


def test_nested_and_missing_cells_are_rendered_and_an_empty_prompt_fails_its_row() -> None:
    data = pl.DataFrame({"a": [{"b": [1, None]}, None], "f": [1.5, float("nan")]})
    found = answered(data, "{{ a }}{{ f }}")
    assert found["answer"].to_list() == ['{"b": [1, null]}1.5', None]
    assert found["error"].to_list() == [None, "the prompt is empty"]
    constant = answered(data, "Hi", into="hi")
    assert constant["hi"].to_list() == ["Hi", "Hi"]


def test_what_can_be_read_only_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"id,review\n1,good\n")))
    with pytest.raises(InvalidFile, match="stdin: map reads files of this machine only; download it and pass its path"):
        batchfile.map("-", "{{ review }}", engine="echo")


def test_answers_of_a_model_whose_files_have_changed_are_not_taken_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"review": "good"}]
    answered(rows)
    monkeypatch.setenv("BATCHFILE_ECHO_GUIDED", "x")  # as another chat template would
    with pytest.raises(OutputTaken) as caught:
        answered(rows)
    assert str(caught.value).startswith(
        "an earlier call for the same rows has 1 finished answer of a run that differs: BATCHFILE_ECHO_GUIDED was not "
    )
    assert str(caught.value).endswith(". Pass another folder as store, or add restart=True to discard them")
    assert answered(rows, restart=True) == answered(rows)
