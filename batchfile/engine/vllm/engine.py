"""The engine for vLLM: runs its offline LLM in this process, request by request.

vllm, torch and transformers are imported only when an engine is built. Written for vllm >= 0.26.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from batchfile.engine.base import EngineInfo, EngineStats, Finished, Prepared, SchemaUnchecked, in_flight_for
from batchfile.engine.vllm.adapters import Adapter, Adapters, check_adapters, load_adapters, lora_arguments
from batchfile.engine.vllm.arguments import check_engine_arguments
from batchfile.engine.vllm.cpu import CpuChoice
from batchfile.engine.vllm.guides import Guides
from batchfile.engine.vllm.identity import CPU_ENVIRONMENT, choose_on_cpu, identity_of
from batchfile.engine.vllm.media import media_kinds
from batchfile.engine.vllm.pooling import Pooling
from batchfile.engine.vllm.preflight import TRANSFORMERS_FILES, check_vllm, commit_of
from batchfile.engine.vllm.processes import (
    CLOSE_S,
    ProcessGuard,
    built_apart,
    children,
    close_sockets,
    descendants,
    ended,
    environment,
)
from batchfile.engine.vllm.steps import OutputWait, Stall, StepCounter, lacking
from batchfile.engine.vllm.tasks import Generating, VllmOptions, VllmPrepared, Work, refusals
from batchfile.errors import EngineDead, InvalidRequest, SettingsError
from batchfile.request_media import MediaUse
from batchfile.types import Completion, Failure, Outcome, Request

log = structlog.get_logger()

T = TypeVar("T")

# Set before vllm is imported, unless the user has set them. vLLM, torch and their processes log only errors, and never
# to stdout, which may be used for results. Usage statistics are off.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-all",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker",
    "VLLM_NO_USAGE_STATS": "1",
    **CPU_ENVIRONMENT,
}
STEP_WAIT_S_MAX = 0.25  # a step of a large model on a CPU can take a minute; control returns to the caller this often
WHY_CHARS_MAX = 500
UNFORESEEN = "vLLM cannot prepare this request: {why}. See the runner's log."
UNREADABLE = "vLLM's answer cannot be read: {why}. See the runner's log."
CPU_BLOCK_TOKENS = 32  # the smallest size for fast attention on a CPU
NOT_FETCHED = ["original/**/*", "consolidated*"]  # the first is vLLM's default


@dataclass(frozen=True, slots=True)
class _InFlight:
    """`names`: of its prompts in vLLM. `outputs`: those received so far, by name."""

    prepared: VllmPrepared
    names: list[str]
    outputs: dict[str, Any]

    def in_order(self) -> list[Any]:
        return [self.outputs[name] for name in self.names]


class VllmEngine:
    """Loads the model before it returns. Raises: SettingsError if that is impossible; EngineDead."""

    def __init__(self, options: VllmOptions) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        check_adapters(options.lora)
        own = {"pipeline_parallel_size", "revision"}
        check_engine_arguments({name: value for name, value in options.extra.items() if name not in own})
        check_vllm(options.model, options.extra.get("revision"), is_hub_asked=False)
        import vllm
        from vllm import envs
        from vllm.platforms import current_platform

        envs.disable_envs_cache()  # of an engine before this one, which had other variables
        adapters = load_adapters(options.lora)
        is_cpu = current_platform.is_cpu()
        arguments = _arguments(options) | lora_arguments(adapters, options.extra, is_cpu=is_cpu)
        choice = choose_on_cpu(options, str(arguments["dtype"])) if is_cpu else None
        if choice is not None:
            arguments["dtype"] = choice.dtype
        self._guard = ProcessGuard()
        before = children()
        with environment({} if choice is None else choice.environ):
            self._llm: Any = built_apart(lambda: vllm.LLM(**arguments), options.model, self._guard)
        self._engine: Any = self._llm.llm_engine
        self._processes = children() - before
        for process in descendants(self._processes):  # so that the guard knows them even if they lose their parent
            self._guard.watch(process.pid)
        for name, loss in lacking(self._engine.engine_core).items():
            log.warning("vllm.feature_missing", name=name, version=vllm.__version__, loss=loss)
        self._wait = OutputWait(self._engine.engine_core)
        self._counter = StepCounter()
        self._counter.attach(self._engine.engine_core)
        self._stall = Stall(options.stall_s)
        config = self._engine.vllm_config
        commits = {options.model: commit_of(options.model, options.extra.get("revision"))}
        commits |= {adapter.name: adapter.commit for adapter in adapters}
        num_slots = config.scheduler_config.max_num_seqs
        chosen = {name: value for name, value in options.defaults.items() if name not in options.extra}
        self.info = EngineInfo(
            name="vllm",
            model=options.display_name,
            version=vllm.__version__,
            num_slots=num_slots,
            max_in_flight=in_flight_for(num_slots),
            max_model_len=config.model_config.max_model_len,
            num_gpus=0 if choice is not None else config.parallel_config.world_size,
            note=_note(choice, chosen),
            arguments=chosen,
            adapters=tuple(adapter.name for adapter in adapters),
            commits={name: found for name, found in commits.items() if found is not None},
            identity=identity_of(options, None if choice is None else choice.dtype),
            media=MediaUse(kinds=media_kinds(self._llm) if options.task == "generate" else frozenset()),
        )
        self._in_flight: dict[int, _InFlight] = {}
        self._death: str | None = None
        self._num_sequences = 0
        self._num_steps = 0
        self._num_full_steps = 0
        self._guides = Guides(self._llm, self._guard)
        known = (self.info.model, options.model) if options.checks_model else None
        found = Adapters(adapters, None if known is None else tuple(dict.fromkeys(known)))
        try:
            self._lora = {adapter.number: self._loaded(adapter) for adapter in adapters}
            self._work: Work = (
                Generating(self._llm, options, self._guides, found)
                if options.task == "generate"
                else Pooling(self._llm, options, found)
            )
        except BaseException:
            self.close()
            raise
        if not arguments["disable_log_stats"]:
            envs.enable_envs_cache()  # statistics look variables up for each token

    def prepare(self, request: Request) -> VllmPrepared:
        try:
            return _prepared(lambda: self._work.prepare(request))
        except SchemaUnchecked as unchecked:
            finish = unchecked.finish
        raise SchemaUnchecked(lambda owner: _prepared(lambda: finish(owner)))

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, VllmPrepared)
        self._check_alive()
        names: list[str] = []
        adapter = prepared.adapter
        more = {} if adapter is None else {"lora_request": self._lora[adapter.number]}
        try:
            for number, token_ids in enumerate(prepared.prompts):
                prompt = prepared.with_media or {"prompt_token_ids": token_ids}
                prompt = {**prompt, **prepared.prompt_fields}
                name, priority = f"{key}.{number}", prepared.priority
                params = prepared.params[number] if isinstance(prepared.params, list) else prepared.params
                self._engine.add_request(name, prompt, params, priority=priority, **more)
                names.append(f"{key}.{number}")
                self._counter.added(names[-1], len(token_ids))
        except refusals() as error:
            self._forget(names)
            raise InvalidRequest(str(error)) from error
        except Exception as error:
            raise self._died(error) from error
        self._in_flight[key] = _InFlight(prepared, names, {})
        self._num_sequences += prepared.num_sequences

    def _loaded(self, adapter: Adapter) -> Any:
        """vLLM's request for an adapter. Raises: SettingsError if it does not fit the model."""
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(adapter.name, adapter.number, str(adapter.folder))
        try:
            is_loaded = self._engine.add_lora(lora)
        except Exception as error:  # of the engine's process, without a type of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise SettingsError(f"lora {adapter.name!r}: {adapter.folder} does not fit the model: {reason}") from error
        if not is_loaded:
            raise SettingsError(f"lora {adapter.name!r}: vLLM did not load {adapter.folder}")
        return lora

    def step(self) -> list[Finished]:
        self._check_alive()
        if not self._in_flight:
            self._stall.reset()
            return []
        if not self._wait.is_over(STEP_WAIT_S_MAX):
            # vLLM notices that its engine process has ended, but a waiting step would never return.
            if how := ended(self._processes):
                self._death = f"vLLM's engine process {how}."
                raise EngineDead(self._death)
            self._check_progress(has_stepped=False)
            return []
        self._num_steps += 1
        self._num_full_steps += self._num_sequences >= self.info.num_slots
        try:
            outputs = self._engine.step()
        except Exception as error:
            # After an exception here, vLLM's state is unknown: only a new engine is safe.
            raise self._died(error) from error
        done = []
        for output in outputs:
            key = int(output.request_id.partition(".")[0])
            ours = self._in_flight.get(key)
            if ours is None or not output.finished:
                continue
            ours.outputs[output.request_id] = output
            if len(ours.outputs) == len(ours.names):
                finished = Finished(key, self._outcome(self._take(key)))
                num_tokens = finished.outcome.usage.output_tokens if isinstance(finished.outcome, Completion) else 0
                self._counter.finished(ours.names, num_tokens)
                done.append(finished)
        self._stall.is_warm = self._stall.is_warm or bool(done)
        self._check_progress(has_stepped=bool(done) or self._counter.num_running > 0)
        return done

    def _outcome(self, ours: _InFlight) -> Outcome:
        try:
            return self._work.outcome(ours.in_order(), ours.prepared)
        except Exception as error:  # one answer must not end the run
            log.exception("vllm.answer_unreadable")
            return Failure(type="model_error", message=UNREADABLE.format(why=_why(error)))

    def abort(self, keys: Iterable[int]) -> None:
        self._forget([name for key in keys if key in self._in_flight for name in self._take(key).names])

    def stats(self) -> EngineStats:
        counter, num_sequences = self._counter, self._num_sequences
        # The scheduler reports 0 until the first step after a pause is done.
        num_running = min(num_sequences, counter.num_running or self.info.num_slots)
        return EngineStats(
            num_steps=self._num_steps,
            num_full_steps=self._num_full_steps,
            prompt_tokens=counter.prompt_tokens,
            output_tokens=counter.output_tokens,
            num_running=num_running,
            num_waiting=num_sequences - num_running,
            kv_use=counter.kv_use,
        )

    def close(self) -> None:
        """Ends the engine's processes and frees their memory. A second call does nothing."""
        self._death = self._death or "The engine was closed. Build another one."
        self._in_flight.clear()
        self._guides.close()
        ending = descendants(self._processes)
        with contextlib.suppress(Exception):  # it may be dead already
            self._engine.engine_core.shutdown(timeout=CLOSE_S)
            close_sockets(self._engine.engine_core)
        for process in ending:
            with contextlib.suppress(Exception):
                process.kill()
                process.wait()
        self._processes = frozenset()
        self._guard.close()

    def _check_progress(self, *, has_stepped: bool) -> None:
        """`has_stepped`: the scheduler had something to run. Raises: EngineDead without progress for too long."""
        seen = (self._counter.prompt_tokens, self._counter.output_tokens)
        if not self._stall.is_over(time.monotonic(), seen, has_stepped=has_stepped):
            return
        for process in descendants(self._processes):
            with contextlib.suppress(Exception):
                process.kill()
        raise self._died(TimeoutError(f"no step and no token for {self._stall.bound_s:g} s with requests in flight"))

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)

    def _died(self, error: Exception) -> EngineDead:
        """Marks the engine as dead, so that every later call raises. vLLM itself does not notice everywhere."""
        self._death = f"vLLM's engine cannot continue: {type(error).__name__}: {error}"
        return EngineDead(self._death)

    def _take(self, key: int) -> "_InFlight":
        ours = self._in_flight.pop(key)
        self._num_sequences -= ours.prepared.num_sequences
        return ours

    def _forget(self, names: list[str]) -> None:
        self._counter.forget(names)
        try:
            self._engine.abort_request(names)
        except Exception as error:
            raise self._died(error) from error


