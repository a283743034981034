"""Which pool a request goes to: one pure function, used alike by planner and runner."""

from collections.abc import Collection

from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import RoutingTable


class NamesNoPool(InvalidRequest):
    """Nothing says where a request should go, and there is more than one place. `pools`: their names, to be shown."""

    def __init__(self, message: str, pools: str) -> None:
        super().__init__(message)
        self.pools = pools


def route(table: RoutingTable, *, stage: str | None, hint: str | None, model: str | None) -> str:
    """The pool. First `table.everything`, then the hint, the stage, the model, at last the only pool there is.

    A model is ignored where there is a stage. Raises: InvalidRequest that says what was given and what exists.
    """
    if table.everything is not None:
        return table.everything
    if hint is not None:
        return _pool_named(table, hint, "metadata.model_hint")
    if stage is not None:
        pool = table.stages.get(stage)
        if pool is None:
            raise InvalidRequest(f"stage: {stage!r} is not known; stages are {_names(table.stages)}")
        return pool
    if model is not None:
        return _pool_named(table, model, "model")
    if len(table.pools) == 1:
        return next(iter(table.pools))
    pools = _names(table.pools)
    raise NamesNoPool(
        f"names no pool: give a stage ({_names(table.stages)}), metadata.model_hint or model ({pools})", pools
    )


def check_stage(stages: Collection[str], stage: str) -> None:
    """Raises: SettingsError where there is no such stage."""
    if stage not in stages:
        raise SettingsError(f"stage: {stage!r} is unknown; use one of {', '.join(sorted(stages))}")


def check_pool(pools: Collection[str], pool: str) -> None:
    """Raises: SettingsError where there is no such pool."""
    if pool not in pools:
        raise SettingsError(f"pool: {pool!r} is unknown; use one of {', '.join(sorted(pools))}")


def _pool_named(table: RoutingTable, name: str, where: str) -> str:
    if name in table.pools:
        return name
    for pool, models in table.pools.items():
        if name in models:
            return pool
    raise InvalidRequest(f"{where}: {name[:80]!r} is no pool, model or alias; pools are {_names(table.pools)}")


def _names(known: dict[str, str] | dict[str, tuple[str, ...]]) -> str:
    return ", ".join(sorted(known)) or "none"
