"""What an estimate counts, and what it says is unknown."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchfile.cli.estimate import _time_lines
from batchfile.client.estimate import Estimate, Sample, expected_output_tokens, pool_times, read_sample
from batchfile.errors import InvalidFile
from batchfile.types import RoutingTable
from tests.helpers.cli import root
from tests.helpers.ledger import HeartbeatRecord, RunnerTotals
from tests.helpers.store import STORE_FOLDER

TABLE = RoutingTable(stages={"email": "mistral"}, pools={"mistral": ("m",), "llama-70b": ("l",)})


def rows(num: int, text: str = "x" * 40, **more: Any) -> bytes:
    params = {"messages": [{"role": "user", "content": text}], "max_tokens": 20}
    return b"".join(json.dumps({"custom_id": f"r{n}", "params": params, **more}).encode() + b"\n" for n in range(num))


def runner(pool: str = "mistral", **more: Any) -> HeartbeatRecord:
    return HeartbeatRecord(pool=pool, runner_id="a", model="m", engine="echo", state="running", started_at=0.0, **more)


def sampled(data: bytes, **more: Any) -> Sample:
    return read_sample([data], **{"routing": TABLE, "stage": "email", "count": None, **more})


def test_a_small_file_is_counted_whole() -> None:
    found = sampled(rows(50) + b"{rubbish\n\n" + rows(10, metadata={"model_hint": "llama-70b"}))
    assert found.is_whole
    assert (found.num_requests, found.num_bad) == (61, 1)
    assert (found.input_tokens, found.max_output_tokens) == (60 * 10, 60 * 20)
    assert found.pools == {"mistral": 50, "llama-70b": 10}


def test_a_large_file_is_counted_over_a_sample_and_scaled_to_all() -> None:
    found = sampled(rows(25_000), full_max=100)
    assert found.num_requests == 25_000
    assert found.num_looked_at < 400
    assert found.input_tokens == pytest.approx(25_000 * 10)
    assert found.max_output_tokens == pytest.approx(25_000 * 20)
    assert found.pools["mistral"] == 25_000


def test_every_part_of_a_large_file_is_in_the_sample() -> None:
    found = sampled(rows(10_000, "x" * 40) + rows(10_000, "x" * 80), full_max=500)
    assert found.input_tokens == pytest.approx(10_000 * 10 + 10_000 * 20, rel=0.05)


def test_a_tokenizer_counts_where_it_is_given() -> None:
    assert sampled(rows(10), count=lambda request: 7).input_tokens == 70


def test_a_file_without_a_request_is_rejected() -> None:
    with pytest.raises(InvalidFile, match="every line is blank"):
        sampled(b"\n\n")


def test_what_cannot_run_is_said_with_the_way_to_learn_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(rows(2) + b"{rubbish\n")
    done = CliRunner().invoke(root, ["estimate", "in.jsonl"])
    assert "3; about 1 of them cannot run: `batchfile validate` says why" in done.output


def test_requests_that_lead_to_no_pool_are_counted_like_any_other() -> None:
    found = sampled(rows(20) + rows(5, metadata={"model_hint": "mistral"}) + b"{rubbish\n", stage=None)
    assert (found.num_unrouted, found.num_bad, found.pools) == (20, 1, {"mistral": 5})
    assert (found.input_tokens, found.max_output_tokens) == (25 * 10, 25 * 20)
    large = sampled(rows(25_000), stage=None, full_max=100)
    assert large.num_unrouted == pytest.approx(25_000)


def test_a_file_without_a_stage_is_told_to_name_one_and_not_that_no_pool_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(rows(2))
    Path("st").mkdir()
    done = CliRunner().invoke(root, ["estimate", "in.jsonl", "--store", "st"])
    assert "no pool for about 2 of them; set --stage, or see `batchfile validate --rout" in done.output
    assert "input tokens   about 20 " in done.output
    assert "unknown: no request has a pool" in done.output
    assert "cannot run" not in done.output
    Path("in.jsonl").write_bytes(rows(2, metadata={"model_hint": "nonesuch"}))
    done = CliRunner().invoke(root, ["estimate", "in.jsonl", "--store", "st", "--stage", "email"])
    assert "no pool for about 2 of them; `batchfile validate --stage email` says why" in done.output


@pytest.mark.parametrize("folder", ["elsewhere", STORE_FOLDER])
def test_without_a_service_or_a_store_an_estimate_is_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """A folder that local runs left is no store that somebody named."""
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(rows(2))
    Path(folder).mkdir()
    monkeypatch.setenv("BATCHFILE_CACHE", str(tmp_path))  # without the demo model
    done = CliRunner().invoke(root, ["estimate", "in.jsonl"])
    assert "unknown: name the model of a run here with --model, or use --url or --store" in done.output
    assert "pool" not in done.output
    assert "stage" not in done.output
    refused = CliRunner().invoke(root, ["estimate", "in.jsonl", "--stage", "emial"])
    assert "'emial' is unknown" in str(refused.exception)


def test_time_is_by_what_the_runners_of_the_pool_measured_and_what_waits_before() -> None:
    sample = sampled(rows(100))
    runners = [runner(requests_per_s=1.5), runner(requests_per_s=0.5), runner("llama-70b", requests_per_s=100.0)]
    (time,) = pool_times(sample, runners, {"mistral": 60})
    assert (time.num_runners, time.requests_per_s, time.busy_s, time.until_s) == (2, 2.0, 50.0, 80.0)


def test_no_request_takes_less_than_one_takes() -> None:
    five = sampled(rows(5))
    (time,) = pool_times(five, [runner(requests_per_s=117.6, latency_p50_s=2.0)], {"mistral": 10})
    assert (time.busy_s, time.until_s) == (2.0, 2.0)
    assert "about 2.0 s as for a single request (1 runner of mistral" in next(_time_lines([time]))
    (time,) = pool_times(five, [runner(requests_per_s=0.5, latency_p50_s=2.0)], {})
    assert time.busy_s == 10.0


def test_what_nobody_measured_is_unknown() -> None:
    sample = sampled(rows(100))
    for runners in ([], [runner()]):
        (time,) = pool_times(sample, runners, {})
        assert (time.requests_per_s, time.busy_s, time.until_s, time.output_tokens_each) == (None, None, None, None)
        assert expected_output_tokens(sample, [time]) is None
        made = estimate(sample, runners)
        assert made.gpu_usd is None


def test_answers_are_expected_as_long_as_they_were_and_never_longer_than_allowed() -> None:
    sample = sampled(rows(100))
    for each, expected in ((5, 500), (50, 2_000)):
        totals = RunnerTotals(succeeded=10, output_tokens=10 * each)
        assert expected_output_tokens(sample, pool_times(sample, [runner(totals=totals)], {})) == expected


def test_gpus_cost_their_hours_and_the_number_of_them() -> None:
    assert estimate(sampled(rows(7_200)), [runner(requests_per_s=2.0)]).gpu_usd == 1.0 * 2.5 * 4


def estimate(sample: Sample, runners: list[HeartbeatRecord]) -> Estimate:
    times = pool_times(sample, runners, {})
    return Estimate(
        sample=sample,
        tokenizer=None,
        times=times,
        expected_output_tokens=None,
        gpu_hour=2.5,
        gpus=4,
        hosted=[],
    )
