"""Which part of the code may import what, and what starting up may load. Read from the code, not measured in time."""

import ast
import subprocess
import sys
from collections import Counter, defaultdict
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
    "numpy",
    "pandas",
    "polars",
    "jinja2",
    "jsonschema_rs",
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
    "aiohttp": (
        "batchfile/engine/http/connection.py",
        "batchfile/client/http_client.py",
        "batchfile/local/http_input.py",
    ),
    "PIL": ("batchfile/media/decode.py",),
    "backports": ("batchfile/lines/file_formats.py",),
    "jsonschema_rs": ("batchfile/schemas/rules.py",),
    "litestar": ("api/",),
    "click": ("batchfile/cli/",),
    "rich": ("batchfile/cli/", "batchfile/local/display.py"),
    "genai_prices": ("batchfile/client/estimate.py",),
    "pyarrow": (
        "batchfile/lines/parquet.py",
        "batchfile/lines/converter_child.py",
        "batchfile/rows/write_parquet.py",
        "batchfile/rows/arrow.py",
    ),
    "pandas": ("batchfile/rows/arrow.py",),
    "polars": ("batchfile/rows/arrow.py",),
    "datasets": ("batchfile/rows/arrow.py",),
    "jinja2": ("batchfile/rows/prompt.py", "batchfile/client/report/page.py", "api/http/openapi.py"),
    "ray": ("runners/ray/",),
    "opentelemetry": ("batchfile/tracing.py",),
}
APPLICATIONS = ("batchfile", "api", "runners", "deploy")
# File or folder -> all modules that it may import besides its own, or packages with all that is in them. Names without
# an application are of the library; `batchfile` is its version. A row of a folder does not cover the folders in it.
# Both a file without a row and an entry that is not needed fail.
PLACES = {
    # the library, from the bottom up
    "batchfile/errors.py": "",
    "batchfile/request_media.py": "",
    "batchfile/request_options.py": "",
    "batchfile/types.py": "request_media request_options",
    "batchfile/endpoints.py": "types",
    "batchfile/clock.py": "",
    "batchfile/logs.py": "",
    "batchfile/tracing.py": "errors",
    "batchfile/env_aliases.py": "",
    "batchfile/child_env.py": "",
    "batchfile/routing.py": "errors endpoints types",
    "batchfile/safe_http.py": "",
    "batchfile/store/": "errors clock child_env",
    "batchfile/lines/": "errors endpoints types request_media child_env routing lines.formats",
    "batchfile/lines/formats/": "errors endpoints types request_media request_options lines.diagnostics lines.framing "
    "lines.result",
    "batchfile/rows/": "errors types lines schemas.rules",
    "batchfile/schemas/": "child_env",
    "batchfile/media/": "errors types request_media clock safe_http store",
    # testing.faulty_echo: where a variable asks for faults
    "batchfile/engine/": "errors endpoints types request_media request_options clock engine.http.engine "
    "engine.vllm.engine engine.vllm.identity engine.vllm.tasks testing.faulty_echo",
    "batchfile/engine/http/": "errors endpoints types request_media engine.base engine.fit engine.prompts "
    "engine.tool_wire",
    "batchfile/engine/vllm/": "errors endpoints types request_media request_options child_env schemas engine.base "
    "engine.control_tokens engine.fit engine.identity engine.prompts engine.tool_wire",
    "batchfile/machine/": "errors child_env signals engine_settings engine.vllm.arguments engine.vllm.cpu "
    "engine.vllm.preflight",
    "batchfile/ledger/": "tracing errors types clock store.base lines.envelope lines.failures lines.framing "
    "lines.result",
    "batchfile/engine_settings.py": "",
    "batchfile/settings_tables.py": "types engine_settings ledger.keys media.rules",
    "batchfile/settings_built_in.py": "",
    "batchfile/settings.py": "errors types env_aliases routing schemas.rules ledger.base ledger.keys settings_built_in "
    "settings_tables",
    # testing.crash_points: where a variable names one
    "batchfile/open_ledger.py": "errors store ledger.base settings testing.crash_points",
    "batchfile/files/": "errors ledger",
    "batchfile/plan/": "tracing errors types routing store.base lines rows ledger",
    "batchfile/inbox/": "batchfile errors types store.base lines ledger plan",
    "batchfile/long_work.py": "errors ledger plan.pending inbox",
    "batchfile/janitor.py": "errors ledger plan.pending inbox",
    "batchfile/runner/": "tracing errors types request_media clock routing store.base lines schemas media engine.base "
    "ledger inbox long_work janitor",
    "batchfile/signals.py": "",
    "batchfile/local/": "batchfile tracing errors types logs child_env signals routing engine_settings settings "
    "open_ledger store lines rows media.rules engine.base engine.identity engine.open engine.http.engine "
    "engine.vllm.adapters engine.vllm.preflight ledger machine plan inbox.documents runner.runner runner.stats "
    "runner.watchdog",
    "batchfile/client/": "errors types logs routing settings open_ledger store lines rows ledger plan.options "
    "plan.reuse_sources plan.submit inbox.records local.inputs local.options local.outputs local.receipt local.tables "
    "client.report",
    "batchfile/client/report/": "batchfile types lines ledger.profile local.display local.options local.outputs "
    "local.progress local.receipt client.base",
    "batchfile/testing/": "errors types clock store engine.base engine.echo ledger.records runner",
    "batchfile/cli/": "batchfile tracing errors types logs routing engine_settings settings settings_tables signals "
    "open_ledger store lines engine.fit engine.vllm.cpu engine.vllm.preflight machine ledger inbox.documents "
    "runner.runner local client",
    "batchfile/__main__.py": "cli",
    "batchfile/__init__.py": "errors types store.open engine.base ledger.base runner.runner local.receipt "
    "local.api local.map_table client testing",
    # the service
    "api/http/": "batchfile errors types settings settings_tables lines ledger",
    "api/service.py": "errors settings files ledger api.http",
    "api/create.py": "tracing errors types routing settings lines.kinds lines.split_document ledger plan api.http "
    "api.service",
    "api/ops/": "batchfile errors settings settings_tables safe_http open_ledger store lines.formats.stage ledger "
    "plan.pending inbox api.http",
    "api/native/": "lines.formats ledger plan.submit inbox.records api.http api.service api.create api.ops",
    "api/dashboard/": "errors types routing client.estimate lines rows ledger api.http api.service api.ops.pools "
    "api.native.schemas",
    "api/openai/": "endpoints routing types lines.formats.openai_results lines.parse files ledger plan api.http "
    "api.service api.create api.ops.background",
    # api.native: the responses of the stage contract, which has the same paths
    "api/anthropic/": "errors routing settings_tables lines.formats ledger api.http api.service api.create "
    "api.ops.background api.native",
    "api/app.py": "settings store.metered ledger inbox.scan long_work janitor api.http api.service api.ops api.native "
    "api.openai api.anthropic api.dashboard",
    "api/__main__.py": "tracing errors logs settings open_ledger api.http api.ops.store_health api.app",
    "api/__init__.py": "",
    # runners and deployment
    "runners/": "tracing errors types logs child_env settings settings_tables signals open_ledger store.metered "
    "media.rules engine.base engine.open engine.vllm.adapters engine.vllm.preflight ledger machine inbox.keys "
    "inbox.outbox inbox.scan runner.runner runner.stats",
    "runners/ray/": "errors types logs settings open_ledger store.open ledger.heartbeats ledger.status "
    "machine.supervisor runners.child runners.options runners.scaling",
    "runners/runpod/": "errors logs signals runners.child runners.options runners.scaling",
    "deploy/": "errors settings settings_tables signals engine.vllm.cpu",
    "deploy/local_setup/": "",
    "deploy/runpod/": "runners.runpod",
}


