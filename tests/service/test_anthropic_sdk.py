"""The official Anthropic clients, unmodified, of several major versions in Python and Node, against a real service."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchfile import Runner, RunnerOptions
from batchfile.testing import EchoEngine
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger

ROOT = Path(__file__).parents[2]
PYTHON_WALK = ROOT / "tests" / "sdk-python" / "anthropic_walk.py"
NODE = ROOT / "tests" / "sdk-node"
SDKS = ROOT / ".cache" / "sdks"
PYTHON = ("current", "anthropic-0", "anthropic-1")  # the current one comes with the tests' own packages
NODE_VERSIONS = ("current", "old")
NUM_PAGED = 250
POOLS = {
    "fast": {"model": "org/echo-1", "engine": "echo", "aliases": ["claude-echo"]},
    "slow": {"model": "echo-slow", "engine": "echo"},
    "idle": {"model": "echo-idle", "engine": "echo"},
}
TENANTS = (*PYTHON, *(f"node-{version}" for version in NODE_VERSIONS), "pages")
SETTINGS = {
    "BATCHFILE_POOLS": json.dumps(POOLS),
    "BATCHFILE_STAGES": json.dumps({"email": "fast"}),
    "BATCHFILE_API_KEYS": ",".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in TENANTS),
    "BATCHFILE_API__BODY_BYTES_MAX": "4000000",
    "BATCHFILE_API__OPEN_BATCHES_MAX": str(NUM_PAGED),
}
FINISH_S = 1200.0  # only against a hang: no test depends on a machine's speed


@pytest.fixture(scope="module")
def api(serve_api: Callable[..., Any]) -> Iterator[Any]:
    """A service with a runner for each of two pools: one answers at once, one does not within this test's time."""
    api = serve_api(**SETTINGS)
    ledger = open_service_ledger(api.store, load_settings())
    runners = [
        Runner(
            ledger,
            lambda seconds=seconds, pool=pool, more=more: EchoEngine(
                seconds_per_token=seconds, model=POOLS[pool]["model"], **more
            ),
            RunnerOptions(runner_id=f"{pool}-test", pool=pool, is_janitor=False),
        )
        for pool, seconds, more in (
            ("fast", 0.0, {"tool_input": {"place": "Zürich"}, "thinking": "Hm."}),
            ("slow", 10_000.0, {}),
        )
    ]
    threads = [threading.Thread(target=runner.run) for runner in runners]
    for thread in threads:
        thread.start()
    params = {"model": "idle", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    headers = {"anthropic-version": "2026-10-21", "authorization": "Bearer pages"}
    for _ in range(NUM_PAGED):
        body = {"requests": [{"custom_id": "a", "params": params}]}
        assert api.http.post("/v1/messages/batches", json=body, headers=headers).status_code == 200
    yield api
    for runner in runners:
        runner.stop_now()
    for thread in threads:
        thread.join(30)


@pytest.fixture(scope="module")
def python_paths() -> dict[str, str]:
    """Version -> what stands before it on the path. Older majors live in folders of their own."""
    for name in PYTHON[1:]:
        if not (SDKS / name / "anthropic").is_dir():
            pytest.fail(f"{SDKS / name} is not there: run `.venv/bin/python deploy/local.py --test` once")
    return {name: "" if name == "current" else str(SDKS / name) for name in PYTHON}


@pytest.fixture(scope="module")
def node_walk() -> list[str]:
    """The command of the Node client's walk, built."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.fail(
            "the tests of the Node client need Node 20 or newer and npm, and they are not on PATH: install Node"
        )
    if not (NODE / "node_modules" / ".bin" / "tsc").exists():
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=NODE, check=True)
    built = subprocess.run([npm, "run", "--silent", "build"], cwd=NODE, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout
    return [node, str(NODE / "build" / "anthropicWalk.js")]


def walk(command: list[str], url: str, key: str, path: str = "") -> str:
    """What it printed. Fails with its words."""
    variables = {"WALK_URL": url, "WALK_KEY": key, "WALK_PAGES_KEY": "pages", "PYTHONPATH": path}
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=FINISH_S)
    assert done.returncode == 0, f"{key}: {' '.join(command[1:])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def python(*names: str) -> list[str]:
    return [sys.executable, str(PYTHON_WALK), *names]


def test_every_client_of_every_major_does_all_that_it_can(
    api: Any, python_paths: dict[str, str], node_walk: list[str]
) -> None:
    with ThreadPoolExecutor() as pool:
        walks = [pool.submit(walk, python(), api.url, name, path) for name, path in python_paths.items()]
        walks += [pool.submit(walk, [*node_walk, name], api.url, f"node-{name}") for name in NODE_VERSIONS]
        problems = [str(one.exception()) for one in walks if one.exception() is not None]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", PYTHON)
def test_a_create_whose_answer_was_lost_with_the_service_makes_one_batch(
    name: str, start_api: Callable[..., Any], dying_route: Callable[..., Any], python_paths: dict[str, str]
) -> None:
    first = start_api(**SETTINGS)
    route = dying_route(first, **SETTINGS)
    got = walk(python("retry"), route.url, name, python_paths[name]).strip()
    counts = [head for data in route.heads for head in data.lower().split(b"\r\n") if b"retry-count" in head]
    assert counts == [b"x-stainless-retry-count: 0", b"x-stainless-retry-count: 1"]
    index = Path(first.store, "index", name)
    assert [path.name.split("-", 1)[1] for path in index.iterdir()] == [got]


def test_a_store_that_is_down_is_an_error_of_the_clients_own(start_api: Callable[..., Any], tmp_path: Path) -> None:
    api = start_api(**SETTINGS)
    store = tmp_path / "store"
    store.rename(tmp_path / "away")
    store.write_text("not a directory")
    walk(python("down"), api.url, "current")
