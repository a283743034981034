"""The commands up, down and status. Only detached actors stay on the cluster."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayActorError

from batchfile.errors import BatchfileError
from batchfile.machine.supervisor import STOP_MARGIN_S

from . import launcher
from .plans import Order, PoolReport

log = structlog.get_logger()

LOOK_S = 0.2
CREATED_S_MAX = 120.0
GONE_S_MAX = 30.0
UNPLACED_S_MAX = 10.0


def connect(address: str) -> None:
    """Raises: BatchfileError if no cluster is found."""
    try:
        ray.init(address=address, namespace=launcher.NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BatchfileError(
            f"no Ray cluster found at {address}: {error}. Start one with `ray start --head`, or use --address HOST:6379"
        ) from error


def up(order: Order) -> str:
    """Returns what was done. An identical order changes nothing. Raises: BatchfileError."""
    handle = launcher.find(launcher.LAUNCHER)
    done = "started"
    if handle is not None:
        if _ask(handle.order, CREATED_S_MAX) == order:
            return "unchanged"
        launcher.kill(launcher.LAUNCHER)
        _until_gone(launcher.LAUNCHER)
        done = "changed"
    made = ray.remote(launcher.Launcher).options(
        name=launcher.LAUNCHER, namespace=launcher.NAMESPACE, lifetime="detached", max_restarts=-1, num_cpus=0
    )
    _ask(made.remote(order).order, CREATED_S_MAX)
    return done


def down() -> int:
    """Returns how many runners were stopped. Waits for their grace period, then kills them."""
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
    """The last reports of the launcher. Raises: BatchfileError if it does not exist or answer."""
    handle = launcher.find(launcher.LAUNCHER)
    if handle is None:
        raise BatchfileError(f"nothing runs on this cluster; start runners with `python -m {__package__} up`")
    found: Sequence[PoolReport] = _ask(handle.reports, launcher.ANSWER_S_MAX)
    return found


def _ask(method: Any, limit_s: float) -> Any:
    """Raises: BatchfileError if the launcher does not answer, with the reason if it could not start."""
    try:
        return ray.get(method.remote(), timeout=limit_s)
    except GetTimeoutError as error:
        raise BatchfileError(f"the launcher did not answer in {limit_s:g} s; retry, or see Ray's logs") from error
    except RayActorError as error:
        raise BatchfileError(f"the launcher does not run: {_reason(error)}") from error


def _reason(error: RayActorError) -> str:
    """The last line of Ray's message, which is the actor's own error."""
    return str(error).strip().splitlines()[-1]


def _until_gone(name: str) -> None:
    deadline = time.monotonic() + GONE_S_MAX
    while launcher.find(name) is not None and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def render(reports: Sequence[PoolReport]) -> str:
    """Formats a line for each pool, and one for each of its runners."""
    lines = []
    for report in reports:
        few, many = report.plan.bounds.minimum, report.plan.bounds.maximum
        lines.append(
            f"{report.plan.pool}: {len(report.holders)} of {report.wanted} wanted ({few}..{many}), "
            f"{report.pending_shards} shards pending, {report.leased_shards} leased"
        )
        for number, holder in sorted(report.holders.items()):
            if holder is None:
                lines.append(f"  {number}  no answer: waiting for a node, or restarting")
                continue
            port = holder.task.arguments[holder.task.arguments.index("--metrics-port") + 1]
            ended = "" if holder.last_code is None else f", last exit code {holder.last_code}"
            lines.append(f"  {number}  {holder.state} on {holder.host}, metrics on port {port}{ended}")
    return "\n".join(lines) or "no report yet; retry in a few seconds"
