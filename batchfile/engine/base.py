"""The interface of engines, which generate answers: vLLM, an HTTP endpoint, echo."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchfile.engine.identity import EngineIdentity
from batchfile.request_media import MediaUse
from batchfile.types import Outcome, Request

NO_MEDIA = MediaUse()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Describes an engine.

    `num_slots`: how many requests it generates for at the same time. `max_in_flight`: how many to add at once to keep
    the slots full (slots plus a margin that waits inside). `max_model_len`: in tokens; None if unknown.
    `num_gpus`: local GPUs, so 0 for an endpoint. `note`: one line about the engine's own choices; empty without any.
    `arguments`: those that were chosen for it.
    `commits`: of the models that come from a hub, by their names. `adapters`: the LoRA adapters that it has loaded;
    None: it does not distinguish models.
    `identity`: equal for engines whose answers may stand for each other's; None: unknown.
    `media`: what it takes in addition to text.
    """

    name: str
    model: str
    version: str
    num_slots: int
    max_in_flight: int
    max_model_len: int | None = None
    num_gpus: int = 0
    note: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    commits: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[str, ...] | None = None
    identity: EngineIdentity | None = None
    media: MediaUse = NO_MEDIA

    @property
    def fingerprint(self) -> str | None:
        return None if self.identity is None else self.identity.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request ready to be added: template applied, tokenized, limits checked. Engines subclass it.

    `prefix`: equal for requests that likely share a cached prefix. `cost`: expected work; only the order matters.
    `model`: the adapter that answers; empty: the engine's model.
    `media_bytes`: of the media that it keeps in memory.
    """

    prefix: int = 0
    cost: int = 0
    model: str = ""
    media_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    key: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Since the engine was built. A step is *full* if all slots are running or a request is waiting inside.

    `prompt_tokens`: of prompts whose computation is complete, cached prefixes included. `output_tokens`: generated,
    also for requests that are not finished. Both only grow; an engine that learns about tokens when a request finishes
    counts them then. `num_running`: requests being generated; `num_waiting`: added, not yet running.
    `down_s`: for how long the endpoint has accepted no work; 0 while it does, and for engines that die instead.
    `down_reason`: the endpoint and its last error, while `down_s` is not 0; `down_status`: the HTTP status of that
    error, None if there was no response. `kv_use`: the share of the KV cache in use; None: unknown.
    """

    num_steps: int = 0
    num_full_steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    down_s: float = 0.0
    down_reason: str = ""
    down_status: int | None = None
    kv_use: float | None = None
    extra: dict[str, float] = field(default_factory=dict)


class SchemaUnchecked(Exception):
    """The request's schema has to be compiled before the request is prepared, which may take a minute.

    `finish(owner)` does both, blocks, and raises as `prepare`. `owner`: an owner with many slow schemas gets less time
    for the next ones; other owners are not affected.
    """

    def __init__(self, finish: Callable[[str], Prepared]) -> None:
        super().__init__("the request's schema has not been compiled")
        self.finish = finish


def in_flight_for(num_slots: int) -> int:
    """How many requests to add to an engine with this many slots: a quarter more, so that no slot is idle."""
    return num_slots + max(16, num_slots // 4)


class Engine(Protocol):
    """Generates answers. One thread owns an engine: only that thread may call add, step, abort and close.

    `prepare` is thread-safe. The types of the methods are in `batchfile.engine.base`; `batchfile.testing.EchoEngine` is
    an implementation without a model.

    >>> engine: batchfile.Engine = batchfile.testing.EchoEngine(num_slots=8)
    >>> engine.info.name, engine.info.num_slots
    ('echo', 8)
    """

    @property
    def info(self) -> EngineInfo: ...

    def prepare(self, request: Request) -> Prepared:
        """Do all work that can be done ahead of time.

        Raises: InvalidRequest if it can never be served; SchemaUnchecked.
        """
        ...

    def add(self, key: int, prepared: Prepared) -> None:
        """Start generating. `key` comes back in Finished and is unique among requests in flight.

        Raises: InvalidRequest if the engine rejects it after all; EngineDead.
        """
        ...

    def step(self) -> list[Finished]:
        """Do one step of work: block briefly and return the requests that finished. Raises: EngineDead."""
        ...

    def abort(self, keys: Iterable[int]) -> None:
        """Drop these requests; later steps do not return them."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None: ...


EngineFactory = Callable[[], Engine]
"""Builds a new engine: called at the start and after each time an engine dies."""
