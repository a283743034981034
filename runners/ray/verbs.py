"""up, down and status: a short visit to the cluster. What stays there are detached actors."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayActorError

from batchfile.errors import BatchfileError

from ..supervisor import STOP_MARGIN_S
from . import launcher
from .plans import Order, PoolReport

log = structlog.get_logger()

LOOK_S = 0.2
CREATED_S_MAX = 120.0
GONE_S_MAX = 30.0
UNPLACED_S_MAX = 10.0


def connect(address: str) -> None:
    """Raises: BatchfileError where there is no cluster."""
    try:
        ray.init(address=address, namespace=launcher.NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BatchfileError(
            f"no Ray cluster at {address}: {error}. Start one (`ray start --head`), or name it: --address HOST:6379"
        ) from error


def up(order: Order) -> str:
    """What was done. The same order twice changes nothing. Raises: BatchfileError."""
    handle = launcher.find(launcher.LAUNCHER)
    done = "started"
    if handle is not None:
        if _ask(handle.order, CREATED_S_MAX) == order:
            return "as it was"
        launcher.kill(launcher.LAUNCHER)
        _until_gone(launcher.LAUNCHER)
        done = "changed"
    made = ray.remote(launcher.Launcher).options(
        name=launcher.LAUNCHER, namespace=launcher.NAMESPACE, lifetime="detached", max_restarts=-1, num_cpus=0
    )
    _ask(made.remote(order).order, CREATED_S_MAX)
    return done


def down() -> int:
    """How many runners were stopped. Waits for as long as they may take; what takes longer is killed."""
    launcher.kill(launcher.LAUNCHER)
    _until_gone(launcher.LAUNCHER)
    started = time.monotonic()
    stopped = launcher.holder_names()
    launcher.tell_stop(stopped)
    while left := launcher.holder_names():
        found = launcher.reports(left)
        spent_s = time.monotonic() - started
        longest_s = max((report.task.grace_s for report in found.values() if report is not None), default=0.0)
        if spent_s > longest_s + STOP_MARGIN_S:
            launcher.remove(left)
        for name, report in found.items():
            if report.state == "ended" if report is not None else spent_s > UNPLACED_S_MAX:
                launcher.remove([name])
        time.sleep(LOOK_S)
    return len(stopped)


def status() -> Sequence[PoolReport]:
    """As the launcher saw it last. Raises: BatchfileError where there is none, or none that answers."""
    handle = launcher.find(launcher.LAUNCHER)
    if handle is None:
        raise BatchfileError(f"nothing runs on this cluster: `python -m {__package__} up` starts it")
    found: Sequence[PoolReport] = _ask(handle.reports, launcher.ANSWER_S_MAX)
    return found


def _ask(method: Any, limit_s: float) -> Any:
    """Raises: BatchfileError where the launcher does not answer, with the reason if it could not start."""
    try:
        return ray.get(method.remote(), timeout=limit_s)
    except GetTimeoutError as error:
        raise BatchfileError(f"the launcher did not answer in {limit_s:g} s: look again, or at Ray's logs") from error
    except RayActorError as error:
        raise BatchfileError(f"the launcher is not there: {_reason(error)}") from error


def _reason(error: RayActorError) -> str:
    """The last line of what Ray tells is what the actor raised."""
    return str(error).strip().splitlines()[-1]


def _until_gone(name: str) -> None:
    deadline = time.monotonic() + GONE_S_MAX
    while launcher.find(name) is not None and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def render(reports: Sequence[PoolReport]) -> str:
    """For people: a line for each pool, and one for each of its runners."""
    lines = []
    for report in reports:
        few, many = report.plan.bounds.minimum, report.plan.bounds.maximum
        lines.append(
            f"{report.plan.pool}: {len(report.holders)} of {report.wanted} wanted ({few}..{many}), "
            f"{report.pending_shards} shards wait, {report.leased_shards} are leased"
        )
        for number, holder in sorted(report.holders.items()):
            if holder is None:
                lines.append(f"  {number}  no answer: it waits for a place, or is being started again")
                continue
            port = holder.task.arguments[holder.task.arguments.index("--metrics-port") + 1]
            ended = "" if holder.last_code is None else f", ended with {holder.last_code}"
            lines.append(f"  {number}  {holder.state} on {holder.host}, metrics on port {port}{ended}")
    return "\n".join(lines) or "the launcher has not looked yet"
