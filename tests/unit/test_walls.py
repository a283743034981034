"""Which part of the code may import what, and what starting up may load. Read from the code, not measured in time."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "vllm",
    "torch",
    "transformers",
    "boto3",
    "botocore",
    "litestar",
    "aiohttp",
    "pyarrow",
    "pydantic",
    "pydantic_settings",
    "rich",
    "structlog",
    "msgspec",
)
# package -> the files that may import it (a folder ends with /)
ALLOWED = {
    "boto3": ("batchfile/store/s3.py",),
    "botocore": ("batchfile/store/s3.py",),
    "vllm": ("batchfile/engine/vllm/engine.py",),
    "torch": ("batchfile/engine/vllm/engine.py",),
    "transformers": ("batchfile/engine/vllm/engine.py", "batchfile/engine/tokens.py"),
    "aiohttp": ("batchfile/engine/http/connection.py", "batchfile/client/http_api.py"),
    "backports": ("batchfile/lines/unpack.py", "batchfile/client/http_api.py"),
    "jsonschema_rs": ("batchfile/runner/schemas/output_schema.py",),
    "litestar": ("api/",),
    "click": ("batchfile/cli/",),
    "rich": ("batchfile/cli/",),
    "genai_prices": ("batchfile/client/prices.py",),
    "pyarrow": ("batchfile/lines/parquet.py", "batchfile/lines/parquet_columns.py"),
    "ray": ("runners/ray/",),
}


def _files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Every module that the file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            yield node.module or ""


def _is_allowed(path: Path, places: tuple[str, ...]) -> bool:
    """A file, or a module that was split into a package of the same name or prefix."""
    name = path.relative_to(ROOT).as_posix()
    for place in places:
        stem = place.removesuffix(".py")
        if (
            name == place
            or name.startswith((f"{stem}/", f"{stem}_"))
            or (place.endswith("/") and name.startswith(place))
        ):
            return True
    return False


@pytest.mark.parametrize("package", ALLOWED)
def test_a_foreign_library_is_known_to_its_own_file_alone(package: str) -> None:
    offenders = [
        f"{path.relative_to(ROOT)} imports {module}"
        for folder in ("batchfile", "api", "runners")
        for path in _files(folder)
        for module in _imports(path)
        if module.split(".")[0] == package and not _is_allowed(path, ALLOWED[package])
    ]
    assert offenders == []


def test_the_library_imports_neither_application() -> None:
    for path in _files("batchfile"):
        assert not {"api", "runners", "tests"} & {module.split(".")[0] for module in _imports(path)}, path


@pytest.mark.parametrize(("folder", "other"), [("api", "runners"), ("runners", "api")])
def test_the_applications_meet_in_the_bucket_only(folder: str, other: str) -> None:
    for path in _files(folder):
        assert other not in {module.split(".")[0] for module in _imports(path)}, path


@pytest.mark.parametrize("part", ["store", "lines", "ledger", "runner", "engine"])
def test_the_core_knows_neither_the_command_line_nor_settings(part: str) -> None:
    for path in _files(f"batchfile/{part}"):
        for module in _imports(path):
            assert not module.startswith(("batchfile.cli", "batchfile.local", "batchfile.settings")), path


def test_pure_rules_import_no_store_and_no_engine() -> None:
    for name in ("lines", "ledger/lease.py", "routing.py", "words.py", "records.py", "layout.py", "bits.py"):
        place = ROOT / "batchfile" / name
        for path in [place] if place.suffix else _files(f"batchfile/{name}"):
            for module in _imports(path):
                assert not module.startswith(("batchfile.store", "batchfile.engine", "batchfile.runner")), path


def _loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\nLOADED', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_importing_the_library_loads_nothing_heavy() -> None:
    assert _loaded("import batchfile") & {*HEAVY, "click"} == set()


def test_help_loads_nothing_heavy() -> None:
    code = "sys.argv = ['batchfile', '--help']\nfrom batchfile.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert _loaded(code) & set(HEAVY) == set()


def test_the_help_of_run_loads_no_engine_and_no_store_client() -> None:
    code = "sys.argv = ['batchfile', 'run', '-h']\nfrom batchfile.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert _loaded(code) & {"vllm", "torch", "transformers", "boto3", "litestar", "aiohttp", "pyarrow"} == set()
