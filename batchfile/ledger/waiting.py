"""Says why the requests of a batch do not run, from the heartbeats of its pools. Pure."""

from batchfile.ledger.batch_status import BatchStatus, PoolProgress, Waiting
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
    if pool.num_leased and roster.read_at - status.updated_at < HEARTBEAT_AGE_S_MAX:
        return None  # a runner works on it: it is stopping, or has no heartbeat
    down = [runner for runner in live if runner.state == "down"]
    if down:
        return Waiting(
            pool=name, cause="endpoint_down", message=f"The endpoint of pool {name} is unavailable to {_runners(down)}"
        )
    loading = [runner for runner in live if runner.state == "loading"]
    if loading:
        since = min(runner.started_at for runner in loading)
        verb = "is" if len(loading) == 1 else "are"
        message = f"{_runners(loading)} of pool {name} {verb} loading the model {_for(roster.read_at - since)}"
        return Waiting(pool=name, cause="loading", message=message, since=since)
    seen = roster.last_seen.get(name)
    since = status.updated_at if seen is None else max(seen.at, status.created_at)
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
