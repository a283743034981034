"""The packed Node adapter as its users get it: installed elsewhere, compiled with each module resolution, and run."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.service.node_kit import CONSUMER, ROOT, TS, find_node, install, run
from tests.warm import Warm

pytestmark = pytest.mark.slow

POOLS = ("mistral", "llama-70b")
COMMON = {
    "target": "ES2022",
    "lib": ["ES2022"],
    "types": ["node"],
    "typeRoots": [str(CONSUMER / "node_modules" / "@types")],
    "strict": True,
    "outDir": "out",
}
MAIN_FUNCTIONS = ("createBatch", "getBatchStatus", "getBatchResults", "streamBatchResults", "waitForBatch")
SWAP_LINES_MAX = 10


class Kind(NamedTuple):
    """A kind of consumer: the `type` of its package, how TypeScript resolves modules for it, and which Node runs it."""

    type: str
    module: str
    resolution: str
    is_oldest_node: bool = False


KINDS = {
    "node10": Kind("commonjs", "CommonJS", "node10", is_oldest_node=True),
    "node16-commonjs": Kind("commonjs", "Node16", "Node16"),
    "node16-esm": Kind("module", "Node16", "Node16", is_oldest_node=True),
    "bundler": Kind("module", "ESNext", "Bundler"),
}
NEWEST = Kind("module", "NodeNext", "NodeNext")
OLDEST_NODE = CONSUMER / "node_modules" / ".bin" / "node"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the packed package is installed. It is packed in a copy, because other tests use `ts/dist`."""
    find_node()
    install(TS)
    install(CONSUMER)
    copy, folder = tmp_path_factory.mktemp("ts"), tmp_path_factory.mktemp("consumers")
    ignored = shutil.ignore_patterns("node_modules", "dist", "build", "*.tgz")
    shutil.copytree(TS, copy, ignore=ignored, dirs_exist_ok=True)
    (copy / "node_modules").symlink_to(TS / "node_modules")
    packed = run(["npm", "pack", "--silent", "--pack-destination", str(folder)], copy).split()[-1]
    (folder / "package.json").write_text('{"private": true}')
    run(["npm", "install", "--offline", "--no-audit", "--no-fund", f"./{packed}"], folder)
    return folder


@pytest.fixture(scope="module")
def package(installed: Path) -> Path:
    return installed / "node_modules" / "@batchfile" / "adapter"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, serve_api: Any) -> Iterator[str]:
    """The address of a service with an echo engine for each pool, which thinks and calls tools."""
    api, folder = serve_api(), tmp_path_factory.mktemp("runners")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "BATCHFILE_ECHO_THINKING": "Hm."}
    environ |= {"BATCHFILE_ECHO_TOOL_INPUT": '{"name": "Ada"}', "BATCHFILE_ECHO_GUIDED": '{"name": "Ada"}'}
    runners = []
    for pool in POOLS:
        arguments = ["--pool", pool, "--engine", "echo", "--store", api.store, "--metrics-port", "0"]
        with (folder / f"{pool}.log").open("wb") as log:
            runners.append(Warm("runners", arguments, cwd=folder, env=environ, stdout=log, stderr=log))
    yield api.url
    for runner in runners:
        runner.terminate()
    for runner in runners:
        runner.wait(60)


def compile_in(folder: Path, kind: Kind, files: list[str], tsc: Path, **more: Any) -> None:
    options = {**COMMON, "module": kind.module, "moduleResolution": kind.resolution, **more}
    (folder / "package.json").write_text(json.dumps({"type": kind.type}))
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": files}))
    run([str(tsc), "-p", "tsconfig.json"], folder)


@pytest.mark.parametrize("name", KINDS)
def test_an_application_of_each_kind_compiles_and_runs(name: str, installed: Path, served: str) -> None:
    kind, folder = KINDS[name], installed / name
    folder.mkdir()
    shutil.copy(CONSUMER / "app.ts", folder)
    compile_in(folder, kind, ["app.ts"], CONSUMER / "node_modules" / ".bin" / "tsc")
    node = str(OLDEST_NODE) if kind.is_oldest_node else find_node()
    assert run([node, "out/app.js"], folder, LOCAL_BATCH_URL=served) == "done\n"


