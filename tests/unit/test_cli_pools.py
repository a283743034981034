"""`batchfile runners` and `batchfile pools` over a store."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.cli import root
from tests.helpers.ledger import HeartbeatRecord, keys, write_heartbeat
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger

RUNNER = HeartbeatRecord(
    pool="mistral",
    runner_id="m-1",
    model="org/m",
    engine="http",
    state="down",
    started_at=0.0,
    num_slots=64,
    set_aside={"batch_x": "input: denied\x1b[2J"},
)


def said(store: Path, *arguments: str) -> list[str]:
    done = CliRunner().invoke(root, [*arguments, "--store", str(store)])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_runners_and_pools_are_tables_with_a_header_and_json(tmp_path: Path) -> None:
    write_heartbeat(open_service_ledger(str(tmp_path), load_settings()), RUNNER)
    header, row, aside = said(tmp_path, "runners")
    assert header.split()[:3] == ["POOL", "RUNNER", "STATE"]
    assert row.split()[:3] == ["mistral", "m-1", "down"]
    assert aside == "m-1 set batch_x aside: input: denied?[2J"
    assert json.loads(said(tmp_path, "runners", "--json")[0])["runner_id"] == "m-1"
    assert said(tmp_path, "runners", "--pool", "llama-70b") == ["no live runners of the pool llama-70b"]
    header, mistral = said(tmp_path, "pools")
    assert header.split()[:3] == ["POOL", "STATE", "RUNNERS"]
    assert mistral.split()[:4] == ["mistral", "down", "1", "down"]
    (shown,) = map(json.loads, said(tmp_path, "pools", "--json"))
    assert (shown["name"], shown["is_up"], shown["runners"]) == ("mistral", False, {"down": 1})


def test_the_pools_of_a_store_are_those_that_it_knows_and_those_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_service_ledger(str(tmp_path), load_settings())
    assert said(tmp_path, "pools") == ["no pools: no request waits, and no runner has reported within a day"]
    ledger.store.put(keys.queue_key("waited-for", 5, 1.0, "batch_0"), b"")
    monkeypatch.setenv("BATCHFILE_POOLS", '{"gpu": {"model": "org/x"}, "mistral": {"model": "org/y"}}')
    monkeypatch.setenv("BATCHFILE_STAGES", '{"email": "gpu"}')
    write_heartbeat(ledger, replace(RUNNER, pool="elsewhere", state="idle"))
    shown = {pool["name"]: pool for pool in map(json.loads, said(tmp_path, "pools", "--json"))}
    assert {name: (pool["model"], pool["is_up"]) for name, pool in shown.items()} == {
        "elsewhere": ("org/m", True),
        "gpu": ("org/x", False),
        "mistral": ("org/y", False),
        "waited-for": ("", False),
    }
    assert (shown["gpu"]["stages"], shown["elsewhere"]["engine"]) == (["email"], "http")
