"""The responses about pools, runners and the health of the service."""

from typing import Literal

from pydantic import BaseModel


class Runner(BaseModel):
    """A live runner, as reported in its last heartbeat."""

    model_config = {"extra": "allow"}

    runner_id: str
    pool: str
    model: str
    state: str


class Scale(BaseModel):
    """The figures of a pool for an autoscaler."""

    pool: str
    pending_shards: int
    pending_requests: int
    leased_shards: int
    live_runners: int


class PoolHealth(BaseModel):
    status: Literal["up", "down"]
    runners: int


class Health(BaseModel):
    """`degraded`: the store is not fully available, or requests wait for a pool that is `down`.

    A pool is `down` if it has no runner that can answer requests.
    """

    status: Literal["healthy", "degraded"]
    storage: bool
    pools: dict[str, PoolHealth]
    timestamp: str


class Degraded(Health):
    reason: str


class Ready(BaseModel):
    ready: Literal[True] = True


class Version(BaseModel):
    version: str
