"""The wheel is the whole product: built, installed in an environment of its own and used outside the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import batchfile

ROOT = Path(__file__).parents[2]
OF_EXTRAS = ("pyarrow", "boto", "s3transfer", "urllib3", "uvicorn", "litestar", "multipart", "prometheus_client")
WAIT_S = 300.0  # only against a hang
REQUESTS = [
    {"custom_id": f"r{n}", "params": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}}
    for n in range(3)
]

Start = Callable[..., "subprocess.Popen[bytes]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """`folder`: the working directory, outside the checkout."""

    python: Path
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BATCHFILE_"))}

    def command(self, *arguments: str) -> list[str]:
        return [str(self.python.with_name("batchfile")), *arguments]

    def run(self, *command: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=WAIT_S
        )


def environment(folder: Path, packages: str | None) -> Path:
    """The Python of a new environment that also sees `packages`. Of these, no editable install takes effect."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    if packages is not None:
        purelib = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
        Path(purelib, "dependencies.pth").write_text(f"{packages}\n")
    return folder / "bin" / "python"


def pip(python: str | Path, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    python = environment(folder / "venv", sysconfig.get_path("purelib"))
    pip(python, "install", "--no-deps", "--no-index", wheel)
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in REQUESTS))
    return Installed(python=python, folder=folder)


@pytest.fixture
def start(installed: Installed) -> Iterator[Start]:
    processes: list[subprocess.Popen[bytes]] = []

    def one(name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with (installed.folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    installed.command(*arguments), cwd=installed.folder, env=installed.environ, stdout=log, stderr=log
                )
            )
        return processes[-1]

    yield one
    for process in processes:
        process.terminate()
        process.wait()


def event(process: "subprocess.Popen[bytes]", log: Path, name: str) -> dict[str, object]:
    """The first log line of this event."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            with suppress(ValueError):
                found: dict[str, object] = json.loads(line)
                if found["event"] == name:
                    return found
        time.sleep(0.05)
    pytest.fail(f"no {name}: {log.read_text()[-2000:]}")


def succeeded(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["custom_id"] for line in lines if line["status"] == "succeeded"]


def test_the_wheel_has_every_module_and_marker_under_one_name(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "batchfile", "api", "runners"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    kept = {name for name in tracked if not name.endswith("README.md") and (ROOT / name).exists()}
    assert names == {name if name.startswith("batchfile/") else f"batchfile/{name}" for name in kept}


def test_neither_the_checkout_nor_a_package_of_another_name_can_be_imported(installed: Installed) -> None:
    look = (
        "import batchfile; from importlib.util import find_spec; print(batchfile.__file__, find_spec('api'), "
        "find_spec('runners'), find_spec('batchfile.api') is not None, find_spec('batchfile.runners') is not None)"
    )
    place, *found = installed.run(installed.python, "-c", look).stdout.split()
    assert Path(place).is_relative_to(installed.folder / "venv")
    assert found == ["None", "None", "True", "True"]


def test_run_answers_a_file(installed: Installed) -> None:
    done = installed.run(*installed.command("run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo"))
    assert done.returncode == 0, done.stderr
    assert succeeded(installed.folder / "out.jsonl") == ["r0", "r1", "r2"]


def test_a_batch_goes_through_serve_and_worker(installed: Installed, start: Start) -> None:
    log = installed.folder / "serve.log"
    port = event(start("serve", "serve", "--port", "0", "--store", "store"), log, "api.started")["port"]
    start("worker", "worker", "--pool", "mistral", "--engine", "echo", "--store", "store", "--metrics-port", "0")
    url = f"http://127.0.0.1:{port}"
    submit = installed.command("submit", "in.jsonl", "--stage", "email", "--url", url)
    done = installed.run(*submit, "-o", "served.jsonl")
    assert done.returncode == 0, done.stderr + log.read_text()
    assert succeeded(installed.folder / "served.jsonl") == ["r0", "r1", "r2"]


def test_a_checkout_in_the_working_directory_is_not_taken_for_the_wheel(installed: Installed, tmp_path: Path) -> None:
    for name in ("batchfile", "api", "runners"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not this one')")
    command = installed.command("worker", "--pool", "mistral", "--engine", "echo", "--drain", "--store", "store")
    done = subprocess.run(
        [*command, "--metrics-port", "0"],
        cwd=tmp_path,
        env=installed.environ,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr


def test_the_editable_install_has_the_same_commands(tmp_path: Path) -> None:
    """Also where another package of the name `api` comes first."""
    python = environment(tmp_path / "venv", sysconfig.get_path("purelib"))
    pip(python, "install", "--no-deps", "--no-index", "--no-build-isolation", "--editable", ROOT)
    editable = Installed(python=python, folder=tmp_path)
    (tmp_path / "other" / "api").mkdir(parents=True)
    (tmp_path / "other" / "api" / "__init__.py").write_text("raise ImportError('not this one')")
    environ = {**editable.environ, "PYTHONPATH": str(tmp_path / "other")}
    for name, option in (("serve", "--port"), ("worker", "--idle-exit")):
        command = editable.command(name, "--help")
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.stdout.startswith(f"usage: batchfile {name} "), done.stderr
        assert option in done.stdout
    look = "import batchfile, api, runners; print(batchfile.__file__)"
    assert editable.run(python, "-c", look).stdout.strip() == batchfile.__file__


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Without the packages that are of an extra alone."""
    folder = tmp_path_factory.mktemp("core")
    (folder / "packages").mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(OF_EXTRAS):
            (folder / "packages" / package.name).symlink_to(package)
    python = environment(folder / "venv", str(folder / "packages"))
    pip(python, "install", "--no-deps", "--no-index", wheel)
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in REQUESTS))
    (folder / "in.parquet").write_bytes(b"PAR1 PAR1")
    return Installed(python=python, folder=folder)


def test_the_core_runs_jsonl(core: Installed) -> None:
    done = core.run(*core.command("run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo"))
    assert done.returncode == 0, done.stderr
    assert succeeded(core.folder / "out.jsonl") == ["r0", "r1", "r2"]


@pytest.mark.parametrize(
    ("arguments", "needed", "extra"),
    [
        (("run", "in.jsonl", "-o", "out.parquet", "--engine", "echo"), "pyarrow", "parquet"),
        (("run", "in.parquet", "-o", "new.jsonl", "--engine", "echo"), "pyarrow", "parquet"),
        (("validate", "in.parquet"), "pyarrow", "parquet"),
        (("ls", "--store", "s3://bucket/prefix"), "boto3", "s3"),
        (("serve", "--store", "s3://bucket/prefix"), "uvicorn", "api"),
        (("worker", "--pool", "mistral", "--engine", "echo", "--metrics-port", "0"), "prometheus_client", "fleet"),
    ],
)
def test_a_missing_extra_is_named(core: Installed, arguments: tuple[str, ...], needed: str, extra: str) -> None:
    done = core.run(*core.command(*arguments))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"{needed} is not installed" in done.stderr.replace(", which", "").replace(" here", "")
    assert f"pip install 'batchfile[{extra}]'" in done.stderr
