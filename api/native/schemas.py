"""What the routes answer, as the OpenAPI document shows it. The stage contract's shapes have exactly these keys."""

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
    """Times in UTC, whole seconds. Counts only ever grow; `processing_status` never goes back."""

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
    """Both are null where an HTTP endpoint did not tell them."""

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
    """In the order of the input."""

    results: list[StageResult]


class Problem(BaseModel):
    """Every answer that is no success."""

    detail: str


class Share(BaseModel):
    """How far a pool is with its part of a batch. Nobody works on a shard again that is done."""

    shards: int
    shards_done: int
    shards_leased: int
    requests: int
    requests_finished: int


class Batch(BaseModel):
    """A batch as the service sees it. Times are epoch seconds. `pools` are those that work on it; none after its end.

    `state`: `damaged` is a batch whose stored record is lost: cancel or delete it, or ask the operator to restore the
    record. `unreadable`: it cannot be read now, and will be. Of both, only the id and `created_at` are known.

    `dialect`: the format of its input, which is `openai` where it has a `body` and a `url` in each line. `inbox_path`:
    the key of the dropped file that it was made of. `usage_unknown`: results whose tokens an endpoint did not tell, and
    which the sums leave out.
    """

    id: str
    state: Literal["planning", "open", "ending", "ended", "damaged", "unreadable"]
    reason: str | None
    detail: str | None
    stage: str | None
    total: int
    succeeded: int
    errored: int
    canceled: int
    expired: int
    pending: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    usage_unknown: int
    created_at: float
    updated_at: float
    ended_at: float | None
    expires_at: float
    metadata: dict[str, str]
    priority: int
    dialect: Literal["native", "openai"]
    inbox_path: str | None
    pools: dict[str, Share]


class BatchPage(BaseModel):
    """Newest first. `has_more`: ask again with `after` set to the last id."""

    data: list[Batch]
    has_more: bool


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True


class Runner(BaseModel):
    """A live runner, as it said in the last minute."""

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
    """What an autoscaler needs to know of a pool."""

    pool: str
    pending_shards: int
    pending_requests: int
    leased_shards: int
    live_runners: int


class PoolHealth(BaseModel):
    status: Literal["up", "down"]
    runners: int


class Health(BaseModel):
    """`degraded`: the store cannot be used in full, or requests wait for a pool that is `down`.

    `down` is a pool without a runner that can answer.
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
    """The same, as OpenAI's clients read it."""

    error: OpenAIError


class Model(BaseModel):
    """A pool, as OpenAI's clients see it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "batchfile"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
