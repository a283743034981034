"""What the tests of the Node adapter share: its tools, and commands that show what they wrote where they fail."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TS = ROOT / "ts"
CONSUMER = ROOT / "tests" / "node-consumer"
NODE_MIN = 18
RUN_S = 600.0


def run(command: list[str], folder: Path = TS, *, code: int = 0, **variables: str) -> str:
    """What it wrote to stdout, and where it should fail to both."""
    environ = {**os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=RUN_S)
    if done.returncode != code:
        text = f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        pytest.fail(f"`{' '.join(command)}` in {folder} ended with {done.returncode}:\n{text}")
    return done.stdout if code == 0 else done.stdout + done.stderr


def find_node() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.fail(
            f"the adapter's tests need Node {NODE_MIN} or newer and npm, and they are not on PATH: install Node"
        )
    version = run([node, "--version"]).strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE_MIN:
        pytest.fail(f"the adapter needs Node {NODE_MIN} or newer, and {node} is {version}: install a newer one")
    return node


def install(folder: Path) -> Path:
    """Its folder of commands."""
    commands = folder / "node_modules" / ".bin"
    if not (commands / "tsc").exists():
        run(["npm", "ci", "--no-audit", "--no-fund"], folder)
    return commands
