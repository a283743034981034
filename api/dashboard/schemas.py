"""The responses about shards, the latest results and a checked file."""

from typing import Literal

from pydantic import BaseModel

from batchfile.lines.validate import LineProblem

from ..native.schemas import StageError


class Turn(BaseModel):
    """A turn of a prompt. `cut`: how many further characters it has."""

    role: str
    text: str
    cut: int = 0


class LatestResult(BaseModel):
    """`index`: of the request in the batch, from 0. `prompt`: empty if it cannot be shown. `answer`: null without text.

    `cut`: how many further characters the answer has.
    """

    index: int
    custom_id: str | None
    status: str
    prompt: list[Turn]
    answer: str | None
    cut: int = 0
    stop_reason: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    error: StageError | None


class Latest(BaseModel):
    """Newest first while the batch runs; the first ones of its input once it has ended."""

    data: list[LatestResult]


class PoolEstimate(BaseModel):
    """`waiting`: requests ahead of these. `busy_s`: for these alone; `until_s`: until they are done. Null: unknown."""

    pool: str
    requests: int
    runners: int
    waiting: int
    requests_per_s: float | None
    busy_s: float | None
    until_s: float | None


class CheckReport(BaseModel):
    """`kind`: what the file is, in words. `advice`: why it cannot be submitted and what to do; null: it can.

    `needs_prompt`: its rows become requests by a prompt over `columns`. `problems`: the first 100 of `num_problems`.
    Tokens are counted in characters. `unrouted`: requests without a pool.
    """

    kind: str
    content: Literal["requests", "rows", "results", "unknown"]
    layout: str
    columns: list[str]
    needs_prompt: bool
    advice: str | None
    size_bytes: int
    requests: int = 0
    bad: int = 0
    num_problems: int = 0
    problems: list[LineProblem] = []
    first_prompt: list[Turn] = []
    unrouted: int = 0
    input_tokens: int = 0
    max_output_tokens: int = 0
    expected_output_tokens: int | None = None
    pools: list[PoolEstimate] = []
