"""Runs of different outputs in one store: they share no answer, unless one names the other."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import batchfile
from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from tests.helpers.cli import root

NUM = 5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHFILE_ECHO_EXECUTIONS", "executed")
    put(*range(NUM))
    return tmp_path


def put(*numbers: int) -> None:
    rows = ({"custom_id": f"{n}", "params": {"messages": [{"role": "user", "content": f"lead {n}"}]}} for n in numbers)
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def num_run(output: str, **options: str | float | bool) -> int:
    log = Path("executed")
    before = len(log.read_text().splitlines()) if log.exists() else 0
    batchfile.run("in.jsonl", output, engine="echo", **options)  # type: ignore[call-overload]
    return len(log.read_text().splitlines()) - before


def test_each_output_has_its_own_samples() -> None:
    assert num_run("a.jsonl", temperature=1.0) == NUM
    assert num_run("b.jsonl", temperature=1.0) == NUM
    assert num_run("c.jsonl", temperature=1.0, reuse=True) == NUM


def test_the_answers_of_an_output_that_is_named_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    num_run("a.jsonl")
    put(*range(NUM + 2))
    assert num_run("b.jsonl", reuse_from="a.jsonl") == 2
    assert "5 of 7 reused\n" in capsys.readouterr().err
    assert num_run("b.jsonl", reuse_from="a.jsonl") == 0, "the same command has nothing left to do"
    put(100)
    assert num_run("d.jsonl", reuse_from="a.jsonl") == 1
    told = "nothing was reused: no request is the same as one that has succeeded in a.jsonl"
    assert told in capsys.readouterr().err
    put(*range(NUM + 2))
    assert num_run("b.jsonl", reuse_from="a.jsonl", restart=True) == 2


def test_what_cannot_be_named_changes_nothing() -> None:
    num_run("a.jsonl")
    with pytest.raises(InvalidFile, match=r"reuse_from: c.jsonl is not the output of a run in .*one folder$"):
        num_run("b.jsonl", reuse_from="c.jsonl")
    with pytest.raises(
        InvalidFile, match=r"no answer of a.jsonl can be reused: the model or its settings have changed"
    ):
        num_run("b.jsonl", reuse_from="a.jsonl", model="other")
    with pytest.raises(SettingsError, match=r"reuse: 'a.jsonl' must be True or False; reuse_from names another output"):
        num_run("b.jsonl", reuse="a.jsonl")
    assert num_run("b.jsonl") == NUM


def test_answers_of_its_own_and_of_another_output_are_kept_together() -> None:
    num_run("a.jsonl")
    put(*range(NUM, NUM + 3))
    num_run("b.jsonl")
    put(*range(NUM + 4))
    with pytest.raises(OutputTaken, match="the default temperature was not given"):
        num_run("b.jsonl", temperature=0.5)
    assert num_run("b.jsonl", reuse_from="a.jsonl") == 1


@pytest.mark.parametrize("name", ["batch_4f2a91c07d3e", "auto"])
def test_a_batch_after_reuse_is_said_to_be_an_input(name: str) -> None:
    done = CliRunner().invoke(root, ["run", "in.jsonl", "--reuse", name, "-o", "new.jsonl", "--engine", "echo"])
    assert done.exit_code == 2
    assert f"--reuse takes no value here, so {name} is read as an input. " in done.output
    assert "--reuse-from OUT2 keeps those of another output" in done.output
    assert not Path("new.jsonl").exists()


def test_a_receipt_counts_reused_results_by_batch() -> None:
    first = batchfile.run("in.jsonl", "a.jsonl", engine="echo", progress=False)
    put(*range(NUM + 1))
    second = batchfile.run("in.jsonl", "a.jsonl", engine="echo", progress=False)
    assert (second.reused, second.reused_from) == (NUM, {first.batch_id: NUM})
    assert json.loads(Path("a.jsonl.receipt.json").read_text())["reused_from"] == {first.batch_id: NUM}
