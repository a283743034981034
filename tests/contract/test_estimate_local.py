"""An estimate of a run on this machine: by what an earlier run of the same model measured, or unknown."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import batchfile
from batchfile import Receipt
from batchfile.errors import StoreFull
from batchfile.types import Counts, Usage
from tests.contract.engine_http_kit import server
from tests.helpers.cli import root
from tests.helpers.client import Estimate, LocalTime, Sample, local_time
from tests.helpers.inbox import FileFacts
from tests.helpers.local import EngineFacts, InputFacts, Speed, past_runs

__all__ = ["server"]

SPEED = Speed(startup_s=30.0, busy_s=10.0, requests=100, input_tokens=2000, output_tokens=1000, slots=8)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def receipt(speed: Speed | None = SPEED, *, kind: str = "vllm", model: str = "m/x", ended_at: float = 1e9) -> Receipt:
    """Of a run of 100 requests with 200 bytes each."""
    return Receipt(
        batch_id="batch_1",
        reason="completed",
        input=InputFacts(path="in.jsonl", sha256="", requests=100, jsonl_bytes=20_000, jsonl_sha256=""),
        output=FileFacts(path="/data/out.jsonl", bytes=1, sha256="", lines=100),
        errors=None,
        counts=Counts(succeeded=100),
        usage=Usage(),
        cache_hit_rate=0.0,
        seconds=99.0,
        created_at=ended_at - 99,
        ended_at=ended_at,
        engine=EngineFacts(kind=kind, model=model, version="1"),
        settings={},
        batchfile_version="1",
        python_version="3",
        speed=speed,
    )


def sample(num: int, bytes_each: int = 200, max_tokens: int = 100, num_bad: int = 0) -> Sample:
    size = num * bytes_each
    return Sample(num_requests=num, size_bytes=size, max_output_tokens=num * max_tokens, num_bad=num_bad)


def in_proportion(found: LocalTime) -> tuple[int, float]:
    return found.output_tokens, round(found.work_s, 3)


def test_work_is_in_proportion_to_the_measured_run() -> None:
    assert in_proportion(local_time(sample(100), receipt())) == (1000, 10.0)
    assert in_proportion(local_time(sample(400), receipt())) == (4000, 40.0)
    assert in_proportion(local_time(sample(400, bytes_each=400), receipt())) == (4000, 80.0)
    assert in_proportion(local_time(sample(400, bytes_each=100), receipt())) == (4000, 40.0)
    assert in_proportion(local_time(sample(400, bytes_each=50, max_tokens=5), receipt())) == (2000, 20.0)
    assert in_proportion(local_time(sample(400, bytes_each=100, num_bad=200), receipt())) == (2000, 20.0)
    assert local_time(sample(400), receipt()).total_s == 70.0


def test_embeddings_are_in_proportion_to_the_requests() -> None:
    found = local_time(sample(400, max_tokens=0), receipt(replace(SPEED, output_tokens=0)))
    assert in_proportion(found) == (0, 40.0)


@pytest.mark.parametrize(("requests", "num", "is_at_most"), [(8, 100, True), (8, 8, False), (16, 100, False)])
def test_a_run_that_did_not_fill_the_engine_says_at_most(requests: int, num: int, is_at_most: bool) -> None:
    assert local_time(sample(num), receipt(replace(SPEED, requests=requests))).is_at_most == is_at_most


def test_gpus_cost_the_start_too() -> None:
    local = local_time(sample(100), receipt())
    made = Estimate(
        sample=sample(100),
        tokenizer=None,
        times=None,
        expected_output_tokens=None,
        gpu_hour=36.0,
        gpus=2,
        hosted=[],
        local=local,
    )
    assert made.gpu_usd == pytest.approx(2 * 36.0 * 40 / 3600)


def test_the_last_run_of_the_model_is_found() -> None:
    assert past_runs.last_run("m/x") is None
    past_runs.keep(receipt(ended_at=1.0))
    past_runs.keep(receipt(ended_at=3.0, model="other"))
    past_runs.keep(receipt(ended_at=2.0, kind="http"))
    assert past_runs.last_run("m/x") == receipt(ended_at=2.0, kind="http")
    past_runs.keep(receipt(ended_at=4.0))
    assert past_runs.last_run("m/x") == receipt(ended_at=4.0)


def test_a_run_of_a_few_requests_does_not_replace_a_longer_one() -> None:
    few, enough = replace(SPEED, requests=3), replace(SPEED, requests=20)
    for speed, kept in ((few, few), (SPEED, SPEED), (few, SPEED), (enough, enough)):
        past_runs.keep(receipt(speed))
        found = past_runs.last_run("m/x")
        assert found is not None
        assert found.speed == kept


def test_what_measures_nothing_is_not_kept() -> None:
    past_runs.keep(receipt(None))
    past_runs.keep(receipt(kind="echo"))
    assert not Path("state").exists()


def test_a_folder_that_cannot_be_used_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    past_runs.keep(receipt())
    (kept,) = Path("state/batchfile/receipts").iterdir()
    kept.write_text("{")
    assert past_runs.last_run("m/x") is None
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    past_runs.keep(receipt())
    assert past_runs.last_run("m/x") is None


def write(num: int) -> None:
    params = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 8}
    lines = [json.dumps({"custom_id": f"r{n}", "params": params}) for n in range(num)]
    Path("in.jsonl").write_text("\n".join(lines) + "\n")


def answered(url: str, **options: Any) -> Receipt:
    return batchfile.run(
        "in.jsonl", "out.jsonl", engine="http", base_url=url, model="served", progress=False, **options
    )


def test_a_run_is_measured_and_an_estimate_says_by_which(server: Any) -> None:
    write(40)
    without = CliRunner().invoke(root, ["estimate", "in.jsonl", "--model", "served"]).output
    assert (
        "  time           unknown: no run of served on this machine was measured. Run the first lines, and\n" in without
    )
    assert "`batchfile run in.jsonl --model served -o trial-20.jsonl --limit 20`\n" in without
    assert "expected: unknown" in without
    ran = answered(server.url, limit=20)
    assert ran.speed is not None
    assert (ran.speed.requests, ran.speed.input_tokens, ran.speed.output_tokens) == (
        20,
        ran.usage.input_tokens,
        ran.usage.output_tokens,
    )
    done = CliRunner().invoke(root, ["estimate", "in.jsonl", "--model", "served"]).output
    assert f"expected: about {2 * ran.usage.output_tokens}, by the measured run's average answer length" in done
    assert "at most about" in done
    assert "For a closer estimate" not in done  # the file has too few lines for that
    num = 2 * ran.speed.slots
    write(num + 1)
    more = CliRunner().invoke(root, ["estimate", "in.jsonl", "--model", "served"]).output
    assert f"`batchfile run in.jsonl --model served -o trial-{num}.jsonl --limit {num}`\n" in more
    assert f"  measured by    20 requests, {ran.usage.input_tokens} tokens in and {ran.usage.output_tokens} out" in done
    assert f"{Path.cwd()}/out.jsonl by http with served (" in done
    found = json.loads(CliRunner().invoke(root, ["estimate", "in.jsonl", "--model", "served", "--json"]).output)
    assert found["local"]["measured_by"]["batch_id"] == ran.batch_id
    assert found["local"]["startup_s"] == ran.speed.startup_s


def test_a_resumed_run_keeps_the_larger_measurement(server: Any) -> None:
    write(30)
    first = answered(server.url)
    write(35)
    second = answered(server.url, reuse=True)
    assert second.reused == 30
    assert (first.speed and first.speed.requests, second.speed and second.speed.requests) == (30, 5)
    kept = past_runs.last_run("served")
    assert kept is not None
    assert kept.batch_id == first.batch_id


def test_a_measurement_that_cannot_be_stored_fails_no_run(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise StoreFull("no space")

    monkeypatch.setattr(past_runs, "update_batch", full)
    write(2)
    ran = answered(server.url)
    assert ran.is_all_succeeded
    assert ran.speed is None


def test_answers_without_known_usage_measure_nothing(server: Any) -> None:
    server.always = {"text": '{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}'}
    write(2)
    assert answered(server.url).speed is None


def test_rows_and_text_are_estimated_as_the_requests_that_they_become() -> None:
    Path("reviews.csv").write_text("id,review\n1,good\n2,bad\n")
    Path("prompts.txt").write_text("One\nTwo\n")
    without = CliRunner().invoke(root, ["estimate", "reviews.csv"])
    assert "batchfile run reviews.csv --prompt" in str(without.exception)
    arguments = ["reviews.csv", "--prompt", "Is it good? {{ review }}", "--model", "m"]
    found = json.loads(CliRunner().invoke(root, ["estimate", *arguments, "--json"]).output)
    assert (found["requests"], found["bad"], found["input_tokens"]) == (2, 0, 7)
    said = CliRunner().invoke(root, ["estimate", *arguments]).output
    assert "`batchfile run reviews.csv --model m --prompt 'Is it good? {{ review }}' -o trial-20.jsonl" in said
    said = CliRunner().invoke(root, ["estimate", "prompts.txt", "--model", "m", "--raw", "--limit", "1"]).output
    assert "`batchfile run prompts.txt --model m --raw -o trial-20.jsonl --limit 20`" in said
    found = json.loads(CliRunner().invoke(root, ["estimate", *arguments, "--limit", "1", "--json"]).output)
    assert found["requests"] == 1
    assert json.loads(CliRunner().invoke(root, ["estimate", "prompts.txt", "--json"]).output)["requests"] == 2


def batches(num: int, size: int) -> Any:
    return [SimpleNamespace(total=num, input=SimpleNamespace(size=size))]


def test_the_lengths_of_requests_are_guessed_without_an_earlier_run() -> None:
    found = past_runs.expected_lengths("m/x", batches(10, 8000), 100)
    assert found is not None
    assert (found.input, found.output, found.shared) == (200, 100, 180)
    longest = past_runs.expected_lengths("m/x", batches(10, 8000), 5000)
    assert longest is not None
    assert longest.output == 256


def test_the_lengths_of_requests_follow_the_last_run() -> None:
    past_runs.keep(replace(receipt(), cache_hit_rate=0.25))  # 200 bytes are 20 tokens, and answers have 10
    found = past_runs.expected_lengths("m/x", batches(10, 8000), 5000)
    assert found is not None
    assert (found.input, found.output, found.shared) == (80, 10, 20)


@pytest.mark.parametrize(("num", "size"), [(0, 0), (10, 10_000_000)])
def test_the_lengths_of_media_and_of_nothing_are_unknown(num: int, size: int) -> None:
    assert past_runs.expected_lengths("m/x", batches(num, size), 100) is None
