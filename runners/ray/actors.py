"""The few calls to Ray that the launcher and the command share: find, make, ask and end actors by their names."""

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from .holder import Holder
from .plans import HolderReport, Task, holder_name, read_holder_name

NAMESPACE = "batchfile"
LAUNCHER = "launcher"
ANSWER_S_MAX = 5.0
CPUS_PER_RUNNER = 1.0


def holder_names() -> set[tuple[str, int]]:
    """Pool and number of every holder that was not ended, whether it has a place or not."""
    named = ray.util.list_named_actors(all_namespaces=True)
    found = (read_holder_name(entry["name"]) for entry in named if entry["namespace"] == NAMESPACE)
    return {name for name in found if name is not None}


def find(name: str) -> Any | None:
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def start_holder(pool: str, number: int, task: Task) -> None:
    """It may have no place yet: then Ray gives it the first that fits, and an autoscaler makes one."""
    name = holder_name(pool, number)
    actor = ray.remote(Holder).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=CPUS_PER_RUNNER,
        num_gpus=task.num_gpus,
        resources={} if task.on is None else {task.on: 1},
    )
    actor.remote(name, task)


def reports(names: Iterable[tuple[str, int]]) -> dict[tuple[str, int], HolderReport | None]:
    """Of each that is there; None for those that do not answer in time."""
    handles = {name: handle for name in names if (handle := find(holder_name(*name))) is not None}
    asked = {name: handle.report.remote() for name, handle in handles.items()}
    if not asked:
        return {}
    _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S_MAX)
    found = {name: _now(reference) for name, reference in asked.items()}
    for reference in silent:
        ray.cancel(reference)  # or one that waits for a place for weeks collects questions
    return found


def _now(reference: Any) -> HolderReport | None:
    try:
        found: HolderReport = ray.get(reference, timeout=0)
    except (GetTimeoutError, RayActorError):
        return None
    return found


def tell_stop(names: Iterable[tuple[str, int]]) -> None:
    for name in names:
        handle = find(holder_name(*name))
        if handle is not None:
            handle.stop.remote()


def bury(names: Iterable[tuple[str, int]]) -> None:
    """End the actors for good and give back what they took. A runner that still lives is killed."""
    for name in names:
        kill(holder_name(*name))


def kill(name: str) -> None:
    handle = find(name)
    if handle is not None:
        ray.kill(handle, no_restart=True)


def by_pool(
    found: Mapping[tuple[str, int], HolderReport | None],
) -> dict[str, dict[int, HolderReport | None]]:
    pools: dict[str, dict[int, HolderReport | None]] = {}
    for (pool, number), report in found.items():
        pools.setdefault(pool, {})[number] = report
    return pools
