"""The whole service on one machine with real vLLM: two models behind two pools, the Node example, the adapter's own
live tests, the official SDKs.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
LEADS = 4
ADAPTER_TESTS = 6  # and one that needs a service with keys
WAIT_FOR_ALL = 'for pid in $pids; do wait "$pid" || exit 1; done;'
CLIENTS = ("sdk-node", "sdk-node-openai")
BINARIES = {"sdk-node": ("tsc",), "sdk-node-openai": ("tsc", "node")}


def build(folder: Path) -> None:
    binaries = folder / "node_modules" / ".bin"
    if not all((binaries / name).exists() for name in BINARIES[folder.name]):
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True)
    subprocess.run(["npm", "run", "--silent", "build"], cwd=folder, check=True)


def test_leads_go_through_two_models_and_come_back_from_the_right_one(tmp_path: Path, model_dir: Path) -> None:
    compiler = ROOT / "ts" / "node_modules" / ".bin" / "tsc"
    if not shutil.which("node") or not compiler.exists():
        pytest.fail("the adapter is not installed: run `just adapter`, which needs Node")
    for project in ("tsconfig.json", "tsconfig.test.json"):
        subprocess.run([compiler, "-p", f"ts/{project}"], cwd=ROOT, check=True)
    service = [sys.executable, "deploy/service.py", "--port", "0", "--folder", str(tmp_path)]
    for folder in CLIENTS:
        build(ROOT / "tests" / folder)
    # The official clients take the same models' answers: loading these is what takes long.
    python = f"{sys.executable} tests/sdk-python/both_on_a_model.py"
    walks = [
        python,
        *(f"PYTHONPATH=.cache/sdks/anthropic-{major} {python} anthropic" for major in (0, 1)),
        *(f"node tests/sdk-node/build/onAModel.js {name}" for name in ("current", "old")),
        "tests/sdk-node-openai/node_modules/.bin/node tests/sdk-node-openai/build/onAModel.js current",
        "node tests/sdk-node-openai/build/onAModel.js old",
    ]
    at_once = " ".join(f'{walk} & pids="$pids $!";' for walk in walks)
    adapter = f"LIVE_LEADS={LEADS} node --test --test-reporter=tap ts/build/test/live/stages.test.js"
    script = f"node examples/node/leads.mjs --leads {LEADS} && {adapter} && {{ {at_once} {WAIT_FOR_ALL} }}"
    done = subprocess.run([*service, "--", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 requests, every custom_id came back in order and from the right model.\n" in done.stdout
    assert f"# pass {ADAPTER_TESTS}\n# fail 0\n" in done.stdout
    clients = [
        *(f"{name} in Python" for name in ("anthropic 2", "openai 3", "anthropic 0", "anthropic 1")),
        *(f"{name} in Node" for name in ("anthropic current", "anthropic old", "openai current", "openai old")),
    ]
    # They write at once, so that two may share a line.
    assert [done.stdout.count(client) for client in clients] == [1] * len(clients), done.stdout
    assert f"{model_dir.name} and tiny-random-llama" in done.stdout
