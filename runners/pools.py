"""A pool's settings as an engine. Loads no engine."""

from batchfile.engine.base import EngineFactory
from batchfile.engine.open import engine_factory
from batchfile.errors import SettingsError
from batchfile.settings import Settings
from batchfile.settings_tables import Pool
from batchfile.types import EngineKind

from .options import Options


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