# What tests import besides tests/helpers: the public modules. So the move of another module changes the helpers alone.
PUBLIC = ("batchfile/__init__.py", "batchfile/errors.py", "batchfile/testing/__init__.py", "batchfile/types.py")
PUBLIC += ("batchfile/engine/base.py",)
UNIT_FILES_MAX = 3  # unit tests that import the same inner module directly: those of the module itself

OWN_NAMES = {"Connection"}  # a class inside one engine
LINES_MAX, TEST_LINES_MAX = 400, 450


def _files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts)


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


def test_no_file_is_too_long_to_read() -> None:
    limits = dict.fromkeys(APPLICATIONS, LINES_MAX) | {"tests": TEST_LINES_MAX}
    sizes = [
        (path, len(path.read_text().splitlines()), limit) for folder, limit in limits.items() for path in _files(folder)
    ]
    assert [f"{path.relative_to(ROOT)}: {size}" for path, size, limit in sizes if size > limit] == []


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


def _place(name: str) -> str | None:
    """The row of PLACES for a file: its own, or that of its folder. `name`: with `/`."""
    return next((one for one in (name, name.rpartition("/")[0] + "/") if one in PLACES), None)


@cache
def _module(name: str) -> str | None:
    """The file of the module that `name` is, or is defined in; None if it is not ours."""
    parts = name.split(".")
    while parts and parts[0] in APPLICATIONS:
        path = ROOT.joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file.relative_to(ROOT).as_posix()
        parts.pop()
    return None