def test_the_oldest_node_is_the_one_that_the_package_promises(package: Path) -> None:
    promised = json.loads((package / "package.json").read_text())["engines"]["node"]
    assert f">={run([str(OLDEST_NODE), '--version'])[1:3]}" == promised


def test_the_newest_typescript_compiles_it_too(installed: Path) -> None:
    folder = installed / "newest"
    folder.mkdir()
    shutil.copy(CONSUMER / "app.ts", folder)
    compile_in(folder, KINDS["bundler"], ["app.ts"], TS / "node_modules" / ".bin" / "tsc")
    compile_in(folder, NEWEST, ["app.ts"], TS / "node_modules" / ".bin" / "tsc")


def test_the_readme_compiles_and_its_swap_is_short(installed: Path, package: Path) -> None:
    folder = installed / "readme"
    shutil.copytree(package / "examples", folder / "examples")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "@anthropic-ai").symlink_to(TS / "node_modules" / "@anthropic-ai")
    files = ["examples/batchService.ts"]
    given = {
        "requests": "import('@batchfile/adapter').BatchRequest[]",
        "id": "string",
        "processBatchResults": "(results: import('@batchfile/adapter').BatchResult[]) => Promise<void>",
    }
    snippets = re.findall(r"^```ts\n(.*?)^```$", (package / "README.md").read_text(), re.S | re.M)
    assert len(snippets) == 3
    for n, snippet in enumerate(snippets):
        missing = [name for name in given if not re.search(rf"const {{ {name} }}", snippet)]
        declared = "".join(f"declare const {name}: {given[name]};\n" for name in missing)
        files.append(f"snippet{n}.ts")
        (folder / files[-1]).write_text(declared + snippet)
    tsc = TS / "node_modules" / ".bin" / "tsc"
    types = [str(TS / "node_modules" / "@types")]
    compile_in(folder, NEWEST, files, tsc, skipLibCheck=True, preserveSymlinks=True, typeRoots=types)
    assert len(snippets[-1].splitlines()) <= SWAP_LINES_MAX
    assert "createBatchRouter" in snippets[-1]


def test_the_readmes_first_example_runs(installed: Path, served: str) -> None:
    example = "node_modules/@batchfile/adapter/examples/firstBatch.mjs"
    assert example in (TS / "README.md").read_text()
    said = run([str(OLDEST_NODE), example], installed, LOCAL_BATCH_URL=served)
    assert "lead_Ada_email: Write a greeting to Ada." in said
    assert re.search(r"lead_Grace_email: \d+ tokens of .+, ended by end_turn", said)


def test_the_package_has_what_its_readme_names_and_no_more(package: Path) -> None:
    readme = (package / "README.md").read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", readme):
        assert (package / link).is_file(), link
    found = {path.relative_to(package).parts[0] for path in package.rglob("*") if path.is_file()}
    assert found == {"README.md", "dist", "examples", "package.json", "test"}
    assert [path.name for path in (package / "test").iterdir()] == ["needs.mjs"]
    assert not list(package.rglob("*.test.*"))


@pytest.mark.parametrize("form", ["dist", "dist/cjs"])
def test_the_main_functions_have_doc_comments_of_their_own(package: Path, form: str) -> None:
    declared = (package / form / "llmAdapter.d.ts").read_text()
    comments = dict(re.findall(r"/\*\*((?:(?!\*/).)*)\*/\s*export declare function (\w+)", declared, re.S))
    found = {name: comment for comment, name in comments.items()}
    for name in (*MAIN_FUNCTIONS, "streamNativeResults", "getNativeStatus"):
        assert "@throws" in found[name], name
    for name, words in (("createBatch", "10 minutes"), ("waitForBatch", "30 minutes"), ("getBatchResults", "500 MB")):
        assert words in found[name], name


def test_npm_test_says_what_it_needs(installed: Path, package: Path) -> None:
    assert "run them in ts/ of a checkout of batchfile" in run(["npm", "test"], package, code=1)
    (installed / "elsewhere" / "tests" / "golden" / "stage").mkdir(parents=True)
    bare = installed / "elsewhere" / "ts"
    shutil.copytree(package, bare)
    assert "run `npm ci` first" in run(["npm", "test"], bare, code=1)
