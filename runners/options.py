"""What the command line says, for the supervisor and (with `slot`) for one runner, and the pool that it names."""

import argparse
import os
from dataclasses import dataclass
from typing import get_args

from batchfile.engine.base import EngineFactory
from batchfile.engine.open import engine_factory
from batchfile.errors import SettingsError
from batchfile.settings import CONFIG_VARIABLE, Settings
from batchfile.settings_tables import Pool
from batchfile.types import EngineKind

METRICS_PORT = 9400
METRICS_PORTS = 100  # from there on; a runner takes the first that is free
PROG = f"python -m {__package__}"
EXAMPLES = """\
examples:
  {prog} --pool mistral                      # for the store .batchfile here
  {prog} --pool mistral --store s3://bucket/prefix --idle-exit 300
  {prog} --pool test --engine echo --drain   # without a model, until all is done

Everything else is a setting: batchfile.toml, BATCHFILE_* variables, and MISTRAL_BASE_URL and the like
for pools behind an HTTP endpoint. SIGTERM or Ctrl-C finishes what is in flight and gives the rest back; a second
one does not wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`metrics_port`: of the first slot, the next has the next; 0: no metrics; None: any that is free from
    METRICS_PORT on. `slot` None: the supervisor.

    `arguments`: all of this as it was given, to be passed on.
    """

    pool: str
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
        """Those that the runner of `slot` may take, the best first."""
        if self.metrics_port is None:
            return range(METRICS_PORT + slot, METRICS_PORT + slot + METRICS_PORTS)
        first = self.metrics_port + slot
        return range(first, first + 1) if self.metrics_port else range(0)

    @property
    def log_keys(self) -> dict[str, str | int]:
        return {"pool": self.pool} | ({} if self.slot is None else {"slot": self.slot})


def parse(arguments: list[str], prog: str = PROG) -> Options:
    """`--config` goes into the environment, which the children inherit. Exits with 2 where it cannot be used."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Work for one pool of a store: one runner per engine slot.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pool", required=True, metavar="NAME", help="the pool, as the settings name it")
    add("--engine", choices=get_args(EngineKind), help="what generates, instead of what the pool's settings say")
    add("--store", metavar="STORE", help="a directory or s3://bucket/prefix (default: the settings', else .batchfile)")
    add("--config", metavar="FILE", help="the settings file (default: batchfile.toml here, if there is one)")
    add("--drain", dest="is_drain", action="store_true", help="end once no shard of the pool is left to do")
    add("--idle-exit", dest="idle_exit_s", type=seconds, metavar="S", help="end after S seconds without work")
    per_gpus = "engines (default: one for each set of GPUs that a model needs)"
    add("--slots", dest="num_slots", type=positive, metavar="N", help=per_gpus)
    add("--metrics-host", default="127.0.0.1", metavar="H", help="where /metrics and /healthz listen (%(default)s)")
    which = f"of slot 0 (default: {METRICS_PORT} or the next that is free); 0: none"
    add("--metrics-port", type=port, metavar="P", help=which)
    add("--slot", type=int, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    if config := given.pop("config"):
        os.environ[CONFIG_VARIABLE] = config
    return Options(**given, arguments=tuple(arguments))


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is no port: give 1 to 65535, or 0 for none")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no length of time: give seconds, more than 0")
    return number


def pool_of(settings: Settings, name: str) -> Pool:
    """Raises: SettingsError with the pools that there are."""
    found = settings.pools.get(name)
    if found is None:
        raise SettingsError(f"--pool {name}: there is no such pool; there are {', '.join(sorted(settings.pools))}")
    return found


def kind_of(pool: Pool, options: Options) -> EngineKind:
    """Raises: SettingsError where that engine has nowhere to go."""
    kind = options.engine or pool.engine
    if kind == "http" and not pool.base_url:
        raise SettingsError(f"--engine http needs an address: set pools.{options.pool}.base_url")
    return kind


def factory_of(pool: Pool, kind: EngineKind, stall_s: float = 600.0) -> EngineFactory:
    return engine_factory(
        kind,
        model=pool.model,
        base_url=pool.base_url,
        api_key=None if pool.api_key is None else pool.api_key.get_secret_value(),
        max_model_len=pool.max_model_len,
        max_num_seqs=pool.max_num_seqs,
        gpu_memory_utilization=pool.gpu_memory_utilization,
        tensor_parallel_size=pool.tensor_parallel_size,
        tool_parser=pool.tool_parser,
        reasoning_parser=pool.reasoning_parser,
        chat_template=pool.chat_template,
        engine_args=pool.engine_args,
        task=pool.task,
        stall_s=stall_s,
    )
