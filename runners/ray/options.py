"""Parses the command line of `python -m runners.ray` and turns `up` into an order. Independent of Ray."""

import argparse
import os
from dataclasses import dataclass
from functools import partial
from typing import get_args

from batchfile.errors import SettingsError
from batchfile.settings import CONFIG_VARIABLE, Settings, config_path
from batchfile.store.open import local_path
from batchfile.types import EngineKind

from ..options import METRICS_PORT, ProgramOptions, kind_of, pool_of
from ..scaling import Bounds
from .plans import PORTS_PER_POOL, Order, PoolPlan

ADDRESS = "auto"
EXAMPLES = """`--pool mistral=4` keeps four runners; `--pool llama-70b=0..2` keeps up to two, and none without work. Run
`up` again to change what runs; an identical order changes nothing. Each runner of a vLLM pool uses
tensor_parallel_size GPUs of one node. All nodes need the same code, settings and store."""


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
    """Exits with 2 if an argument is invalid."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description="Manage runners on a Ray cluster.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="run exactly these runners on the cluster", epilog=EXAMPLES)
    down = verbs.add_parser("down", help="stop all runners gracefully and release their shards")
    status = verbs.add_parser("status", help="show running runners and those that wait for a node")
    for verb in (up, down, status):
        verb.add_argument(
            "--address", default=ADDRESS, help="of the cluster (default: RAY_ADDRESS, else the local one)"
        )
    add = up.add_argument
    several = partial(add, action="append", default=[])
    several("--pool", dest="pools", required=True, type=_pool, metavar="NAME=N|MIN..MAX", help="runners of a pool")
    several("--gpus", type=_gpus, metavar="NAME=N", help="GPUs for each runner of a pool")
    several("--on", type=_pair, metavar="NAME=RESOURCE", help="use only nodes with this custom resource")
    add("--engine", choices=get_args(EngineKind), help="engine to use instead of the ones in the pools' settings")
    add("--store", metavar="STORE", help="a directory that all nodes share, or s3://bucket/prefix")
    add("--config", metavar="FILE", help="settings file on every node (default: batchfile.toml in this folder)")
    idle = "runners above the minimum exit after S seconds without work (default: %(default)g)"
    add("--idle-exit", dest="idle_exit_s", type=float, default=300.0, metavar="S", help=idle)
    add(
        "--look",
        dest="look_s",
        type=float,
        default=5.0,
        metavar="S",
        help="check the work every S seconds (default: %(default)g)",
    )
    add("--metrics-host", default="127.0.0.1", metavar="H", help="address of the runners' /metrics (%(default)s)")
    add(
        "--metrics-port",
        type=int,
        default=METRICS_PORT,
        metavar="P",
        help="of the first pool; 0: none (%(default)s)",
    )
    status.add_argument("--json", dest="is_json", action="store_true", help="print JSON")
    given = vars(parser.parse_args(arguments))
    given |= {name: dict(given.get(name, ())) for name in ("pools", "gpus", "on")}
    return RayOptions(**given)


def order_of(options: RayOptions, settings: Settings) -> Order:
    """Raises: SettingsError for an unknown pool."""
    for name in (*options.gpus, *options.on):
        if name not in options.pools:
            raise SettingsError(f"--gpus or --on names pool {name}, but no --pool does; add --pool {name}=N")
    config = str(config_path().resolve()) if config_path().is_file() else None
    store = options.store or settings.store
    if store is not None and (path := local_path(store)) is not None:
        store = os.path.abspath(path)
    plans = [_plan(options, settings, index, config, store) for index in range(len(options.pools))]
    return Order(plans=tuple(plans), store=store, config=config, look_s=options.look_s)


def _plan(options: RayOptions, settings: Settings, index: int, config: str | None, store: str | None) -> PoolPlan:
    name, bounds = list(options.pools.items())[index]
    pool = pool_of(settings, name)
    kind = kind_of(pool, ProgramOptions(pool=name, engine=options.engine))
    size = pool.tensor_parallel_size
    if kind == "vllm" and isinstance(size, str) and name not in options.gpus:
        raise SettingsError(
            f"pools.{name}.tensor_parallel_size = auto needs the GPUs of a node; set a number, or add --gpus {name}=N"
        )
    each = 0 if isinstance(size, str) or kind != "vllm" else size * pool.pipeline_parallel_size
    flags = {"--engine": options.engine, "--store": store, "--config": config, "--metrics-host": options.metrics_host}
    return PoolPlan(
        pool=name,
        bounds=bounds,
        num_gpus=options.gpus.get(name, each),
        on=options.on.get(name),
        first_port=options.metrics_port and options.metrics_port + index * PORTS_PER_POOL,
        idle_exit_s=options.idle_exit_s,
        grace_s=settings.service_grace_s,
        arguments=tuple(word for flag, value in flags.items() if value is not None for word in (flag, value)),
    )


def use_config(options: RayOptions) -> None:
    """Puts `--config` into the environment, before the settings are read."""
    if options.config:
        os.environ[CONFIG_VARIABLE] = options.config


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; use NAME=VALUE")
    return name, value


def _pool(text: str) -> tuple[str, Bounds]:
    name, value = _pair(text)
    low, dots, high = value.partition("..")
    try:
        return name, Bounds(minimum=int(low), maximum=int(high if dots else low))
    except (ValueError, SettingsError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; use {name}=4 or {name}=0..4") from error


def _gpus(text: str) -> tuple[str, int]:
    name, value = _pair(text)
    if not value.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; use a whole number of GPUs, such as {name}=2")
    return name, int(value)
