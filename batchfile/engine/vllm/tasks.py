"""The tasks of vLLM, and text among them: converts requests to prompts, and outputs to outcomes."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from batchfile.endpoints import SERVED
from batchfile.engine.base import Prepared, SchemaUnchecked
from batchfile.engine.fit import (
    check_options,
    check_served,
    fitting_max_tokens,
    truncated,
)
from batchfile.engine.prompts import RawPrompts, prefix_of_ids, prompts_of
from batchfile.engine.vllm.adapters import Adapter, Adapters
from batchfile.engine.vllm.guides import Guides
from batchfile.engine.vllm.media import MediaPrompts, media_kinds, media_size
from batchfile.engine.vllm.options import (
    check_priority,
    check_prompt_logprobs,
    guide_of,
    sampling_arguments,
    with_details,
)
from batchfile.engine.vllm.parsers import Parsers, Reading
from batchfile.engine.vllm.preflight import why_unavailable
from batchfile.errors import EngineDead, InvalidRequest, SettingsError
from batchfile.request_options import Options
from batchfile.types import Choice, Completion, Failure, Outcome, Raw, Request, ResultKind, Task, Usage

NO_OPTIONS = Options(sent={})


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """The options of the LLM; None leaves the choice to vLLM.

    `model`: a folder or a hub id. `dtype`: "auto" means the model's own, or float32 on a CPU without instructions for
    that. `enforce_eager`: None means eager on a CPU, where compiling takes longer than it saves in a small batch.
    `chat_template`: a file to use instead of the model's own.
    `parse_control_tokens`: those in texts keep their meaning, as in the model's own template.
    `tool_parser`, `reasoning_parser`: vLLM's names; None: detected by the chat template, and off.
    `task`: what the model is loaded for; with "embed" or "classify" it makes vectors, scores or classes, not text.
    `lora`: the names of LoRA adapters, and their folders or repositories. `checks_model`: requests for another model
    than this one or an adapter are rejected.
    `stall_s`: the engine counts as dead after this time without progress while requests are in flight.
    `defaults`, `extra`: further arguments of vLLM's engine; the first are chosen for it, and `extra` overrides them.
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
    parse_control_tokens: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    lora: Mapping[str, str] = field(default_factory=dict)
    checks_model: bool = False
    task: Task = "generate"
    stall_s: float = 600.0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def display_name(self) -> str:
        return self.served_name or (Path(self.model).name if Path(self.model).is_dir() else self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPrepared(Prepared):
    """`prompts`: token ids; more than one only without text. `num_sequences`: the number of slots it takes. `params`:
    vLLM's; without text a list of them, one for each prompt.
    `with_media`: the prompt with its images and recordings, as vLLM's processor made it.

    `begun`: the text that the answer is to include, because the request has `echo`; `drops_answer`: that is all that
    the request wants, with max_tokens 0. `raw`: of a request without text.
    """

    prompts: list[list[int]]
    with_media: Any = None
    params: Any
    num_sequences: int
    adapter: Adapter | None = None
    kind: ResultKind
    options: Options | None
    reading: Reading | None = None
    begun: str = ""
    raw: Raw | None = None
    drops_answer: bool = False

    @property
    def prompt_fields(self) -> dict[str, Any]:
        """What vLLM gets with the token ids of each prompt."""
        salt = None if self.options is None else self.options.cache_salt
        return {} if salt is None else {"cache_salt": salt}

    @property
    def priority(self) -> int:
        return 0 if self.options is None else self.options.priority or 0


class Work(Protocol):
    """What an engine does for its task. Thread-safe."""

    def prepare(self, request: Request) -> VllmPrepared:
        """Raises: InvalidRequest if it can never be served; SchemaUnchecked."""
        ...

    def outcome(self, outputs: list[Any], prepared: VllmPrepared) -> Outcome:
        """`outputs`: vLLM's, one for each prompt, in their order."""
        ...


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions that vLLM raises for an invalid request; some versions raise only ValueError."""
    from vllm import exceptions

    named = getattr(exceptions, "VLLMClientError", ValueError)
    return (ValueError, TypeError, named)


# What a decoder writes for invalid UTF-8: an answer that was cut inside a character, or invalid output.
BROKEN = "\N{REPLACEMENT CHARACTER}"


class OneDecode:
    """Decodes the text of an answer in one call. Use `of` to make one."""

    def __init__(self, backend: Any, new_stream: Callable[..., Any]) -> None:
        self._backend = backend
        self._new_stream = new_stream

    @classmethod
    def of(cls, tokenizer: Any) -> "OneDecode | None":
        """None if text depends on what came before it: for all but fast tokenizers with a byte-level decoder."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or type(backend.decoder).__name__ != "ByteLevel":
            return None
        from tokenizers.decoders import DecodeStream

        return cls(backend, DecodeStream)

    def text(self, token_ids: list[int], prompt_ids: list[int]) -> str:
        """The same text as from vLLM's detokenizer, without special tokens."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=True)
        return self._stepwise(token_ids, prompt_ids) if BROKEN in text else text

    def _stepwise(self, token_ids: list[int], prompt_ids: list[int]) -> str:
        """Decodes like vLLM: holds back the bytes of incomplete characters, and drops those at the end."""
        stream = self._new_stream(ids=prompt_ids, skip_special_tokens=True)
        return "".join(stream.step(self._backend, token) or "" for token in token_ids)


class Generating:
    """Generates text with an LLM. `guides`: checks its guides. Raises: SettingsError."""

    def __init__(self, llm: Any, options: VllmOptions, guides: Guides, adapters: Adapters) -> None:
        config = llm.llm_engine.vllm_config.model_config
        self._model = options.display_name
        self._max_model_len: int = config.max_model_len
        self._guides = guides
        self._adapters = adapters
        self._defaults: dict[str, Any] = config.get_diff_sampling_param()
        tokenizer = copy.deepcopy(llm.get_tokenizer())
        self._media = MediaPrompts(llm) if media_kinds(llm) else None
        if self._media is not None and not tokenizer.chat_template:
            tokenizer.chat_template = self._media.chat_template
        self._prompts = prompts_of(
            tokenizer,
            options.model,
            chat_template=None if options.chat_template is None else read_template(options.chat_template),
            parses_control_tokens=options.parse_control_tokens,
        )
        self._raw_prompts = RawPrompts(tokenizer)
        self._truncation_side: str = tokenizer.truncation_side
        self._policy: str = llm.llm_engine.vllm_config.scheduler_config.policy
        self._parsers = Parsers(
            tokenizer=llm.get_tokenizer(),
            model_config=config,
            prompts=self._prompts,
            tool_parser=options.tool_parser,
            reasoning_parser=options.reasoning_parser,
        )
        self._decode = OneDecode.of(tokenizer)

    def prepare(self, request: Request, owner: str | None = None) -> VllmPrepared:
        """`owner`: whose time it takes to compile a schema. Raises: SchemaUnchecked if a schema is not compiled and no
        owner
        is given."""
        check_served(request, SERVED["generate"], self._model)
        check_options(request)
        check_priority(request, self._policy)
        check_prompt_logprobs(request, has_adapters=bool(self._adapters))
        adapter = self._adapters.of(request.model)
        options = request.options or NO_OPTIONS
        if request.raw is not None:
            adds = options.add_special_tokens is not False
            token_ids = self._raw_prompts.token_ids(request.raw.inputs[0], adds_special_tokens=adds)
            prefix, reading = prefix_of_ids(token_ids), None
        else:
            reading = self._parsers.reading(request)
            turns, above = request.messages, tuple[str, ...]()
            if self._media is not None and request.has_media:
                turns, above = self._media.placed(turns, self._prompts.template)
            arguments, adds = self._parsers.template_arguments(request), options.add_special_tokens is True
            prompt = self._prompts.prompt(turns, request.tools, arguments, adds_special_tokens=adds, above=above)
            token_ids, prefix = prompt.token_ids, prompt.prefix
        with_media = None
        if self._media is not None and request.has_media:
            if options.truncate_prompt_tokens is not None:
                raise InvalidRequest("truncate_prompt_tokens: a prompt with media is not truncated; remove it")
            with_media = self._with_media(self._media, request, token_ids)
            token_ids = list(with_media["prompt_token_ids"])
        token_ids = truncated(request, token_ids, self._max_model_len, self._truncation_side)
        max_tokens = fitting_max_tokens(request.sampling, len(token_ids), self._max_model_len)
        return VllmPrepared(
            cost=max_tokens,
            prompts=[token_ids],
            with_media=with_media,
            media_bytes=sum(media_size(one) for one in request.media) if request.has_media else 0,
            params=self._params(request, max_tokens or 1, None if reading is None else reading.asked, owner),
            num_sequences=request.sampling.num_choices,
            **answered_by(adapter, prefix),
            kind=request.result_kind,
            options=request.options,
            reading=reading,
            begun=self._begun(request) if options.echo else "",
            drops_answer=max_tokens == 0,
        )

    def _with_media(self, media: MediaPrompts, request: Request, token_ids: list[int]) -> Any:
        try:
            return media.prompt(token_ids, request.media)
        except Exception as error:  # of any kind: each model has its own processor
            raise InvalidRequest(f"The model cannot read these media: {str(error) or type(error).__name__}") from error

    def outcome(self, outputs: list[Any], prepared: VllmPrepared) -> Outcome:
        [output], [prompt], options = outputs, prepared.prompts, prepared.options
        if any(choice.finish_reason in ("error", "abort", None) for choice in output.outputs):
            return Failure(type="model_error", message="vLLM gave up on this request. Run it again.")
        choices = tuple(
            _choice(choice, choice.text if prepared.params.detokenize else self._text(choice, prompt))
            for choice in output.outputs
        )
        if prepared.reading is not None:
            choices = tuple(
                self._parsers.read(prepared.reading, choice, list(given.token_ids), index)
                for index, (choice, given) in enumerate(zip(choices, output.outputs, strict=True))
            )
        if prepared.begun and prepared.drops_answer:
            choices = tuple(replace(choice, text=prepared.begun) for choice in choices)
        elif prepared.begun:
            choices = tuple(replace(choice, text=prepared.begun + choice.text) for choice in choices)
        usage = Usage(
            input_tokens=len(prompt),
            output_tokens=sum(len(choice.token_ids) for choice in output.outputs),
            cached_tokens=output.num_cached_tokens or 0,
        )
        completion = Completion(choices=choices, usage=usage, kind=prepared.kind)
        if options is None:
            return completion
        return with_details(completion, output, prompt, options, self._token_text, drops_answer=prepared.drops_answer)

    def _token_text(self, token_id: int) -> str:
        return self._raw_prompts.text((token_id,))

    def _begun(self, request: Request) -> str:
        """The text that `echo` puts before an answer, as vLLM's API does."""
        if request.raw is not None:
            return self._raw_prompts.text(request.raw.inputs[0])
        return request.messages[-1].content if request.messages[-1].role == "assistant" else ""

    def _text(self, choice: Any, prompt_ids: list[int]) -> str:
        assert self._decode is not None
        token_ids = list(choice.token_ids)
        # Without stop strings, "stop" means a stop token, which is not text.
        return self._decode.text(token_ids[:-1] if choice.finish_reason == "stop" else token_ids, prompt_ids)

    def _params(self, request: Request, max_tokens: int, read: Any, owner: str | None) -> Any:
        """vLLM's parameters. `read`: the requirements of the parser for the answer, if there is one.

        Raises: InvalidRequest if vLLM does not accept them; SchemaUnchecked.
        """
        from vllm.sampling_params import RequestOutputKind

        sampling, options = request.sampling, request.options
        asked = {
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": sampling.repetition_penalty,
        }
        # The model's defaults (its generation_config.json) apply to what the request does not set.
        given = {name: self._defaults.get(name) if value is None else value for name, value in asked.items()}
        try:
            guide = guide_of(request)
            if read is not None and read.structured_outputs is not None:
                guide = read.structured_outputs
            checked = self._guides.checked(guide, owner)
            if checked is None:
                raise SchemaUnchecked(partial(self.prepare, request))
            params = checked.kind(
                **{name: value for name, value in given.items() if value is not None},
                n=sampling.num_choices,
                temperature=sampling.temperature,
                max_tokens=max_tokens,
                stop=list(sampling.stop),
                seed=sampling.seed,
                ignore_eos=sampling.ignore_eos,
                structured_outputs=checked.guide,
                output_kind=RequestOutputKind.FINAL_ONLY,
                # Text is decoded once, at the end, if the result is the same; stop strings need it during generation.
                detokenize=bool(sampling.stop) or self._decode is None or read is not None or options is not None,
                **({} if options is None else sampling_arguments(options, is_raw=request.raw is not None)),
                **({} if read is None or read.skip_special_tokens else {"skip_special_tokens": False}),
            )
        except refusals() as error:
            raise InvalidRequest(str(error)) from error
        # Only this request uses these parameters, so vLLM does not have to copy them.
        params.skip_clone = True
        return params


def answered_by(adapter: Adapter | None, prefix: int) -> dict[str, Any]:
    """The fields of VllmPrepared for the adapter: prefixes are cached for each of them separately."""
    if adapter is None:
        return {"prefix": prefix}
    return {"prefix": prefix + adapter.number, "model": adapter.name, "adapter": adapter}


def _choice(choice: Any, text: str) -> Choice:
    if choice.finish_reason == "length":
        return Choice(text, "max_tokens")
    matched = choice.stop_reason
    return Choice(text, "stop_sequence", matched) if isinstance(matched, str) else Choice(text, "end_turn")


def read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"chat_template {path!r} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        if why := why_unavailable(error, path):
            raise EngineDead(f"chat_template {path!r} is unavailable now ({why})") from error
        raise SettingsError(f"chat_template {path!r} cannot be read: {error.strerror}. Name a file.") from error
