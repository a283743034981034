"""The options of a create, the same for every way in. Pure: it reads and writes no store."""

from dataclasses import dataclass, field, replace
from typing import Any

from batchfile.errors import InvalidFile
from batchfile.ledger.batches import Draft
from batchfile.plan.policy import Policy
from batchfile.types import TENANT, Defaults, RoutingTable

AUTO = "auto"  # as `reuse`: from the latest batches that the same model made


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """The options of a create in addition to its input, whichever way it arrives.

    `stage`: of all requests. `pool`: where all of them run. `priority`: 0 (first) to 9. `deadline`: when the batch
    expires, in epoch seconds. Not `is_strict`: lines that cannot run are rejected alone. `reuse`: the id of a batch, or
    AUTO: results that need not be generated again.
    A repeated create is identified by its `idempotency_key`. Without a key it is identified by its body, if
    `retry_count` says which attempt of an SDK it is, from 0; `arrived_at` is by the ledger's monotonic clock.
    """

    tenant: str = TENANT
    stage: str | None = None
    pool: str | None = None
    priority: int = 5
    metadata: dict[str, str] = field(default_factory=dict)
    deadline: float | None = None
    is_strict: bool = True
    reuse: str | None = None
    idempotency_key: str | None = None
    retry_count: int | None = None
    arrived_at: float = 0.0

    @property
    def digest(self) -> str:
        """Of what distinguishes two creates of one body and one stage; empty without any option."""
        if (self.priority, self.is_strict, self.metadata, self.pool, self.reuse) == (5, True, {}, None, None):
            return ""
        pool = "" if self.pool is None else f" {self.pool}"
        reuse = "" if self.reuse is None else f" reuse={self.reuse}"
        return f"{self.priority} {self.is_strict} {sorted(self.metadata.items())}{pool}{reuse}"

    def policy(self, **more: Any) -> Policy:
        """`more`: fields of Policy."""
        return Policy(on_problem="refuse" if self.is_strict else "reject", **more)

    def route(self, routing: RoutingTable) -> RoutingTable:
        """Raises: InvalidFile if the pool is unknown."""
        if self.pool is None:
            return routing
        if self.pool not in routing.pools:
            pools = ", ".join(sorted(routing.pools))
            raise InvalidFile(f"pool: {self.pool[:80]!r} is unknown; use one of {pools}")
        return replace(routing, everything=self.pool)

    def draft(self, batch_id: str, created_at: float | None, routing: RoutingTable, defaults: Defaults) -> Draft:
        """Raises: InvalidFile if the pool is unknown."""
        return Draft(
            batch_id=batch_id,
            routing=self.route(routing),
            defaults=defaults,
            stage=self.stage,
            priority=self.priority,
            tenant=self.tenant,
            metadata=self.metadata,
            created_at=created_at,
            deadline=self.deadline,
        )
