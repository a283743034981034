"""Each bench runs to its end at a small size: the long form. What it measures is judged by hand, at full size.

Where virtual time or requests are judged, which are the same on every machine, it is done every time.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run(name: str, *options: str) -> dict[str, object]:
    """The bench's last line."""
    command = [sys.executable, str(FOLDER / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return row


@pytest.mark.long
def test_the_host_bench_completes() -> None:
    assert run("host.py", "--requests", "20000")["requests"] == 20000


@pytest.mark.long
def test_the_rows_bench_completes() -> None:
    assert run("rows.py", "--rows", "20000")["rows"] == 20000


@pytest.mark.long
def test_the_ingest_bench_completes() -> None:
    assert run("ingest.py", "--mib", "8", "--rounds", "1")["bench"] == "ingest"


@pytest.mark.long
def test_the_results_bench_completes() -> None:
    row = run("results.py", "--results", "20000", "--rounds", "1", "--core", "0")
    assert row["results"] == 20000


@pytest.mark.long
def test_the_replicas_bench_completes() -> None:
    row = run("replicas.py", "--replicas", "1", "2", "--waves", "4", "--slots", "8")
    assert row["requests"] == 64


@pytest.mark.long
def test_the_roundtrip_bench_completes() -> None:
    assert run("roundtrip.py", "--batches", "3")["batches"] == 3


def test_the_tail_of_a_batch_comes_close_to_the_ideal() -> None:
    """Virtual time: the same on every machine, so it is judged here too."""
    assert run("tail.py", "--seeds", "5")["bench"] == "tail"


def test_a_runner_is_fed_however_many_batches_are_open() -> None:
    """Virtual time: the same on every machine, so it is judged here too."""
    assert run("claims.py", "--batches", "100", "500")["bench"] == "claims"


def test_the_end_of_a_large_batch_costs_no_more_than_promised() -> None:
    """Virtual time and requests: the same on every machine, so they are judged here too."""
    row = run("ending.py", "--shards", "970")
    requests = {kind["kind"]: kind["requests"] for kind in row["rows"]}  # type: ignore[attr-defined]
    assert requests["complete"]["get"] <= 2 * 970 + 50  # each record and each part once
    assert requests["untouched"]["put"] <= 970 + 10  # each shard is closed once
    assert requests["untouched"]["stream"] == 1


def test_the_status_of_a_batch_costs_no_more_requests_than_promised() -> None:
    """Requests are the same on every machine, so they are judged here too."""
    assert run("status.py", "--shards", "40")["shards"] == 40


def test_the_cost_bench_completes_and_a_shard_costs_no_more_than_promised() -> None:
    """docs/reliability.md says what the bucket costs."""
    row = run("cost.py", "--warm=2", "--idle=5", "--look=3", "--small=320", "--large=3200")
    shard = row["shard"]
    assert isinstance(shard, dict)
    assert shard["write"] <= 4
    assert shard["read"] <= 14


@pytest.mark.long
@pytest.mark.vllm
def test_the_engine_bench_completes(model_path: str) -> None:
    row = run("engine.py", "--model", model_path, "--enforce-eager", "--requests", "8", "--rounds", "1")
    assert row["requests"] == 8


@pytest.mark.long
@pytest.mark.vllm
def test_the_frontend_bench_completes(model_path: str) -> None:
    assert run("frontend.py", "--model", model_path, "--running", "16", "--rounds", "1")["running"] == 16


@pytest.mark.long
@pytest.mark.vllm
def test_the_cpu_bench_completes(model_path: str) -> None:
    row = run("cpu.py", "--model", model_path, "--cases", "chosen", "--requests", "2", "--max-tokens", "4")
    rows = row["rows"]
    assert isinstance(rows, dict)
    assert "vLLM computes on the CPU with" in rows["chosen"]["note"]


@pytest.mark.long
def test_the_reuse_bench_completes() -> None:
    row = run("reuse.py", "--lines", "20000", "--only", "plan,hash,reuse,shuffled")
    assert row["reuse"]["reused"] == row["shuffled"]["reused"] == 19800  # type: ignore[index]


@pytest.mark.long
def test_the_media_bench_completes() -> None:
    row = run("media.py", "--images", "200")
    assert (row["images"], row["fetches_of_same"], row["faulty_failed"]) == (200, 1, 4)
