"""Runners of one pool on RunPod: as jobs of a serverless endpoint, or as pods. Decides nothing.

Raises everywhere: RunpodError.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Protocol

from ..scaling import Bounds
from .api import Json, Runpod, RunpodError, at

NAME = "batchfile-{pool}"  # of an endpoint, and how the names of a pool's pods begin
FLASHBOOT_SUFFIX = " -fb"  # which the console adds to the names of some endpoints
QUEUED_S_MAX = 3600.0  # what a job may wait for a worker before RunPod forgets it
TTL_S_MAX = 7 * 24 * 3600.0
GONE = ("EXITED", "ERROR", "TERMINATED")  # states of a pod in which nothing runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """`num`: runners that are at work, `num_at_work`, or were asked for. `num_failed`: that failed, ever so far."""

    num: int
    num_at_work: int
    num_failed: int


class Runners(Protocol):
    def bounds(self) -> Bounds: ...

    def count(self) -> Count: ...

    def start(self, num: int, *, num_standing: int) -> None:
        """`num_standing` of them stay also without work."""
        ...

    def rest(self, num_kept: int) -> int:
        """There is no work: give back what does not end by itself. How many that were."""
        ...


def find(runpod: Runpod, path: str, key: str, name: str) -> Json | None:
    """The one of this name in a list. Raises: RunpodError where there are two."""
    found = [one for one in runpod.listed(path, key) if str(one.get("name", "")).removesuffix(FLASHBOOT_SUFFIX) == name]
    if len(found) > 1:
        ids = ", ".join(str(one["id"]) for one in found)
        raise RunpodError(f"{path} has {len(found)} that are called {name} ({ids}): delete all but one")
    return found[0] if found else None


class Jobs:
    """Drain jobs of the endpoint `batchfile-POOL`. None is ever cancelled: each ends when it is out of work."""

    def __init__(self, runpod: Runpod, pool: str, idle_s: float) -> None:
        self._runpod = runpod
        self._pool = pool
        self._idle_s = idle_s
        self._endpoint_id = ""
        self._timeout_s = 0.0

    def bounds(self) -> Bounds:
        """As the endpoint says: read each time, because idle endpoints are scaled down by RunPod itself."""
        name = NAME.format(pool=self._pool)
        endpoint = find(self._runpod, "/serverless", "endpoints", name)
        if endpoint is None:
            raise RunpodError(f"there is no endpoint {name}: deploy/runpod/deploy.sh apply makes it")
        self._endpoint_id = str(endpoint["id"])
        self._timeout_s = at(endpoint, "timeout", kind=int, of=name) / 1000
        least, most = (at(endpoint, "workers", bound, kind=int, of=name) for bound in ("min", "max"))
        return Bounds(minimum=min(least, most), maximum=most)

    def count(self) -> Count:
        found = self._runpod.health(self._endpoint_id)
        num = found.num_waiting + found.num_at_work
        return Count(num=num, num_at_work=found.num_at_work, num_failed=found.num_failed)

    def start(self, num: int, *, num_standing: int) -> None:
        for number in range(num):
            idle_s = None if number < num_standing else self._idle_s
            policy = {
                "executionTimeout": int(self._timeout_s * 1000),
                "ttl": int(min(TTL_S_MAX, self._timeout_s + QUEUED_S_MAX) * 1000),
            }
            body = {"input": {"timeout_s": self._timeout_s, "idle_s": idle_s}, "policy": policy}
            self._runpod.jobs("POST", self._endpoint_id, "run", body)

    def rest(self, num_kept: int) -> int:
        return 0


class Pods:
    """Pods called `batchfile-POOL-...`, each as `body` says. They are deleted only while the pool has no work."""

    def __init__(self, runpod: Runpod, pool: str, body: Json, num_max: int) -> None:
        self._runpod = runpod
        self._prefix = NAME.format(pool=pool) + "-"
        self._body = body
        self._bounds = Bounds(minimum=0, maximum=num_max)
        self._num_failed = 0

    def bounds(self) -> Bounds:
        return self._bounds

    def count(self) -> Count:
        """Pods that have ended are removed on the way: they cost nothing but their disk, and do nothing.

        Each is one that failed, because a pod's runner stays until it is given back.
        """
        live = 0
        for pod in self._listed():
            if pod.get("status") in GONE:
                self._delete(pod)
                self._num_failed += 1
            else:
                live += 1
        return Count(num=live, num_at_work=live, num_failed=self._num_failed)

    def start(self, num: int, *, num_standing: int) -> None:
        for _ in range(num):
            self._runpod.manage("POST", "/pods", {**self._body, "name": self._prefix + secrets.token_hex(4)})

    def rest(self, num_kept: int) -> int:
        surplus = self._listed()[num_kept:]
        for pod in surplus:
            self._delete(pod)
        return len(surplus)

    def _listed(self) -> list[Json]:
        ours = re.compile(re.escape(self._prefix) + "[0-9a-f]{8}")  # another pool's name may begin with ours
        return [pod for pod in self._runpod.listed("/pods", "pods") if ours.fullmatch(str(pod.get("name")))]

    def _delete(self, pod: Json) -> None:
        try:
            self._runpod.manage("DELETE", f"/pods/{pod['id']}")
        except RunpodError as error:
            if error.status != 404:
                raise
