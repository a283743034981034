"""Decides which pool a request goes to. Pure; used by planner and runner."""

from collections.abc import Collection, Mapping

from batchfile.endpoints import SERVED, URLS, listed, tasks_for
from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Kind, RoutingTable


class NamesNoPool(InvalidRequest):
    """A request names no pool, and there are several. `pools`: their names, for the message."""

    def __init__(self, message: str, pools: str) -> None:
        super().__init__(message)
        self.pools = pools


def route(table: RoutingTable, *, stage: str | None, hint: str | None, model: str | None) -> str:
    """The pool: by `table.everything`, else the hint, the stage, the model, or else the only pool there is.

    The model is ignored where there is a stage. Raises: InvalidRequest with the value and the known ones.
    """
    if table.everything is not None:
        return table.everything
    if hint is not None:
        return _pool_named(table, hint, "metadata.model_hint")
    if stage is not None:
        pool = table.stages.get(stage)
        if pool is None:
            raise InvalidRequest(f"stage: {stage!r} is unknown; use one of {_names(table.stages)}")
        return pool
    if model is not None:
        return _pool_named(table, model, "model")
    if len(table.pools) == 1:
        return next(iter(table.pools))
    pools = _names(table.pools)
    raise NamesNoPool(
        f"no pool given: set a stage ({_names(table.stages)}), metadata.model_hint or model ({pools})", pools
    )


def check_adapter_names(table: RoutingTable, adapters: Mapping[str, Collection[str]]) -> None:
    """A request names a pool, a model, an alias or an adapter in one field, so each name has one meaning.

    `adapters`: those of each pool. Raises: ValueError for an adapter whose name has another meaning.
    """
    owners: dict[str, str] = {}
    for pool, names in adapters.items():
        for name in names:
            if name in owners:
                where = f"both in pools.{owners[name]} and in pools.{pool}"
                raise ValueError(f"lora: the adapter {name!r} is {where}; give one of them another name")
            owners[name] = pool
    for pool, (model, *aliases) in table.pools.items():
        meanings = dict.fromkeys(aliases, "an alias") | {model: "the model", pool: "the name"}
        for name in sorted(meanings.keys() & owners.keys()):
            what = f"{meanings[name]} of the pool {pool!r}"
            raise ValueError(f"pools.{owners[name]}.lora: {name!r} is {what} too; give the adapter another name")


def check_endpoint(table: RoutingTable, pool: str, kind: Kind | None) -> None:
    """`kind`: of a request that goes to the pool; None: unknown.

    Raises: InvalidRequest where its model cannot serve it, as far as that is known before the model is loaded.
    """
    task = table.tasks.get(pool)
    if task is None or kind is None or kind in SERVED[task]:
        return
    url, served, fitting = URLS[kind], listed(SERVED[task]), tasks_for(kind)
    if table.everything is not None:
        needed = f"it needs task = {fitting} (`--task` of a run)"
        raise InvalidRequest(f"{url} is not served with task = '{task}', which serves {served}; {needed}")
    raise InvalidRequest(
        f"{url} is not served by the pool {pool!r}, which serves {served}; use one with task = {fitting}"
    )


def pools_for(table: RoutingTable, kind: Kind) -> list[str]:
    """The pools that may serve requests of this kind."""
    return [pool for pool in table.pools if pool not in table.tasks or kind in SERVED[table.tasks[pool]]]


def check_stage(stages: Collection[str], stage: str) -> None:
    """Raises: SettingsError where the stage is unknown."""
    if stage not in stages:
        known = f"use one of {', '.join(sorted(stages))}" if stages else "there are none; add it under [stages]"
        raise SettingsError(f"stage: {stage!r} is unknown; {known}")


def check_pool(pools: Collection[str], pool: str) -> None:
    """Raises: SettingsError where the pool is unknown."""
    if pool not in pools:
        raise SettingsError(f"pool: {pool!r} is unknown; use one of {', '.join(sorted(pools))}")


def _pool_named(table: RoutingTable, name: str, where: str) -> str:
    if name in table.pools:
        return name
    for pool, models in table.pools.items():
        if name in models:
            return pool
    if name in table.adapters:
        return table.adapters[name]
    known = f"pools are {_names(table.pools)}"
    if table.adapters:
        known += f"; adapters are {_names(table.adapters)}"
    raise InvalidRequest(f"{where}: {name[:80]!r} is not a pool, model or alias; {known}")


def _names(known: dict[str, str] | dict[str, tuple[str, ...]]) -> str:
    return ", ".join(sorted(known)) or "none"
