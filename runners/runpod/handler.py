"""RunPod's serverless worker. A job runs a runner for this worker's pool for a while; it is not a batch or a request.

    POOL=mistral python -m runners.runpod.handler

The runner is a child process, `batchfile worker --pool NAME`. A failed request has an errored result; a job fails only
if its runner cannot work.

The input of a job, all optional:

    timeout_s   execution timeout of the job, enforced by RunPod; the job ends before it (default 600)
    idle_s      seconds without work after which it ends (default 60); null: it runs until the timeout
    prefetch    true: only download the pool's model to where the runner looks for it

Its output: `{"pool": "mistral", "ended": "idle" | "time" | "stopped" | "prefetched", "seconds": 12.3}`.
"""

import asyncio
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from .. import child

POOL_VARIABLE = "POOL"
ARGUMENTS_VARIABLE = "RUNNER_ARGUMENTS"  # additional arguments of `batchfile worker`
TIMEOUT_S = 600.0  # RunPod's default
IDLE_S = 60.0
# Time before the timeout to finish and checkpoint requests in flight, and to release the rest.
MARGIN_S_MAX = 90.0
MARGIN_SHARE_MAX = 1 / 3  # for short jobs
INPUT_KEYS = ("timeout_s", "idle_s", "prefetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessJob:
    timeout_s: float = TIMEOUT_S
    idle_s: float | None = IDLE_S
    is_prefetch: bool = False

    @property
    def margin_s(self) -> float:
        return min(MARGIN_S_MAX, self.timeout_s * MARGIN_SHARE_MAX)


def read_job(given: object) -> ServerlessJob:
    """Raises: ValueError that names the invalid field."""
    if not isinstance(given, dict):
        raise ValueError("the input must be an object")
    unknown = sorted(set(map(str, given)) - set(INPUT_KEYS))
    if unknown:
        raise ValueError(f"input.{unknown[0]} is unknown; use {', '.join(INPUT_KEYS)}")
    idle_s = given.get("idle_s", IDLE_S)
    is_prefetch = given.get("prefetch", False)
    if not isinstance(is_prefetch, bool):
        raise ValueError("input.prefetch must be true or false")
    return ServerlessJob(
        timeout_s=_seconds("timeout_s", given.get("timeout_s", TIMEOUT_S)),
        idle_s=None if idle_s is None else _seconds("idle_s", idle_s),
        is_prefetch=is_prefetch,
    )


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"input.{name} must be a number of seconds above 0")
    return float(value)


def command_of(job: ServerlessJob, pool: str) -> list[str]:
    if job.is_prefetch:
        return child.command("--pool", pool, module="download_models")
    idle = [] if job.idle_s is None else ["--idle-exit", str(job.idle_s)]
    more = shlex.split(os.environ.get(ARGUMENTS_VARIABLE, ""))
    return child.command("--pool", pool, *idle, *more)


async def handle(given: dict[str, Any]) -> dict[str, object]:
    """Runs a job. `error` in its result fails the job, and is present only if the runner could not work."""
    started = time.monotonic()
    pool = os.environ.get(POOL_VARIABLE)
    if not pool:
        return {"error": f"{POOL_VARIABLE} is not set; set it to the worker's pool in the env of the template"}
    try:
        job = read_job(given.get("input"))
    except ValueError as error:
        return {"error": str(error)}
    process = await asyncio.create_subprocess_exec(*command_of(job, pool), env=child.environment())
    ended = "prefetched" if job.is_prefetch else "idle"
    try:
        with stopping_on_sigterm(process) as received:
            if not await _ended_by_itself(process, job.timeout_s - job.margin_s - (time.monotonic() - started)):
                ended = "time"
                await _stop(process, job.margin_s)
            if received:
                ended = "stopped"
    finally:  # also when canceled
        if process.returncode is None:
            await asyncio.shield(_stop(process, job.margin_s))
    if process.returncode != 0:
        return {"error": f"the runner of {pool} exited with {process.returncode}; see the log of this worker"}
    return {"pool": pool, "ended": ended, "seconds": round(time.monotonic() - started, 1)}


async def _ended_by_itself(process: asyncio.subprocess.Process, wait_s: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), wait_s)
    except TimeoutError:
        return False
    return True


async def _stop(process: asyncio.subprocess.Process, margin_s: float) -> None:
    """Stop gracefully, then quickly, then kill, all within `margin_s`. Leases of a killed runner expire."""
    for ask, share in ((process.terminate, 0.6), (process.terminate, 0.2)):
        if process.returncode is None:
            ask()
        if await _ended_by_itself(process, margin_s * share):
            return
    process.kill()
    await process.wait()


@contextmanager
def stopping_on_sigterm(process: asyncio.subprocess.Process) -> Iterator[list[int]]:
    """Forwards SIGTERM to the runner while entered, then calls the previous handler.

    Yields a list of the signals received.
    """
    before = signal.getsignal(signal.SIGTERM)
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process.returncode is None:
            process.terminate()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, pass_on)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    import runpod

    runpod.serverless.start({"handler": handle, "concurrency_modifier": lambda current: 1})


if __name__ == "__main__":
    main()
