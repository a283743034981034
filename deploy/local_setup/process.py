"""Runs a program of a step: quietly, with progress, and with an eye on the disk."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .places import ROOT, SetupError
from .progress import Progress, size

POLL_S = 0.2
TOLD_LINES_MAX = 12
TOLD_CHARS_MAX = 2_000
DISK_IS_FULL_BYTES = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """`least_free`: the least free space on the watched disk while the program ran, in bytes."""

    exit_status: int
    told: str
    least_free: int

    def ran_out_of_disk(self) -> bool:
        """By what was measured, or by the operating system's own words for it."""
        return self.least_free < DISK_IS_FULL_BYTES or os.strerror(errno.ENOSPC) in self.told


def free_bytes(folder: Path) -> int:
    """On the disk that has, or would have, this folder."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def require_space(folder: Path, needed: int, what: str) -> None:
    free = free_bytes(folder)
    if free < needed:
        raise SetupError(
            f"{what} needs about {size(needed)} of disk space, and the disk of {folder} has {size(free)} free. "
            "Free some space, then run the same command again."
        )


def disk_full(folder: Path) -> SetupError:
    return SetupError(
        f"The disk of {folder} is full. Free some space, then run the same command again; what is complete stays."
    )


def attempt(
    command: Sequence[str],
    progress: Progress,
    *,
    disk: Path,
    env: dict[str, str] | None = None,
    holds: Sequence[int] = (),
) -> Done:
    """Run to its end. `holds` are lock descriptors that the program has until it ends, whatever becomes of us."""
    least_free = free_bytes(disk)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=holds,
        )
        while True:
            try:
                process.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                least_free = min(least_free, free_bytes(disk))
                progress.tick()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
        output.seek(0)
        told = output.read().decode(errors="replace")
    return Done(exit_status=process.returncode, told=told, least_free=least_free)


def run(command: Sequence[str], progress: Progress, *, disk: Path, hint: str, holds: Sequence[int] = ()) -> None:
    done = attempt(command, progress, disk=disk, holds=holds)
    if done.exit_status == 0:
        return
    if done.ran_out_of_disk():
        raise disk_full(disk)
    raise SetupError(f"{hint}\n\n{short(command, done)}")


def short(command: Sequence[str], done: Done) -> str:
    """The end of what a program wrote, below our own sentence."""
    name = " ".join(["python" if part == sys.executable else part for part in command])
    name = name.partition("\n")[0][:120]
    lines = [line for line in done.told.strip().splitlines() if line.strip()][-TOLD_LINES_MAX:]
    return f"`{name}` ended with exit status {done.exit_status}:\n" + "\n".join(lines)[-TOLD_CHARS_MAX:]
