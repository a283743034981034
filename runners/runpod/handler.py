"""RunPod's serverless worker. A job is a stretch of work for this worker's pool: never a batch, never a request.

    POOL=mistral python -m runners.runpod.handler

The runner is a child, `batchfile worker --pool NAME`. What goes wrong with a request is in that request's result;
only a runner that cannot work fails a job. Knows no store and no engine.

A job's input, all of it optional:

    timeout_s   the job's execution timeout, which the platform enforces; the job ends before it (default 600)
    idle_s      seconds without work after which it ends (default 60); null: it stays for its whole time
    prefetch    true: only fetch the pool's model to where the runner will look for it

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
ARGUMENTS_VARIABLE = "RUNNER_ARGUMENTS"  # more for `batchfile worker`
TIMEOUT_S = 600.0  # the platform's own default
IDLE_S = 60.0
# Before the timeout: what is in flight finishes, is checkpointed, and the rest is given back.
MARGIN_S_MAX = 90.0
MARGIN_SHARE_MAX = 1 / 3  # of a job that is shorter
INPUT_KEYS = ("timeout_s", "idle_s", "prefetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    timeout_s: float = TIMEOUT_S
    idle_s: float | None = IDLE_S
    is_prefetch: bool = False

    @property
    def margin_s(self) -> float:
        return min(MARGIN_S_MAX, self.timeout_s * MARGIN_SHARE_MAX)


def read_job(given: object) -> Job:
    """Raises: ValueError naming what is wrong."""
    if not isinstance(given, dict):
        raise ValueError("the input must be an object")
    unknown = sorted(set(map(str, given)) - set(INPUT_KEYS))
    if unknown:
        raise ValueError(f"input.{unknown[0]} is unknown; there are {', '.join(INPUT_KEYS)}")
    idle_s = given.get("idle_s", IDLE_S)
    is_prefetch = given.get("prefetch", False)
    if not isinstance(is_prefetch, bool):
        raise ValueError("input.prefetch must be true or false")
    return Job(
        timeout_s=_seconds("timeout_s", given.get("timeout_s", TIMEOUT_S)),
        idle_s=None if idle_s is None else _seconds("idle_s", idle_s),
        is_prefetch=is_prefetch,
    )


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"input.{name} must be seconds, more than 0")
    return float(value)


def command_of(job: Job, pool: str) -> list[str]:
    if job.is_prefetch:
        return child.command("--pool", pool, module="download_models")
    idle = [] if job.idle_s is None else ["--idle-exit", str(job.idle_s)]
    more = shlex.split(os.environ.get(ARGUMENTS_VARIABLE, ""))
    return child.command("--pool", pool, *idle, *more)


async def handle(given: dict[str, Any]) -> dict[str, object]:
    """A job. `error` in what it returns fails the job: it is there only where no work could be done."""
    started = time.monotonic()
    pool = os.environ.get(POOL_VARIABLE)
    if not pool:
        return {"error": f"{POOL_VARIABLE} is not set on this worker: name its pool in the template's env"}
    try:
        job = read_job(given.get("input"))
    except ValueError as error:
        return {"error": str(error)}
    process = await asyncio.create_subprocess_exec(*command_of(job, pool), env=child.environment())
    ended = "prefetched" if job.is_prefetch else "idle"
    try:
        with stopping_on_sigterm(process) as told:
            if not await _ended_by_itself(process, job.timeout_s - job.margin_s - (time.monotonic() - started)):
                ended = "time"
                await _stop(process, job.margin_s)
            if told:
                ended = "stopped"
    finally:  # cancelled, too
        if process.returncode is None:
            await asyncio.shield(_stop(process, job.margin_s))
    if process.returncode != 0:
        return {"error": f"the runner of {pool} ended with {process.returncode}; this worker's log says why"}
    return {"pool": pool, "ended": ended, "seconds": round(time.monotonic() - started, 1)}


async def _ended_by_itself(process: asyncio.subprocess.Process, wait_s: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), wait_s)
    except TimeoutError:
        return False
    return True


async def _stop(process: asyncio.subprocess.Process, margin_s: float) -> None:
    """Ask, ask to hurry, then end it, all within `margin_s`. Leases of one that was ended expire by themselves."""
    for ask, share in ((process.terminate, 0.6), (process.terminate, 0.2)):
        if process.returncode is None:
            ask()
        if await _ended_by_itself(process, margin_s * share):
            return
    process.kill()
    await process.wait()


@contextmanager
def stopping_on_sigterm(process: asyncio.subprocess.Process) -> Iterator[list[int]]:
    """While entered, a SIGTERM to this process also reaches the runner; whoever had it before gets it after.

    The list that it gives holds the signals that came.
    """
    before = signal.getsignal(signal.SIGTERM)
    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if process.returncode is None:
            process.terminate()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, pass_on)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    import runpod

    runpod.serverless.start({"handler": handle, "concurrency_modifier": lambda current: 1})


if __name__ == "__main__":
    main()
