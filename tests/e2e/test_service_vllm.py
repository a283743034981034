"""The whole service on one machine with real vLLM: two models behind two pools, the Node example, the official SDKs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LEADS = 4


def test_leads_go_through_two_models_and_come_back_from_the_right_one(tmp_path: Path, model_dir: Path) -> None:
    compiler = ROOT / "ts" / "node_modules" / ".bin" / "tsc"
    if not shutil.which("node") or not compiler.exists():
        pytest.skip("the adapter is not installed: run `just adapter`, which needs Node")
    subprocess.run([compiler, "-p", "ts/tsconfig.json"], cwd=ROOT, check=True)
    service = [sys.executable, "deploy/service.py", "--port", "0", "--folder", str(tmp_path)]
    # The official clients take the same models' answers: loading these is what takes long.
    script = f"node examples/node/leads.mjs --leads {LEADS} && {sys.executable} tests/sdk-python/both_on_a_model.py"
    done = subprocess.run([*service, "--", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, leads, clients = done.stdout.splitlines()
    assert leads == "17 requests, every custom_id came back in order and from the right model."
    assert clients == "Both clients got their answers from a real model."
    assert f"{model_dir.name} and tiny-random-llama" in done.stdout
