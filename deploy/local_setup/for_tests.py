"""What only the tests need: older majors of an official client, and the packages of the tests in Node."""

import shutil
from pathlib import Path

from .install import Installer
from .places import ROOT
from .process import run

# Older majors of an official client, each in a folder of its own. They use the environment's own packages otherwise.
SDK_MAJORS = {"anthropic-0": ("anthropic==0.84.0", "distro==1.9.0"), "anthropic-1": ("anthropic==1.17.0",)}
NODE_FOLDERS = ("ts", "tests/sdk-node", "tests/sdk-node-openai", "tests/s3rver")
SDK_MARK = ".complete"


def sdk_dir(name: str) -> Path:
    return ROOT / ".cache" / "sdks" / name


def has_sdk_major(name: str) -> bool:
    mark = sdk_dir(name) / SDK_MARK
    return mark.is_file() and mark.read_text() == " ".join(SDK_MAJORS[name])


def has_sdk_majors() -> bool:
    return all(has_sdk_major(name) for name in SDK_MAJORS)


def install_sdk_majors(installer: Installer) -> None:
    for name, packages in SDK_MAJORS.items():
        if has_sdk_major(name):
            continue
        shutil.rmtree(sdk_dir(name), ignore_errors=True)
        installer.pip("install", "--no-deps", "--target", str(sdk_dir(name)), *packages)
        (sdk_dir(name) / SDK_MARK).write_text(" ".join(packages))


def has_node_tools() -> bool:
    return all((ROOT / folder / "node_modules" / ".package-lock.json").exists() for folder in NODE_FOLDERS)


def install_node_tools(installer: Installer) -> str:
    """What builds the adapter and the tests in Node. Without Node only those tests do not run, and they say why."""
    npm = shutil.which("npm")
    if npm is None:
        return "left out, because npm is not on PATH: the tests of ts/ and of Node clients need Node 20 or newer"
    for folder in NODE_FOLDERS:
        run(
            [npm, "--prefix", folder, "ci", "--no-audit", "--no-fund"],
            installer.progress,
            disk=ROOT,
            hint="Check that npm reaches a registry, then run the same command again.",
            holds=[installer.lock],
        )
    return "done"