def _prepared(prepare: Callable[[], T]) -> T:
    """One request must not end the run. Raises: InvalidRequest, SchemaUnchecked, EngineDead."""
    try:
        return prepare()
    except (InvalidRequest, SchemaUnchecked, EngineDead):
        raise
    except Exception as error:  # of vLLM, a tokenizer or a parser
        log.exception("vllm.request_rejected")
        raise InvalidRequest(UNFORESEEN.format(why=_why(error))) from error


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:WHY_CHARS_MAX]


def _arguments(options: VllmOptions) -> dict[str, Any]:
    from vllm.platforms import current_platform

    is_eager = current_platform.is_cpu() if options.enforce_eager is None else options.enforce_eager
    arguments: dict[str, Any] = {
        "model": options.model,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel_size,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "enforce_eager": is_eager,
        "load_format": options.load_format,
        "seed": options.seed,
        "reasoning_parser": options.reasoning_parser,
        "runner": "generate" if options.task == "generate" else "pooling",
        # Not every pooling model supports it; vLLM decides.
        "enable_prefix_caching": True if options.task == "generate" else None,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if current_platform.is_cpu():
        # Only whole blocks of a shared prompt are cached, and blocks on a CPU have 128 tokens by default.
        arguments["block_size"] = CPU_BLOCK_TOKENS
    if options.tensor_parallel_size > 1:
        # By default, vLLM uses Ray's executor inside a Ray placement group.
        arguments["distributed_executor_backend"] = "mp"
    if not options.extra.keys() & {"tokenizer_mode", "config_format"} and _has_two_layouts(options):
        arguments |= {"tokenizer_mode": "hf", "config_format": "hf", "ignore_patterns": NOT_FETCHED}
        if options.load_format == "auto":
            arguments["load_format"] = "hf"
    set_here = {name: value for name, value in arguments.items() if value is not None}
    return set_here | dict(options.defaults) | options.extra


def _note(choice: CpuChoice | None, chosen: Mapping[str, Any]) -> str:
    """One line about what was chosen for vLLM, but for its statistics, which nobody misses."""
    listed = ", ".join(f"{name}={value}" for name, value in chosen.items() if name != "disable_log_stats")
    notes = ["" if choice is None else choice.note, listed and f"vLLM runs with {listed}"]
    return "; ".join(note for note in notes if note)


def _has_two_layouts(options: VllmOptions) -> bool:
    """Whether a model has Mistral's layout as well as that of transformers, as Mistral-7B-Instruct-v0.3 does.

    By default, vLLM uses Mistral's: a second copy of the weights, and a tokenizer without a chat template.
    """
    from vllm.transformers_utils.repo_utils import file_or_path_exists, is_mistral_model_repo

    revision = options.extra.get("revision")
    return is_mistral_model_repo(options.model, revision=revision) and all(
        file_or_path_exists(options.model, name, revision=revision) for name in TRANSFORMERS_FILES
    )
