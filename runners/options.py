"""Parses the command line of the supervisor and (with `slot`) of one runner, and finds their pool and engine."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from batchfile.engine.base import EngineFactory
from batchfile.engine.open import engine_factory
from batchfile.errors import SettingsError
from batchfile.machine.choice import chosen_arguments, tensor_parallel_size
from batchfile.machine.devices import visible_devices
from batchfile.settings import CONFIG_VARIABLE, Settings
from batchfile.settings_tables import PoolSettings
from batchfile.types import EngineKind

METRICS_PORT = 9400
METRICS_PORTS = 100  # a runner takes the first free port of this many
PROG = f"python -m {__package__}"
EXAMPLES = """\
examples:
  {prog} --pool mistral                      # store in ./.batchfile
  {prog} --pool mistral --store s3://bucket/prefix --idle-exit 300
  {prog} --pool mistral=0-3 --pool llama-70b=4-7   # two pools, each on GPUs of its own
  {prog} --pool test --engine echo --drain   # no model; exit when all is done

Set everything else in batchfile.toml or with BATCHFILE_* variables; for pools with an HTTP endpoint also with
variables such as MISTRAL_BASE_URL. SIGTERM or Ctrl-C finishes requests in flight and releases the rest; a second
one stops without waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOptions:
    """`metrics_port`: of slot 0, and one more for each slot; 0: no metrics; None: the first free port from
    METRICS_PORT on. `slot` None: the supervisor.

    `pools`: the pools of the worker, and the GPUs of each if it names them. `pool`: of this runner.
    `arguments`: the original command line, to pass on.
    """

    pool: str
    pools: Mapping[str, str | None] = field(default_factory=dict)
    engine: EngineKind | None = None
    store: str | None = None
    is_drain: bool = False
    idle_exit_s: float | None = None
    num_slots: int | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    slot: int | None = None
    arguments: tuple[str, ...] = ()

    def metrics_ports(self, slot: int) -> range:
        """The ports that the runner of `slot` may use, in order of preference."""
        if self.metrics_port is None:
            return range(METRICS_PORT + slot, METRICS_PORT + slot + METRICS_PORTS)
        first = self.metrics_port + slot
        return range(first, first + 1) if self.metrics_port else range(0)

    @property
    def log_keys(self) -> dict[str, str | int]:
        if self.slot is None:
            return {"pool": ",".join(self.pools) or self.pool}
        return {"pool": self.pool, "slot": self.slot}


def parse(arguments: list[str], prog: str = PROG) -> ProgramOptions:
    """Puts `--config` into the environment, which the children inherit. Exits with 2 if an argument is invalid."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run the requests of pools of a store: one runner for each engine.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    of_pool = "name of the pool in the settings, and the GPUs for it (default: all); repeatable"
    add("--pool", required=True, dest="pools", type=_pool, action="append", metavar="NAME[=GPUS]", help=of_pool)
    add("--engine", choices=get_args(EngineKind), help="engine to use instead of the one in the pool's settings")
    add("--store", metavar="STORE", help="a directory or s3://bucket/prefix (default: the settings', else .batchfile)")
    add("--config", metavar="FILE", help="settings file (default: batchfile.toml in this folder, if it exists)")
    add("--drain", dest="is_drain", action="store_true", help="exit when the pool has no shard left")
    add("--idle-exit", dest="idle_exit_s", type=seconds, metavar="S", help="exit after S seconds without work")
    per_gpus = "number of engines of a pool (default: one for each set of GPUs that the model needs)"
    add("--slots", dest="num_slots", type=positive, metavar="N", help=per_gpus)
    add("--metrics-host", default="127.0.0.1", metavar="H", help="address of /metrics and /healthz (%(default)s)")
    which = f"metrics port of slot 0 (default: {METRICS_PORT} or the next free one); 0: no metrics"
    add("--metrics-port", type=port, metavar="P", help=which)
    add("--slot", type=int, help=argparse.SUPPRESS)
    add("--of", dest="pool", help=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    names = [name for name, _ in given["pools"]]
    if len(set(names)) < len(names):
        parser.error(f"--pool {max(names, key=names.count)} is given twice; name all its GPUs in one, such as 0,2-3")
    given["pools"] = dict(given["pools"])
    given["pool"] = given["pool"] or next(iter(given["pools"]))
    if config := given.pop("config"):
        os.environ[CONFIG_VARIABLE] = config
    return ProgramOptions(**given, arguments=tuple(arguments))


def _pool(text: str) -> tuple[str, str | None]:
    """A single number is the index of a GPU here, not how many there are."""
    name, sign, gpus = text.partition("=")
    if not name or (sign and not gpus):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; use NAME, or NAME=GPUS such as mistral=0-3")
    return name, f"{gpus}," if gpus.isdecimal() else gpus or None


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1; use 1 or more")
    return number


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port; use 1 to 65535, or 0 for no metrics")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a duration; use a number of seconds above 0")
    return number


def pool_of(settings: Settings, name: str) -> PoolSettings:
    """Raises: SettingsError that names the existing pools."""
    found = settings.pools.get(name)
    if found is None:
        raise SettingsError(f"--pool {name}: pool {name!r} is unknown; use one of {', '.join(sorted(settings.pools))}")
    return found


def kind_of(pool: PoolSettings, options: ProgramOptions) -> EngineKind:
    """Raises: SettingsError if the HTTP engine has no base_url."""
    kind = options.engine or pool.engine
    if kind == "http" and not pool.base_url:
        raise SettingsError(f"engine http needs the URL of an endpoint; set pools.{options.pool}.base_url")
    return kind


def factory_of(
    pool: PoolSettings, kind: EngineKind, stall_s: float = 600.0, *, is_scraped: bool = False
) -> EngineFactory:
    """`is_scraped`: vLLM's metrics are served. Raises: SettingsError for GPUs that do not exist."""
    chosen = {}
    if kind == "vllm":
        chosen = chosen_arguments(
            pool,
            pool.model,
            (visible_devices(),),
            revision=pool.revision,
            max_num_seqs=pool.max_num_seqs,
            is_generating=pool.task == "generate",
            is_scraped=is_scraped,
        )
    return engine_factory(
        kind,
        model=pool.model,
        revision=pool.revision,
        base_url=pool.base_url,
        api_key=None if pool.api_key is None else pool.api_key.get_secret_value(),
        max_model_len=pool.max_model_len,
        max_num_seqs=pool.max_num_seqs,
        gpu_memory_utilization=pool.gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size(pool),
        tool_parser=pool.tool_parser,
        reasoning_parser=pool.reasoning_parser,
        chat_template=pool.chat_template,
        parse_control_tokens=pool.parse_control_tokens,
        lora=pool.lora,
        engine_args=pool.vllm_arguments,
        defaults=chosen,
        task=pool.task,
        stall_s=stall_s,
    )
