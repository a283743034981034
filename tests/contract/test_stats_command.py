"""`batchfile stats` over every kind of file that it reads."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batchfile.errors import InvalidFile
from tests.helpers.cli import root
from tests.helpers.engine import fit
from tests.helpers.lines import zstd

HEAD = "Classify this review as good or bad. " * 20
REVIEWS = [f"{HEAD}{n} stars" for n in range(100)]


def jsonl(**more: object) -> bytes:
    requests = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": text}], **more}}
        for n, text in enumerate(REVIEWS)
    ]
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def table() -> bytes:
    file = io.BytesIO()
    ids = [f"r{n}" for n in range(len(REVIEWS))]
    pq.write_table(pa.table({"custom_id": ids, "prompt": REVIEWS, "max_tokens": [8] * len(REVIEWS)}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("in.jsonl", jsonl(max_tokens=8)),
        ("in.jsonl.gz", gzip.compress(jsonl(max_tokens=8), mtime=0)),
        ("in.jsonl.zst", zstd.compress(jsonl(max_tokens=8))),
        ("in.parquet", table()),
    ],
)
def test_a_file_of_any_kind_has_the_same_figures(name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    text = CliRunner().invoke(root, ["stats", str(path)]).output
    assert "  requests      100\n" in text
    assert "  endpoints     params: 100\n" in text
    num = sum(map(len, REVIEWS))
    assert f"  prompts       {num:,} characters, 748 per request, 748 at most\n" in text
    assert f"  input tokens  unknown: use --tokens MODEL; at 4 characters each, about {num // 4:,}\n" in text
    assert "  prefixes      at least 9" in text
    assert "  output        at most 800 tokens (the sum of max_tokens, by default 2,048)\n" in text
    found = json.loads(CliRunner().invoke(root, ["stats", str(path), "--json"]).output)
    assert found["shared_prefixes"] == {"share": pytest.approx(0.93, abs=0.06), "is_lower_bound": True}
    assert (found["requests"], found["max_output_tokens"], found["input_tokens"]) == (100, 800, None)


def test_rows_have_their_columns_and_the_command_that_runs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text('id,review\n1,"good,\nvery"\n\n2,bad\n')
    text = CliRunner().invoke(root, ["stats", "in.csv"]).output
    assert "  rows          2\n" in text
    assert "  file          CSV with the columns id, review; " in text
    assert "  to run them   `batchfile run in.csv --prompt '... {{ review }} ...' -o answers.csv`\n" in text
    found = json.loads(CliRunner().invoke(root, ["stats", "in.csv", "--json"]).output)
    assert (found["kind"], found["columns"], found["rows"]) == ("csv", ["id", "review"], 2)
    Path("in.txt").write_text("Say hi.\n")
    assert "`batchfile run in.txt -o answers.jsonl`" in CliRunner().invoke(root, ["stats", "in.txt"]).output
    pq.write_table(pa.table({"review": ["good", "bad"]}), "in.parquet")
    text = CliRunner().invoke(root, ["stats", "in.parquet"]).output
    assert "  rows          2\n  file          a Parquet table with the column review; " in text
    Path("in.json").write_text(json.dumps([json.loads(line) for line in jsonl().splitlines()], indent=1))
    assert (
        "  requests      100\n  file          a JSON array of requests; "
        in CliRunner().invoke(root, ["stats", "in.json"]).output
    )


def test_stdin_has_limits_by_default_and_lines_that_cannot_run() -> None:
    done = CliRunner().invoke(root, ["stats", "-"], input=jsonl() + b"{rubbish\n")
    assert "  requests      101; 1 of them cannot run: `batchfile validate` says why\n" in done.output
    assert "  output        at most 204,800 tokens (the sum of max_tokens, by default 2,048)\n" in done.output


def test_what_is_no_file_of_requests_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n")
    for name, message in (("blank.jsonl", "blank.jsonl: contains no requests"), ("none.jsonl", "no such file")):
        refused = CliRunner().invoke(root, ["stats", str(tmp_path / name)])
        assert isinstance(refused.exception, InvalidFile)
        assert message in str(refused.exception)


def test_a_tokenizer_counts_the_tokens_of_every_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = fit.TokenCounter(count=lambda request: [7], max_model_len=None)
    monkeypatch.setattr(fit, "token_counter", lambda model, **options: counter)
    done = CliRunner().invoke(root, ["stats", "-", "--tokens", "mistral"], input=jsonl())
    assert "  input tokens  700 tokens, 7 per request, 7 at most (mistral's tokenizer)\n" in done.output
