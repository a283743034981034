"""Which part of the code may import what, and what starting up may load. Read from the code, not measured in time."""

import ast
import subprocess
import sys
from functools import cache
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
    "vllm": ("batchfile/engine/vllm/",),
    "torch": ("batchfile/engine/vllm/",),
    "transformers": ("batchfile/engine/vllm/", "batchfile/engine/fit.py"),
    "aiohttp": ("batchfile/engine/http/connection.py", "batchfile/client/http_client.py"),
    "backports": ("batchfile/lines/file_formats.py", "batchfile/client/http_client.py"),
    "jsonschema_rs": ("batchfile/schemas/rules.py",),
    "litestar": ("api/",),
    "click": ("batchfile/cli/",),
    "rich": ("batchfile/cli/", "batchfile/local/display.py"),
    "genai_prices": ("batchfile/client/estimate.py",),
    "pyarrow": ("batchfile/lines/parquet.py", "batchfile/lines/converter_child.py"),
    "ray": ("runners/ray/",),
}
ROUTED = ("routing", "settings", "open_ledger", "logs")
# part of the library -> the parts that it may import besides errors, clock, types and child_env
PARTS = {
    "store": (),
    "lines": ("routing",),
    "schemas": (),
    "engine": ("schemas", "testing"),  # testing: where a variable asks for faults
    "ledger": ("store", "lines"),
    "files": ("ledger",),
    "plan": ("store", "lines", "ledger", "routing"),
    "inbox": ("store", "lines", "ledger", "plan"),
    "long_work": ("ledger", "plan", "inbox"),
    "janitor": ("ledger", "plan", "inbox", "long_work"),
    "runner": ("store", "lines", "schemas", "engine", "ledger", "plan", "inbox", "janitor", "long_work", "routing"),
    "open_ledger": ("store", "ledger", "settings", "testing"),  # testing: where a variable names a crash point
    "local": ("store", "lines", "engine", "ledger", "plan", "inbox", "runner", *ROUTED),
    "client": ("store", "lines", "ledger", "plan", "inbox", "local", *ROUTED),
}


def _files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


@cache
def _import_nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def _imports(path: Path) -> list[str]:
    """Every module that the file imports anywhere, also inside functions."""
    found: list[str] = []
    for node in _import_nodes(path):
        module = ""
        if isinstance(node, ast.ImportFrom):
            base = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part) + "."
        found += [f"{module}{alias.name}" for alias in node.names]
    return found


def _is_allowed(path: Path, places: tuple[str, ...]) -> bool:
    """A file, one of the same prefix, or one in a folder."""
    name = path.relative_to(ROOT).as_posix()
    return any(name.startswith((place, place.removesuffix(".py") + "_")) for place in places)


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


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_library_imports_only_what_stands_below_it(part: str) -> None:
    allowed = {part, *PARTS[part], "errors", "clock", "types", "child_env"}
    place = ROOT / "batchfile" / part
    for path in _files(f"batchfile/{part}") if place.is_dir() else [place.with_suffix(".py")]:
        for module in _imports(path):
            names = module.split(".")
            if names[0] == "batchfile" and names[1] != "__version__":
                assert names[1] in allowed, f"{path} imports {module}"


@pytest.mark.parametrize("folder", ["api", "runners"])
def test_an_application_imports_itself_relatively(folder: str) -> None:
    """So that the wheel can carry it under another name."""
    for path in _files(folder):
        for node in _import_nodes(path):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != folder, path


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
