"""`python -m runners` with real vLLM: a pool of one small model, killed once, and nothing left of it at the end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from batchfile import Ledger
from batchfile.types import Defaults, RoutingTable
from tests.helpers.ledger import BatchRecord, batches, keys, read_heartbeats
from tests.helpers.plan import plan_input
from tests.helpers.store import DirectoryStore

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
ROUTING = RoutingTable(pools={"mistral": ("small",)})


def create(ledger: Ledger, batch_id: str, num: int) -> None:
    rows = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"Say {n}."}], "max_tokens": 8}}
        for n in range(num)
    ]
    key = keys.input_key(batch_id, "n")
    ledger.store.put(key, "\n".join(map(json.dumps, rows)).encode())
    planned = plan_input(ledger, batch_id, key, routing=ROUTING)
    batches.create(ledger, batches.Draft(batch_id=batch_id, routing=ROUTING, defaults=Defaults()), planned)


def ended(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    batch = batches.read_batch(ledger, batch_id)
    return batch if batch is not None and batch.state == "ended" else None


def results(ledger: Ledger, batch: BatchRecord | None) -> list[dict[str, Any]]:
    assert batch is not None
    assert batch.results is not None
    return [json.loads(row) for row in b"".join(ledger.store.stream(batch.results.key)).splitlines()]


def until(fleet: subprocess.Popen[bytes], log: Path, is_so: Callable[[], object]) -> Any:
    """However long it takes, as long as the fleet is there."""
    while not (found := is_so()):
        if fleet.poll() is not None:
            pytest.fail(f"the fleet ended before it came: {log.read_text()[-3000:]}")
        time.sleep(0.2)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def test_a_fleet_with_real_vllm_outlives_a_killed_child_and_leaves_nothing(tmp_path: Path, model_dir: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, log = tmp_path / "fleet.toml", tmp_path / "log"
    config.write_text(
        f'[pools.mistral]\nmodel = "{model_dir}"\nmax_model_len = 1024\nmax_num_seqs = 8\n[stages]\nemail = "mistral"\n'
    )
    ledger = Ledger(store=DirectoryStore(tmp_path / ".batchfile"))
    create(ledger, "first", 4)
    command = [
        sys.executable,
        "-m",
        "runners",
        "--pool",
        "mistral",
        "--config",
        str(config),
        "--metrics-port",
        str(port),
    ]
    with log.open("wb") as file:
        fleet = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=file)
    seen: list[psutil.Process] = []
    try:
        until(fleet, log, lambda: [p for p in read_heartbeats(ledger) if p.state == "loading"])
        rows = results(ledger, until(fleet, log, lambda: ended(ledger, "first")))
        assert [row["custom_id"] for row in rows] == ["r0", "r1", "r2", "r3"]
        assert {(row["status"], row["model"]) for row in rows} == {("succeeded", model_dir.name)}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            page = answer.read().decode()
        assert 'outcome="succeeded",pool="mistral"} 4.0' in page
        assert "\nvllm:generation_tokens_total{" in page
        [presence] = read_heartbeats(ledger)
        assert (presence.engine, presence.num_slots) == ("vllm", 8)

        seen = descendants(fleet.pid)
        [child] = psutil.Process(fleet.pid).children()
        create(ledger, "second", 4)
        os.kill(child.pid, signal.SIGKILL)
        assert len(results(ledger, until(fleet, log, lambda: ended(ledger, "second")))) == 4
        seen += descendants(fleet.pid)
        fleet.terminate()
        assert fleet.wait() == 0
        while any(process.is_running() for process in seen):
            time.sleep(0.2)
        assert len({process.pid for process in seen}) >= 4
    finally:
        fleet.kill()
        fleet.wait()
