"""Runs the program of a step without its output, with progress and a check of free disk space."""

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
from .progress import SetupProgress, size

POLL_S = 0.2
OUTPUT_LINES_MAX = 12
OUTPUT_CHARS_MAX = 2_000
DISK_IS_FULL_BYTES = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """`least_free`: the minimum of free bytes on the watched disk while the program ran."""

    exit_status: int
    output: str
    least_free: int

    def ran_out_of_disk(self) -> bool:
        """Judged by the measured free space, or by the operating system's error text."""
        return self.least_free < DISK_IS_FULL_BYTES or os.strerror(errno.ENOSPC) in self.output


def free_bytes(folder: Path) -> int:
    """The free bytes on the disk of a folder, which may not exist yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def require_space(folder: Path, needed: int, what: str) -> None:
    free = free_bytes(folder)
    if free < needed:
        raise SetupError(
            f"{what} needs about {size(needed)} of disk space, but the disk of {folder} has {size(free)} free. "
            "Free some space, then run the same command again."
        )


def disk_full(folder: Path) -> SetupError:
    return SetupError(
        f"The disk of {folder} is full. Free some space, then run the same command again; completed steps are kept."
    )


def attempt(
    command: Sequence[str],
    progress: SetupProgress,
    *,
    disk: Path,
    env: dict[str, str] | None = None,
    holds: Sequence[int] = (),
) -> Done:
    """Run a program to its end. `holds`: lock descriptors that it keeps until it ends, even if this process dies."""
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
        text = output.read().decode(errors="replace")
    return Done(exit_status=process.returncode, output=text, least_free=least_free)


def run(command: Sequence[str], progress: SetupProgress, *, disk: Path, hint: str, holds: Sequence[int] = ()) -> None:
    done = attempt(command, progress, disk=disk, holds=holds)
    if done.exit_status == 0:
        return
    if done.ran_out_of_disk():
        raise disk_full(disk)
    raise SetupError(f"{hint}\n\n{short(command, done)}")


def short(command: Sequence[str], done: Done) -> str:
    """The exit status and the last lines of a program's output."""
    name = " ".join(["python" if part == sys.executable else part for part in command])
    name = name.partition("\n")[0][:120]
    lines = [line for line in done.output.strip().splitlines() if line.strip()][-OUTPUT_LINES_MAX:]
    return f"`{name}` exited with status {done.exit_status}:\n" + "\n".join(lines)[-OUTPUT_CHARS_MAX:]
