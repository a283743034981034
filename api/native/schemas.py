"""The responses of the native API and the stage contract. The latter have exactly these keys."""

from typing import Any, Literal

from pydantic import BaseModel


class BatchId(BaseModel):
    id: str


class StageCounts(BaseModel):
    total: int
    succeeded: int
    errored: int
    pending: int


class StageStatus(BaseModel):
    """Times are in UTC, in whole seconds. Counts never decrease, and `processing_status` never goes back."""

    id: str
    processing_status: Literal["collected", "submitted", "processing", "ended"]
    counts: StageCounts
    created_at: str
    updated_at: str


class Text(BaseModel):
    type: Literal["text"]
    text: str


class ToolUse(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class Thinking(BaseModel):
    type: Literal["thinking"]
    thinking: str
    signature: str


class StageMessage(BaseModel):
    content: list[Text | ToolUse | Thinking]


class StageUsage(BaseModel):
    """Both are null if an HTTP endpoint did not report them."""

    input_tokens: int | None
    output_tokens: int | None


class StageError(BaseModel):
    type: str
    message: str


class StageResult(BaseModel):
    """A message and its usage, or an error."""

    custom_id: str
    status: Literal["succeeded", "errored"]
    message: StageMessage | None
    usage: StageUsage | None
    error: StageError | None


class StageResults(BaseModel):
    """Results in input order."""

    results: list[StageResult]


class Problem(BaseModel):
    """The body of every error response."""

    detail: str


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True


class Runner(BaseModel):
    """A live runner, as reported in its last heartbeat."""

    model_config = {"extra": "allow"}

    runner_id: str
    pool: str
    model: str
    state: str


class Pool(BaseModel):
    """`runners` counts the live ones by state."""

    name: str
    model: str
    engine: str
    stages: list[str]
    runners: dict[str, int]
    open_batches: int
    pending_requests: int


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


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIProblem(BaseModel):
    """The body of every error response, in OpenAI's API format."""

    error: OpenAIError


class Model(BaseModel):
    """A pool, in OpenAI's API format."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "batchfile"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
