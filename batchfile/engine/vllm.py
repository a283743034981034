"""vLLM in this process's care: its offline LLM, fed and drained request by request.

The only module that knows vllm, torch and transformers; they are imported when an engine is built, not before.
Knows nothing of files, stores and shards. Written for vllm >= 0.26.
"""

import contextlib
import copy
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from batchfile.engine.base import EngineInfo, EngineStats, Finished, Prepared, in_flight_for
from batchfile.engine.chat_prompt import ChatPrompts
from batchfile.engine.guard import ProcessGuard
from batchfile.engine.one_decode import OneDecode
from batchfile.engine.vllm_parsers import Parsers, Reading
from batchfile.engine.vllm_processes import CLOSE_S, built_apart, close_sockets, descendants, processes
from batchfile.errors import EngineDead, InvalidRequest, SettingsError
from batchfile.words import Choice, Completion, Failure, Outcome, Request, Sampling, Usage

# Set before vllm is imported, unless the user has set them. vLLM and its processes say only what went wrong,
# and never on stdout, which may carry results. Nothing is reported home. 2 GiB of KV cache are plenty for a
# small model on a CPU (the variable means nothing on a GPU).
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
CPU_BLOCK_TOKENS = 32  # the smallest that the CPU's fast attention takes


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """What the LLM is built with; None leaves the choice to vLLM.

    `model`: a folder or a hub id. `enforce_eager` None: eager on a CPU, where compiling costs more start-up
    than a small batch can win back. `chat_template`: a file to use instead of the model's own.
    `tool_parser`, `reasoning_parser`: vLLM's names of those; None: by the chat template, and none.
    `extra`: further arguments of vLLM's engine, as they are.
    """

    model: str
    served_name: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    enforce_eager: bool | None = None
    load_format: str = "auto"
    seed: int = 0
    chat_template: str | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPrepared(Prepared):
    token_ids: list[int]
    params: Any
    num_choices: int
    reading: Reading | None = None


