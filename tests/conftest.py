"""What every test gets: an environment that nobody's settings or credentials reach."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from batchfile.engine.vllm.cpu import BIND, core_shares, read_cpu
from batchfile.engine.vllm.processes import ProcessGuard

# No test depends on a timing or on a draw: neither a busy machine nor a fresh example makes one of them fail. The long
# form draws (`--hypothesis-profile=long`).
settings.register_profile("batchfile", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=500)
settings.load_profile("batchfile")

# With a real model no time is right for every machine: this is for what hangs.
VLLM_HANG_S = 2 * 3600

# Stores that sync each write wait for the disk half of their time: where there is room, tests write to memory.
MEMORY_FOLDER = "/dev/shm"
MEMORY_BYTES_MIN = 4 * 2**30
if (
    os.access(MEMORY_FOLDER, os.W_OK)
    and not os.statvfs(MEMORY_FOLDER).f_flag & os.ST_NOEXEC
    and shutil.disk_usage(MEMORY_FOLDER).free >= MEMORY_BYTES_MIN
):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY_FOLDER)

_OURS = ("BATCHFILE_", "AWS_")
_KEPT = ("BATCHFILE_CACHE",)  # where the real model is


# Each file of tests runs in one process, so those that take longest begin first (`--no-loadscope-reorder`).
LONGEST = (
    *("fleet/test_ray.py", "deploy/test_setup.py", "chaos/", "service/test_run_stopping.py", "sim/", "bench/"),
    *("service/test_docs_commands.py", "service/test_smoke_and_load.py", "deploy/"),
    *("e2e/test_service_vllm.py", "e2e/test_runners_vllm.py", "e2e/test_kill_vllm.py"),
)


def place_of(item: pytest.Item) -> int:
    name = f"{item.path.parent.name}/{item.path.name}"
    return next((place for place, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place_of)
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.timeout(VLLM_HANG_S), append=False)


@pytest.fixture(autouse=True, scope="session")
def _bare_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For the whole session, and so for the processes that tests start."""
    for name in [name for name in os.environ if name.startswith(_OURS) and name not in _KEPT]:
        del os.environ[name]
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))  # where runs keep their receipts


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_behind() -> Iterator[None]:
    """Whatever a test starts ends with this process, however that ends: services and fleets would run for ever."""
    guard = ProcessGuard()
    os.environ.update(guard.environ)
    yield
    guard.close()


@pytest.fixture(autouse=True, scope="session")
def _own_cores() -> None:
    """Of tests that run side by side: two engines with all cores each would mostly wait for each other."""
    num = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = core_shares(read_cpu().cores, num)[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])]
    if share is not None:
        os.environ.setdefault(BIND, share)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that a test calls sets up the log of its process; the next test gets it as it was."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def model_path() -> str:
    """The folder of the small real model that set-up fetches."""
    recipe = Path(__file__).parents[1] / "deploy" / "local.py"
    path = subprocess.run([sys.executable, recipe, "--print-model"], capture_output=True, text=True, check=True).stdout
    if not Path(path.strip(), "config.json").is_file():
        pytest.fail(f"the model is not in {path.strip()}: run `just setup` once")
    return path.strip()
