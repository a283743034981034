"""Scales the runners of pools on RunPod: `python -m runners.runpod.scaler mistral llama-70b --api URL`.

Every few seconds it compares the work of each pool (from the API) with its runners on RunPod, and starts those that
are missing. It is stateless and can be restarted anywhere. Run it once: two may start a few runners too many, which
exit by themselves.

The serverless endpoint of a pool is `batchfile-POOL`; its minimum and maximum workers and its timeout are the bounds.
With `--pods FILE`, the body of a pod, the runners of one pool are pods instead.
"""

import argparse
import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import structlog

from batchfile import logs
from batchfile.errors import SettingsError
from batchfile.signals import on_stop

from ..options import positive, seconds
from ..scaling import SHARDS_PER_RUNNER, Backoff, wanted
from .api import Runpod, RunpodError, at, call, key_of
from .jobs_and_pods import Count, Jobs, Pods, Runners

log = structlog.get_logger()

LOOK_S = 15.0
COOLDOWN_S = 300.0  # a pool without work for this long deletes its pods
API_KEY_VARIABLE = "BATCHFILE_API_KEY"
WHAT_TO_DO = "see a worker's log in RunPod's console under batchfile-{pool}; runners start one by one until one works"
FIGURES = ("pending_shards", "leased_shards", "live_runners")
OK, REFUSED = 0, 2


class Scaler:
    """Scales one pool. `read`: the response of GET /api/pools/{pool}/scale."""

    def __init__(self, pool: str, runners: Runners, read: Callable[[], dict[str, int]], shards_per_runner: int) -> None:
        self._pool = pool
        self._runners = runners
        self._read = read
        self._shards_per_runner = shards_per_runner
        self._idle_since: float | None = None
        self._backoff = Backoff()

    def look(self, now: float) -> None:
        """Check and scale once. `now`: a monotonic clock. Raises: RunpodError if the API or RunPod fails."""
        found = self._read()
        bounds = self._runners.bounds()
        num_wanted = wanted(**found, bounds=bounds, shards_per_runner=self._shards_per_runner)
        count = self._runners.count()
        self._note(count, found["leased_shards"], now)
        num_new = self._backoff.allowed(num_wanted - count.num, now)
        has_work = found["pending_shards"] + found["leased_shards"] > 0
        if has_work and not bounds.maximum:
            log.error("pool.asleep", pool=self._pool, what_to_do="its maximum of workers is 0; run deploy.sh apply")
        if num_new:
            self._runners.start(num_new, num_standing=max(0, bounds.minimum - count.num))
            log.info("runners.started", pool=self._pool, num=num_new, of=num_wanted, **found)
        if has_work:
            self._idle_since = None
            return
        self._idle_since = now if self._idle_since is None else self._idle_since
        if count.num > bounds.minimum and now - self._idle_since >= COOLDOWN_S:
            num = self._runners.rest(bounds.minimum)
            if num:
                log.info("runners.given_back", pool=self._pool, num=num)

    def _note(self, count: Count, leased_shards: int, now: float) -> None:
        """Log runners that fail while no other works, and delay the next ones, which would fail as well."""
        is_working = count.num_at_work > 0 and leased_shards > 0
        num = self._backoff.look(num_failed=count.num_failed, is_working=is_working, now=now)
        if num:
            facts = {"again_in_s": self._backoff.wait_s, "what_to_do": WHAT_TO_DO.format(pool=self._pool)}
            log.error("runners.failed", pool=self._pool, num=num, **facts)


def scale_reader(url: str, pool: str, key: str | None) -> Callable[[], dict[str, int]]:
    """The returned function raises RunpodError if the API does not answer, or not as expected."""
    place = f"{url.rstrip('/')}/api/pools/{pool}/scale"

    def read() -> dict[str, int]:
        answer = call("GET", place, key)
        return {name: at(answer, name, kind=int, of=place) for name in FIGURES}

    return read


def run(scalers: list[Scaler], look_s: float) -> int:
    """Runs until a signal. Errors of one pool are logged and retried, and do not affect other pools."""
    over = threading.Event()
    on_stop(over.set)
    while True:
        for scaler in scalers:
            try:
                scaler.look(time.monotonic())
            except RunpodError as error:
                log.warning("scaling.failed", error=str(error))
        if over.wait(look_s):
            return OK


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.scaler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pools", nargs="+", metavar="POOL")
    add("--api", type=address, required=True, metavar="URL", help=f"URL of the API; its key is in {API_KEY_VARIABLE}")
    add("--shards-per-runner", type=positive, default=SHARDS_PER_RUNNER, metavar="N", help="(default: %(default)s)")
    add(
        "--idle",
        type=seconds,
        default=60.0,
        metavar="S",
        help="jobs end after S seconds without work (default: %(default).0f)",
    )
    add("--look", type=seconds, default=LOOK_S, metavar="S", help="check every S seconds (default: %(default).0f)")
    add("--pods", type=Path, metavar="FILE", help="start pods with this body instead of jobs (one pool only)")
    add("--most", type=positive, default=1, metavar="N", help="maximum number of pods (default: %(default)s)")
    found = parser.parse_args(arguments)
    if found.pods and len(found.pools) > 1:
        parser.error("--pods works with one pool only")
    return found


def address(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text} is not a URL; it must start with https:// or http://")
    return text


def runners_of(runpod: Runpod, pool: str, args: argparse.Namespace) -> Runners:
    if args.pods is None:
        return Jobs(runpod, pool, args.idle)
    try:
        body = json.loads(args.pods.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"--pods {args.pods}: cannot read the file: {error}") from error
    return Pods(runpod, pool, body, args.most)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    logs.configure()
    try:
        key = key_of(API_KEY_VARIABLE)
        runpod = Runpod.from_environment()
        scalers = [
            Scaler(pool, runners_of(runpod, pool, args), scale_reader(args.api, pool, key), args.shards_per_runner)
            for pool in args.pools
        ]
    except (RunpodError, SettingsError) as error:
        log.error("scaler.refused", error=str(error))
        return REFUSED
    return run(scalers, args.look)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