class VllmEngine:
    """The model is loaded when this returns. Raises: SettingsError if it can not be; EngineDead."""

    def __init__(self, options: VllmOptions) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        import vllm

        self._guard = ProcessGuard()
        try:
            self._llm: Any = built_apart(lambda: vllm.LLM(**_arguments(options)), options.model, self._guard)
        except BaseException:
            self._guard.close()
            raise
        self._engine: Any = self._llm.llm_engine
        self._processes = processes(self._engine)
        self._watch_processes()
        config = self._engine.vllm_config
        num_slots = config.scheduler_config.max_num_seqs
        self._max_model_len: int = config.model_config.max_model_len
        self.info = EngineInfo(
            name="vllm",
            model=options.served_name or _display_name(options.model),
            version=vllm.__version__,
            num_slots=num_slots,
            max_in_flight=in_flight_for(num_slots),
            max_model_len=self._max_model_len,
        )
        self._defaults: dict[str, Any] = config.model_config.get_diff_sampling_param()
        tokenizer = copy.deepcopy(self._llm.get_tokenizer())
        if options.chat_template is not None:
            tokenizer.chat_template = _read_template(options.chat_template)
        self._prompts = ChatPrompts(tokenizer, options.model)
        self._parsers = Parsers(
            tokenizer=self._llm.get_tokenizer(),
            model_config=config.model_config,
            prompts=self._prompts,
            tool_parser=options.tool_parser,
            reasoning_parser=options.reasoning_parser,
        )
        self._decode = OneDecode.of(tokenizer)
        self._in_flight: dict[int, VllmPrepared] = {}
        self._death: str | None = None
        self._num_sequences = 0
        self._num_steps = 0
        self._num_full_steps = 0

    def prepare(self, request: Request) -> VllmPrepared:
        reading = self._parsers.reading(request)
        prompt = self._prompts.prompt(request.messages, request.tools, self._parsers.template_arguments(request))
        max_tokens = fitting_max_tokens(request.sampling, len(prompt.token_ids), self._max_model_len)
        return VllmPrepared(
            prefix=prompt.prefix,
            cost=max_tokens,
            token_ids=prompt.token_ids,
            params=self._params(request.sampling, max_tokens, None if reading is None else reading.asked),
            num_choices=request.sampling.num_choices,
            reading=reading,
        )

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, VllmPrepared)
        self._check_alive()
        try:
            self._engine.add_request(str(key), {"prompt_token_ids": prepared.token_ids}, prepared.params)
        except _refusals() as error:
            raise InvalidRequest(str(error)) from error
        except Exception as error:
            raise self._died(error) from error
        self._in_flight[key] = prepared
        self._num_sequences += prepared.num_choices

    def step(self) -> list[Finished]:
        self._check_alive()
        if not self._in_flight:
            return []
        self._num_steps += 1
        self._num_full_steps += self._num_sequences >= self.info.num_slots
        try:
            outputs = self._engine.step()
        except Exception as error:
            # Whatever escapes here leaves vLLM's state unknown: only a new engine is safe.
            raise self._died(error) from error
        return [self._finish(output) for output in outputs if output.finished and self._is_wanted(output)]

    def abort(self, keys: Iterable[int]) -> None:
        wanted = [key for key in keys if key in self._in_flight]
        for key in wanted:
            self._num_sequences -= self._in_flight.pop(key).num_choices
        try:
            self._engine.abort_request([str(key) for key in wanted])
        except Exception as error:
            raise self._died(error) from error

    def stats(self) -> EngineStats:
        return EngineStats(num_steps=self._num_steps, num_full_steps=self._num_full_steps)

    def close(self) -> None:
        """Ends the engine's processes and frees their memory. A second call does nothing."""
        self._death = self._death or "The engine was closed. Build another one."
        self._in_flight.clear()
        ending = descendants(self._processes)
        with contextlib.suppress(Exception):  # it may be dead already, in ways of its own
            self._engine.engine_core.shutdown(timeout=CLOSE_S)
            close_sockets(self._engine.engine_core)
        for process in ending:
            with contextlib.suppress(Exception):
                process.kill()
                process.wait()
        self._processes = []
        self._guard.close()

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)

    def _died(self, error: Exception) -> EngineDead:
        """vLLM notices a death only where it looks; from now on every call says so."""
        self._death = f"vLLM's engine can not go on: {type(error).__name__}: {error}"
        return EngineDead(self._death)

    def _is_wanted(self, output: Any) -> bool:
        return int(output.request_id) in self._in_flight

    def _finish(self, output: Any) -> Finished:
        key = int(output.request_id)
        prepared = self._in_flight.pop(key)
        self._num_sequences -= prepared.num_choices
        return Finished(key, self._outcome(output, prepared))

    def _outcome(self, output: Any, prepared: VllmPrepared) -> Outcome:
        if any(choice.finish_reason in ("error", "abort", None) for choice in output.outputs):
            return Failure(type="model_error", message="vLLM gave this request up. Run it again.")
        choices = tuple(
            _choice(choice, choice.text if prepared.params.detokenize else self._text(choice, prepared.token_ids))
            for choice in output.outputs
        )
        if prepared.reading is not None:
            choices = tuple(
                self._parsers.read(prepared.reading, choice, list(given.token_ids), index)
                for index, (choice, given) in enumerate(zip(choices, output.outputs, strict=True))
            )
        usage = Usage(
            input_tokens=len(prepared.token_ids),
            output_tokens=sum(len(choice.token_ids) for choice in output.outputs),
            cached_tokens=output.num_cached_tokens or 0,
        )
        return Completion(choices=choices, usage=usage)

    def _text(self, choice: Any, prompt_ids: list[int]) -> str:
        assert self._decode is not None
        token_ids = list(choice.token_ids)
        # Without stop strings "stop" means a stop token, which is no text.
        return self._decode.text(token_ids[:-1] if choice.finish_reason == "stop" else token_ids, prompt_ids)

    def _params(self, sampling: Sampling, max_tokens: int, read: Any) -> Any:
        """vLLM's parameters. `read`: what the parser asks for that reads the answer, if any.

        Raises: InvalidRequest if vLLM does not accept them.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        asked = {
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": sampling.repetition_penalty,
        }
        # The model's own defaults (its generation_config.json) hold where the request does not say.
        given = {name: self._defaults.get(name) if value is None else value for name, value in asked.items()}
        try:
            schema = sampling.json_schema
            guide = (
                None
                if schema is None
                else StructuredOutputsParams(**({"json": schema} if schema else {"json_object": True}))
            )
            if read is not None and read.structured_outputs is not None:
                guide = read.structured_outputs
            params = SamplingParams(
                **{name: value for name, value in given.items() if value is not None},
                n=sampling.num_choices,
                temperature=sampling.temperature,
                max_tokens=max_tokens,
                stop=list(sampling.stop),
                seed=sampling.seed,
                ignore_eos=sampling.ignore_eos,
                structured_outputs=guide,
                output_kind=RequestOutputKind.FINAL_ONLY,
                # Text is made once, at the end, where that gives the same text; stop strings need it as it comes.
                detokenize=bool(sampling.stop) or self._decode is None or read is not None,
                skip_special_tokens=read is None or read.skip_special_tokens,
            )
        except _refusals() as error:
            raise InvalidRequest(str(error)) from error
        # These parameters are this request's alone, so vLLM need not copy them.
        params.skip_clone = True
        return params

    def _watch_processes(self) -> None:
        """Wake a step that waits for an answer that can no longer come.

        vLLM notices that its engine process has gone, but leaves a waiting `step` waiting; and closes nothing
        it does not know of.
        """
        answers = getattr(self._engine.engine_core, "outputs_queue", None)
        sentinels = [process.sentinel for process in self._processes]
        if answers is None or not sentinels:
            return

        def wait() -> None:
            connection.wait(sentinels)
            answers.put_nowait(RuntimeError("vLLM's engine process has ended."))

        threading.Thread(target=wait, name="vllm-watch", daemon=True).start()


def fitting_max_tokens(sampling: Sampling, num_prompt: int, max_model_len: int) -> int:
    """How many tokens may be generated. Raises: InvalidRequest if the request does not fit the model."""
    room = max_model_len - num_prompt
    if sampling.is_max_tokens_given and sampling.max_tokens > room:
        raise InvalidRequest(
            f"A prompt of {num_prompt} tokens plus max_tokens {sampling.max_tokens} exceeds the model's "
            f"max_model_len {max_model_len}: shorten the prompt or set max_tokens to at most {max(room, 0)}."
        )
    if room < 1:
        raise InvalidRequest(
            f"A prompt of {num_prompt} tokens leaves no room to answer in the model's max_model_len "
            f"{max_model_len}: shorten the prompt."
        )
    return min(sampling.max_tokens, room)


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
        "enable_prefix_caching": True,
        "disable_log_stats": False,
        "use_tqdm_on_load": False,
    }
    if current_platform.is_cpu():
        # Of a shared prompt only whole blocks are cached, and a CPU's blocks have 128 tokens by default.
        arguments["block_size"] = CPU_BLOCK_TOKENS
    if options.tensor_parallel_size > 1:
        # Left alone, vLLM takes Ray's executor when it finds itself inside a Ray placement group.
        arguments["distributed_executor_backend"] = "mp"
    return {name: value for name, value in arguments.items() if value is not None} | options.extra


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that is wrong; versions without a word for it raise ValueError."""
    from vllm import exceptions

    named = getattr(exceptions, "VLLMClientError", ValueError)
    return (ValueError, TypeError, named)


def _choice(choice: Any, text: str) -> Choice:
    if choice.finish_reason == "length":
        return Choice(text, "max_tokens")
    matched = choice.stop_reason
    return Choice(text, "stop_sequence", matched) if isinstance(matched, str) else Choice(text, "end_turn")


def _display_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"chat_template {path!r} can not be read: {error.strerror}. Name a file.") from error
