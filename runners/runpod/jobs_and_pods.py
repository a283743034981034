"""Starts and counts the runners of a pool on RunPod, as jobs of a serverless endpoint or as pods.

Every method raises RunpodError.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Protocol

from ..scaling import Bounds
from .api import Json, Runpod, RunpodError, at

NAME = "batchfile-{pool}"  # of an endpoint, and the prefix of a pool's pods
STANDING = re.compile(r"(.+)-pod\d+")  # the name of an endpoint, and of a pod instead of an always-on worker of it
FLASHBOOT_SUFFIX = " -fb"  # added by the console to the names of some endpoints
QUEUED_S_MAX = 3600.0  # how long a job may wait for a worker before RunPod drops it
TTL_S_MAX = 7 * 24 * 3600.0
GONE = ("EXITED", "ERROR", "TERMINATED")  # states of a pod that has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """`num`: runners at work (`num_at_work`) or requested. `num_failed`: total of failed ones."""

    num: int
    num_at_work: int
    num_failed: int


class Runners(Protocol):
    def bounds(self) -> Bounds: ...

    def count(self) -> Count: ...

    def start(self, num: int, *, num_standing: int) -> None:
        """`num_standing` of them stay even without work."""
        ...

    def rest(self, num_kept: int) -> int:
        """Called without work: removes runners that do not end by themselves. Returns how many."""
        ...


def find(runpod: Runpod, path: str, key: str, name: str) -> Json | None:
    """The resource of this name in a list. Raises: RunpodError if there are several."""
    found = [one for one in runpod.listed(path, key) if str(one.get("name", "")).removesuffix(FLASHBOOT_SUFFIX) == name]
    if len(found) > 1:
        ids = ", ".join(str(one["id"]) for one in found)
        raise RunpodError(f"{path}: {len(found)} resources are named {name} ({ids}); delete all but one")
    return found[0] if found else None


def standing_for(pod: Json) -> str | None:
    """The name of the endpoint that the pod belongs to, if it is one of `deploy.sh --pods`."""
    found = STANDING.fullmatch(str(pod.get("name", "")))
    return found and found[1]


class Jobs:
    """Drain jobs of the endpoint `batchfile-POOL`. They are never canceled: each ends when it is out of work.

    Its always-on workers may be pods instead, which `deploy.sh --pods` creates. They count as runners.
    """

    def __init__(self, runpod: Runpod, pool: str, idle_s: float) -> None:
        self._runpod = runpod
        self._pool = pool
        self._idle_s = idle_s
        self._endpoint_id = ""
        self._timeout_s = 0.0
        self._num_pods = 0

    def bounds(self) -> Bounds:
        """The endpoint's bounds. Read each time, because RunPod scales down idle endpoints."""
        name = NAME.format(pool=self._pool)
        endpoint = find(self._runpod, "/serverless", "endpoints", name)
        if endpoint is None:
            raise RunpodError(f"endpoint {name} not found; create it with deploy/runpod/deploy.sh apply")
        self._endpoint_id = str(endpoint["id"])
        self._timeout_s = at(endpoint, "timeout", kind=int, of=name) / 1000
        least, most = (at(endpoint, "workers", bound, kind=int, of=name) for bound in ("min", "max"))
        self._num_pods = sum(
            standing_for(pod) == name and pod.get("status") not in GONE for pod in self._runpod.listed("/pods", "pods")
        )
        return Bounds(minimum=self._num_pods + min(least, most), maximum=self._num_pods + most)

    def count(self) -> Count:
        found = self._runpod.health(self._endpoint_id)
        num_at_work = found.num_at_work + self._num_pods
        return Count(num=found.num_waiting + num_at_work, num_at_work=num_at_work, num_failed=found.num_failed)

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
    """Pods named `batchfile-POOL-...`, created with `body`. They are deleted only while the pool has no work."""

    def __init__(self, runpod: Runpod, pool: str, body: Json, num_max: int) -> None:
        self._runpod = runpod
        self._prefix = NAME.format(pool=pool) + "-"
        self._body = body
        self._bounds = Bounds(minimum=0, maximum=num_max)
        self._num_failed = 0

    def bounds(self) -> Bounds:
        return self._bounds

    def count(self) -> Count:
        """Also removes ended pods, which still cost disk space.

        Each of them has failed, because the runner of a pod stays until the pod is deleted.
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
        ours = re.compile(re.escape(self._prefix) + "[0-9a-f]{8}")  # the name of another pool may start with this one
        return [pod for pod in self._runpod.listed("/pods", "pods") if ours.fullmatch(str(pod.get("name")))]

    def _delete(self, pod: Json) -> None:
        try:
            self._runpod.manage("DELETE", f"/pods/{pod['id']}")
        except RunpodError as error:
            if error.status != 404:
                raise
