"""Which files a run into a folder reads, what their results are called, and which folders it accepts."""

from pathlib import Path

import pytest

from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from batchfile.local.folder import is_several, output_name, plan_folder

LINE = '{"custom_id":"a","params":{"messages":[{"role":"user","content":"hi"}]}}\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(LINE)


def planned(*inputs: str, output: str = "out/", is_rows: bool = False) -> list[tuple[str, str]]:
    """Each input, and the name of its results."""
    plan = plan_folder(inputs, output, restart=False, is_rows=is_rows)
    assert {str(Path(target.output).parent) for target in plan.targets} == {plan.folder}
    return [(target.input, Path(target.output).name) for target in plan.targets]


@pytest.mark.parametrize(
    ("inputs", "output", "wanted"),
    [
        (["a.jsonl"], "out.jsonl", False),
        (["a.jsonl"], "-", False),
        (["-"], "out.jsonl", False),
        (["a.jsonl"], "out", False),  # a file without an ending
        (["a.jsonl"], "out/", True),
        (["a.jsonl", "b.jsonl"], "out.jsonl", True),
        (["*.jsonl"], "out", True),
        (["folder"], "out", True),
        (["folder"], "out.jsonl", False),
        (["[odd].jsonl"], "out.jsonl", False),  # there is a file with this name
        (["https://host/a.jsonl?q=1"], "out.jsonl", False),
    ],
)
def test_results_go_into_a_folder_for_several_inputs_or_where_the_output_says_so(
    inputs: list[str], output: str, wanted: bool
) -> None:
    make("folder/a.jsonl", "[odd].jsonl")
    assert is_several(inputs, output) == wanted


def test_files_folders_and_patterns_give_each_file_once_in_the_order_named() -> None:
    make("b.jsonl", "more/y.jsonl", "more/x.jsonl", "more/.hidden.jsonl", "folder/p.parquet", "folder/n.NDJSON")
    assert planned("b.jsonl", "more/*.jsonl", "folder/", "./b.jsonl", "more/x.jsonl") == [
        ("b.jsonl", "b.jsonl"),
        ("more/x.jsonl", "x.jsonl"),
        ("more/y.jsonl", "y.jsonl"),
        ("folder/n.NDJSON", "n.NDJSON"),
        ("folder/p.parquet", "p.parquet"),
    ]


def test_a_pattern_may_name_folders_and_descend() -> None:
    make("data/one/a.jsonl", "data/two/b.jsonl")
    assert [name for name, _ in planned("data/*")] == ["data/one/a.jsonl", "data/two/b.jsonl"]
    assert [name for name, _ in planned("data/**/*.jsonl")] == ["data/one/a.jsonl", "data/two/b.jsonl"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("in/a.jsonl", "a.jsonl"),
        ("a.jsonl.gz", "a.jsonl"),
        ("A.JSONL.ZST", "A.JSONL"),
        ("a.parquet", "a.parquet"),
        ("requests", "requests"),
        ("table.xlsx", "table.xlsx.jsonl"),  # results cannot be written in this format
        ("array.json.gz", "array.json.jsonl"),
        ("https://me:pw@host/x/a%20b.jsonl.gz?signature=s", "a b.jsonl"),
        ("s3://bucket/x/a.jsonl?endpoint=http://host", "a.jsonl"),
    ],
)
def test_results_have_the_name_of_the_input_without_its_compression(name: str, wanted: str) -> None:
    assert output_name(name) == wanted


def test_other_files_of_a_folder_are_skipped_and_named() -> None:
    make("in/a.jsonl", "in/README.md", "in/sub/b.jsonl", *(f"in/{n}.csv" for n in range(5)))
    for n in range(5):
        Path(f"in/{n}.csv").write_text("id,review\n1,good\n")
    plan = plan_folder(["in"], "out/", restart=False)
    assert [target.input for target in plan.targets] == ["in/a.jsonl"]
    (note,) = plan.notes
    assert note.startswith("in: skipped 0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 2 more; files of requests are named ")
    assert note.endswith(
        "in/0.csv: is CSV with the columns id, review, not requests; write a prompt over its columns: "
        "`batchfile run in/0.csv --prompt '... {{ review }} ...' -o answers.csv`"
    )


