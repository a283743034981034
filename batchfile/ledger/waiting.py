"""Says why the requests of a batch or a pool do not run, from the heartbeats of its pools. Pure."""

from batchfile.ledger.batch_status import CANNOT_ANSWER, BatchStatus, Pool, PoolProgress, Waiting
from batchfile.ledger.heartbeats import HEARTBEAT_AGE_S_MAX, Roster
from batchfile.ledger.records import HeartbeatRecord


def waiting_for(status: BatchStatus, roster: Roster, *, is_operator: bool) -> tuple[Waiting, ...]:
    """What each pool waits for that has requests left and no runner that works on them.

    `is_operator`: name the objects of the store that cannot be read.
    """
    if status.state != "open":
        return ()
    left = {name: pool for name, pool in sorted(status.pools.items()) if pool.num_done < pool.num_shards}
    found = (_waiting(status, name, pool, roster, is_operator) for name, pool in left.items())
    return tuple(one for one in found if one is not None)


def _waiting(status: BatchStatus, name: str, pool: PoolProgress, roster: Roster, is_operator: bool) -> Waiting | None:
    live = [runner for runner in roster.live if runner.pool == name]
    aside = [runner for runner in live if status.batch_id in runner.set_aside]
    if aside and not pool.num_leased:
        why = aside[0].set_aside[status.batch_id] if is_operator else "one of its objects cannot be read or written"
        message = f"{_runners(aside)} of pool {name} set this batch aside: {why}"
        return Waiting(pool=name, cause="set_aside", message=message)
    if any(runner.state in {"running", "idle"} for runner in live):
        return None
    is_down = bool(live) and all(runner.state == "down" for runner in live)  # these keep their leases
    if pool.num_leased and roster.read_at - status.updated_at < HEARTBEAT_AGE_S_MAX and not is_down:
        return None  # a runner works on it: it is stopping, or has no heartbeat
    return _why(name, live, roster, status.created_at, status.updated_at)


def pool_problem(pool: Pool, roster: Roster, oldest_created_at: float | None) -> Waiting | None:
    """Why no runner of a pool can answer requests; None if one can. `oldest_created_at`: of the batches that wait."""
    live = [runner for runner in roster.live if runner.pool == pool.name]
    if any(runner.state not in CANNOT_ANSWER for runner in live):
        return None
    if not live and pool.name not in roster.last_seen and oldest_created_at is None:
        return Waiting(pool=pool.name, cause="no_runner", message=f"No runner for pool {pool.name} within the last day")
    since = 0.0 if oldest_created_at is None else oldest_created_at
    return _why(pool.name, live, roster, 0.0, since)


def _why(name: str, live: list[HeartbeatRecord], roster: Roster, created_at: float, updated_at: float) -> Waiting:
    """`created_at`: nothing waits for longer. `updated_at`: since when, if no runner was seen."""
    down = [runner for runner in live if runner.state == "down"]
    if down:
        message = f"The endpoint of pool {name} is unavailable to {_runners(down)}"
        words = {runner.problem: None for runner in down if runner.problem}
        message = ": ".join([message, ", ".join(words)]) if words else message
        return Waiting(pool=name, cause="endpoint_down", message=message)
    loading = [runner for runner in live if runner.state == "loading"]
    if loading:
        since = min(runner.started_at for runner in loading)
        verb = "is" if len(loading) == 1 else "are"
        message = f"{_runners(loading)} of pool {name} {verb} loading the model {_for(roster.read_at - since)}"
        return Waiting(pool=name, cause="loading", message=message, since=since)
    seen = roster.last_seen.get(name)
    since = updated_at if seen is None else max(seen.at, created_at)
    known = "" if seen is None else f" (0 of {seen.num_runners})"
    message = f"No live runner for pool {name}{known} {_for(roster.read_at - since)}"
    return Waiting(pool=name, cause="no_runner", message=message, since=since)


def _runners(runners: list[HeartbeatRecord]) -> str:
    return "1 runner" if len(runners) == 1 else f"{len(runners):,} runners"


def _for(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"for {whole} s"
    return f"for {whole // 60} min" if whole < 7200 else f"for {whole // 3600} h"
