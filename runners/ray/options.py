"""The command line of `python -m runners.ray`, and the order that its `up` makes of it. Knows no Ray."""

import argparse
import os
from dataclasses import dataclass
from functools import partial
from typing import get_args

from batchfile.errors import SettingsError
from batchfile.settings import CONFIG_VARIABLE, Settings, config_path
from batchfile.store.open import local_path
from batchfile.types import EngineKind

from ..options import METRICS_PORT, Options, kind_of, pool_of
from ..scaling import Bounds
from .plans import PORTS_PER_POOL, Order, PoolPlan

ADDRESS = "auto"
EXAMPLES = """`--pool mistral=4` keeps four runners; `--pool llama-70b=0..2` none without work and at most two. `up`
again changes what runs to what it says, and nothing where that is so already. A pool that generates with vLLM takes
tensor_parallel_size GPUs of one node for each runner. Every node needs the same code, settings and store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """`pools`, `gpus`, `on`: by pool."""

    verb: str
    address: str
    pools: dict[str, Bounds]
    gpus: dict[str, int]
    on: dict[str, str]
    engine: EngineKind | None = None
    store: str | None = None
    config: str | None = None
    idle_exit_s: float = 0.0
    look_s: float = 0.0
    metrics_host: str = ""
    metrics_port: int = 0
    is_json: bool = False


def parse(arguments: list[str]) -> RayOptions:
    """Exits with 2 where it cannot be used."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description="Runners on a Ray cluster.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="have these runners on the cluster, and no others", epilog=EXAMPLES)
    down = verbs.add_parser("down", help="stop them: in order, what they hold is given back")
    status = verbs.add_parser("status", help="what runs, and what waits for a place")
    for verb in (up, down, status):
        verb.add_argument("--address", default=ADDRESS, help="of the cluster (default: RAY_ADDRESS, else the one here)")
    add = up.add_argument
    several = partial(add, action="append", default=[])
    several("--pool", dest="pools", required=True, type=_pool, metavar="NAME=N|MIN..MAX", help="runners of a pool")
    several("--gpus", type=_gpus, metavar="NAME=N", help="GPUs for each runner of a pool")
    several("--on", type=_pair, metavar="NAME=RESOURCE", help="only where a node offers this")
    add("--engine", choices=get_args(EngineKind), help="what generates, instead of what the pools' settings say")
    add("--store", metavar="STORE", help="a directory that all nodes share, or s3://bucket/prefix")
    add("--config", metavar="FILE", help="the settings file, on every node (default: batchfile.toml, if it is here)")
    idle = "above the minimum: idle for so long (%(default)g)"
    add("--idle-exit", dest="idle_exit_s", type=float, default=300.0, metavar="S", help=idle)
    add(
        "--look",
        dest="look_s",
        type=float,
        default=5.0,
        metavar="S",
        help="between two looks at the work (%(default)g)",
    )
    add("--metrics-host", default="127.0.0.1", metavar="H", help="where runners' /metrics listen (%(default)s)")
    add("--metrics-port", type=int, default=METRICS_PORT, metavar="P", help="of the first pool; 0: none (%(default)s)")
    status.add_argument("--json", dest="is_json", action="store_true", help="for programs")
    given = vars(parser.parse_args(arguments))
    given |= {name: dict(given.get(name, ())) for name in ("pools", "gpus", "on")}
    return RayOptions(**given)


def order_of(options: RayOptions, settings: Settings) -> Order:
    """Raises: SettingsError for a pool that there is not."""
    for name in (*options.gpus, *options.on):
        if name not in options.pools:
            raise SettingsError(f"--gpus or --on names {name}, and no --pool does")
    config = str(config_path().resolve()) if config_path().is_file() else None
    store = options.store or settings.store
    if store is not None and (path := local_path(store)) is not None:
        store = os.path.abspath(path)
    plans = [_plan(options, settings, index, config, store) for index in range(len(options.pools))]
    return Order(plans=tuple(plans), store=store, config=config, look_s=options.look_s)


def _plan(options: RayOptions, settings: Settings, index: int, config: str | None, store: str | None) -> PoolPlan:
    name, bounds = list(options.pools.items())[index]
    pool = pool_of(settings, name)
    kind = kind_of(pool, Options(pool=name, engine=options.engine))
    told = {"--engine": options.engine, "--store": store, "--config": config, "--metrics-host": options.metrics_host}
    return PoolPlan(
        pool=name,
        bounds=bounds,
        num_gpus=options.gpus.get(name, pool.tensor_parallel_size if kind == "vllm" else 0),
        on=options.on.get(name),
        first_port=options.metrics_port and options.metrics_port + index * PORTS_PER_POOL,
        idle_exit_s=options.idle_exit_s,
        grace_s=settings.service_grace_s,
        arguments=tuple(word for flag, value in told.items() if value is not None for word in (flag, value)),
    )


def use_config(options: RayOptions) -> None:
    """Into the environment, before the settings are read."""
    if options.config:
        os.environ[CONFIG_VARIABLE] = options.config


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=VALUE")
    return name, value


def _pool(text: str) -> tuple[str, Bounds]:
    name, value = _pair(text)
    low, dots, high = value.partition("..")
    try:
        return name, Bounds(minimum=int(low), maximum=int(high if dots else low))
    except (ValueError, SettingsError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give {name}=4 or {name}=0..4") from error


def _gpus(text: str) -> tuple[str, int]:
    name, value = _pair(text)
    if not value.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of GPUs")
    return name, int(value)