def test_rows_and_text_of_a_folder_are_inputs_where_these_are_wanted() -> None:
    make("in/a.jsonl", "in/array.json", "in/README.md", "in/broken.json", "in/empty.csv")
    Path("in/array.json").write_text(f"[{LINE}]")
    Path("in/broken.json").write_text("[1, 2]")
    Path("in/empty.csv").write_text("")
    for name, text in {
        "a.csv": "x,y\n1,2\n",
        "b.TSV": "x\ty\n1\t2\n",
        "t.txt": "Hello\n",
        "r.json": '[{"x": 1}]',
    }.items():
        Path("in", name).write_text(text)
    assert planned("in") == [("in/a.jsonl", "a.jsonl"), ("in/array.json", "array.json.jsonl")]
    assert planned("in", is_rows=True) == [
        ("in/a.csv", "a.csv"),
        ("in/a.jsonl", "a.jsonl"),
        ("in/b.TSV", "b.TSV"),
        ("in/r.json", "r.json.jsonl"),
        ("in/t.txt", "t.txt"),
    ]


def test_a_folder_of_rows_alone_is_rejected_with_the_command_that_runs_one() -> None:
    make("in/a.txt")
    Path("in/a.txt").write_text("Hello\n")
    with pytest.raises(
        InvalidFile, match=r"in: has no file of requests .* is plain text, which `batchfile run in/a.txt -o"
    ):
        plan_folder(["in"], "out/", restart=False)


def test_the_results_of_an_earlier_run_in_a_folder_are_not_its_inputs() -> None:
    make("in/a.jsonl", "in/out.jsonl", "in/out.jsonl.receipt.json", "in/out.jsonl.errors.jsonl")
    assert [name for name, _ in planned("in")] == ["in/a.jsonl"]


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (["in/*.csv"], InvalidFile, "in/*.csv: no file matches this pattern"),
        (["empty"], InvalidFile, "empty: has no file of requests in it; they are named *.jsonl, *.ndjson"),
        ([], InvalidFile, "the list is empty"),
        (["in/a.jsonl", "-"], SettingsError, "-: stdin cannot be one of several inputs"),
        (["in/a.jsonl", "more/a.jsonl"], SettingsError, "in/a.jsonl and more/a.jsonl: both would write "),
        (["in/a.jsonl", "in/a.jsonl.gz"], SettingsError, "in/a.jsonl and in/a.jsonl.gz: both would write "),
        (["in/a.jsonl", "in/a.jsonl.errors.jsonl"], SettingsError, "out/a.jsonl.errors.jsonl; rename one"),
        (["https://host/"], SettingsError, "https://host/: has no file name"),
        (["out/a.jsonl"], SettingsError, "out/a.jsonl: is the input itself"),
    ],
)
def test_inputs_that_cannot_be_told_apart_or_found_are_rejected_together(
    inputs: list[str], error: type[Exception], words: str
) -> None:
    make("in/a.jsonl", "in/a.jsonl.gz", "in/a.jsonl.errors.jsonl", "more/a.jsonl", "empty/x.txt", "out/a.jsonl")
    with pytest.raises(error) as raised:
        plan_folder(inputs, "out", restart=False)
    assert words in str(raised.value)


@pytest.mark.parametrize("output", ["-", "there.jsonl", "there", "new.jsonl"])
def test_an_output_that_is_a_file_cannot_hold_the_results_of_several_inputs(output: str) -> None:
    make("in/a.jsonl", "in/b.jsonl", "there.jsonl", "there")
    with pytest.raises(SettingsError, match="is a file; several inputs need a folder as the output, such as -o"):
        plan_folder(["in"], output, restart=False)


def test_a_missing_folder_is_created_but_not_the_folder_around_it() -> None:
    make("in/a.jsonl")
    assert planned("in", output="new")
    assert Path("new").is_dir()
    with pytest.raises(SettingsError, match="nowhere does not exist; create it first"):
        plan_folder(["in"], "nowhere/new/", restart=False)


@pytest.mark.parametrize(
    "names",
    [
        ["out/.hidden"],
        ["out/.batchfile/x", "out/notes.txt"],
        ["out/old.jsonl", "out/old.jsonl.receipt.json", "out/old.jsonl.errors.jsonl"],
        ["out/a.jsonl"],  # whether it belongs to a run is known to the store, which is asked for this file alone
    ],
)
def test_a_folder_of_results_is_used_again(names: list[str]) -> None:
    make("in/a.jsonl", *names)
    assert planned("in")


@pytest.mark.parametrize("name", ["out/notes.txt", "out/other.jsonl", "out/folder/x"])
def test_a_folder_with_something_else_is_rejected_unless_it_is_to_be_used(name: str) -> None:
    make("in/a.jsonl", name)
    other = Path(name).parts[1]
    with pytest.raises(OutputTaken, match=f"out/: has other files in it, such as {other}; .* or add --restart"):
        planned("in")
    assert plan_folder(["in"], "out/", restart=True).targets
    assert Path(name).exists()