def _allowed(place: str) -> list[str]:
    """The row's modules and packages, in full."""
    return [name if name.split(".")[0] in APPLICATIONS else f"batchfile.{name}" for name in PLACES[place].split()]


def _entry(place: str, file: str) -> str | None:
    """The entry of the row that allows the module in `file`."""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for name in _allowed(place):
        if module == name or (name != "batchfile" and module.startswith(f"{name}.")):
            return name
    return None


def test_every_file_has_a_row_of_rules() -> None:
    names = [path.relative_to(ROOT).as_posix() for folder in APPLICATIONS for path in _files(folder)]
    assert [name for name in names if _place(name) is None] == []
    assert [place for place in PLACES if place not in {_place(name) for name in names}] == []


@pytest.mark.parametrize("place", PLACES)
def test_a_part_imports_what_its_row_lists_and_nothing_else(place: str) -> None:
    offenders, used = list[str](), set[str]()
    for path in (path for folder in APPLICATIONS for path in _files(folder)):
        name = path.relative_to(ROOT).as_posix()
        for module in _imports(path) if _place(name) == place else ():
            file = _module(module)
            if file is None or _place(file) == place:
                continue
            entry = _entry(place, file)
            if entry is None:
                offenders.append(f"{name} imports {module}")
            else:
                used.add(entry)
    assert offenders == []
    assert [name for name in _allowed(place) if name not in used] == []


@pytest.mark.parametrize("folder", ["api", "runners"])
def test_an_application_imports_itself_relatively(folder: str) -> None:
    """So that the wheel can carry it under another name."""
    for path in _files(folder):
        for node in _import_nodes(path):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != folder, path


def test_a_class_name_has_one_meaning() -> None:
    """Models of bodies and lines have the names of their API."""
    found = defaultdict[str, list[str]](list)
    for path in (path for folder in APPLICATIONS for path in _files(folder)):
        if path.name != "schemas.py" and path.parent.name != "formats":
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: places for name, places in found.items() if len(places) > 1 and name not in OWN_NAMES} == {}


def _inner(path: Path) -> set[str]:
    """The files of the modules that a test imports, other than the public ones."""
    return {file for module in _imports(path) if (file := _module(module)) is not None and file not in PUBLIC}


def _tests(*, is_unit: bool) -> list[Path]:
    helpers = {ROOT / "tests/conftest.py", *_files("tests/helpers")}
    found = [path for path in _files("tests") if path not in helpers]
    return [path for path in found if (path.parent.name == "unit") == is_unit]


def test_tests_import_public_modules_and_helpers_alone() -> None:
    offenders = {path.relative_to(ROOT).as_posix(): sorted(_inner(path)) for path in _tests(is_unit=False)}
    assert {name: modules for name, modules in offenders.items() if modules} == {}


def test_a_unit_test_imports_the_module_that_it_tests() -> None:
    """What many unit tests need comes from the helpers."""
    num = Counter(file for path in _tests(is_unit=True) for file in _inner(path))
    assert {file: count for file, count in num.items() if count > UNIT_FILES_MAX} == {}


def test_a_helper_imports_only_what_tests_need() -> None:
    offered = {
        f"tests.helpers.{path.stem}.{alias.asname or alias.name}"
        for path in _files("tests/helpers")
        for node in _import_nodes(path)
        for alias in node.names
    }
    used = {name for is_unit in (True, False) for path in _tests(is_unit=is_unit) for name in _imports(path)}
    assert offered - used == set()


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
