"""vLLM loaded to generate: conversations and raw prompts into text."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

from batchfile.engine.base import SchemaUnchecked
from batchfile.engine.chat_template import ChatPrompts
from batchfile.engine.embedding import check_task
from batchfile.engine.raw_prompt import RawPrompts, prefix_of_ids
from batchfile.engine.tokens import fitting_max_tokens
from batchfile.engine.vllm.detokenize import OneDecode
from batchfile.engine.vllm.guides import Guides
from batchfile.engine.vllm.load_errors import why_unavailable
from batchfile.engine.vllm.parsers import Parsers
from batchfile.engine.vllm.task import VllmPrepared, refusals
from batchfile.errors import EngineDead, InvalidRequest, SettingsError
from batchfile.types import Choice, Completion, Failure, Outcome, Request, Usage


class Generating:
    """Of an LLM. `guides`: what checks its guides. `chat_template`: a file.

    `tool_parser`, `reasoning_parser`: vLLM's names. Raises: SettingsError.
    """

    def __init__(
        self,
        llm: Any,
        model: str,
        *,
        guides: Guides,
        chat_template: str | None,
        tool_parser: str | None,
        reasoning_parser: str | None,
    ) -> None:
        config = llm.llm_engine.vllm_config.model_config
        self._max_model_len: int = config.max_model_len
        self._guides = guides
        self._defaults: dict[str, Any] = config.get_diff_sampling_param()
        tokenizer = copy.deepcopy(llm.get_tokenizer())
        if chat_template is not None:
            tokenizer.chat_template = _read_template(chat_template)
        self._prompts = ChatPrompts(tokenizer, model)
        self._raw_prompts = RawPrompts(tokenizer)
        self._parsers = Parsers(
            tokenizer=llm.get_tokenizer(),
            model_config=config,
            prompts=self._prompts,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
        )
        self._decode = OneDecode.of(tokenizer)

    def prepare(self, request: Request, owner: str | None = None) -> VllmPrepared:
        """`owner`: whose time a schema that has to be compiled takes. Raises: SchemaUnchecked where it is None."""
        check_task(request, "generate")
        if request.raw is not None:
            token_ids = self._raw_prompts.token_ids(request.raw.inputs[0])
            prefix, reading = prefix_of_ids(token_ids), None
        else:
            reading = self._parsers.reading(request)
            prompt = self._prompts.prompt(request.messages, request.tools, self._parsers.template_arguments(request))
            token_ids, prefix = prompt.token_ids, prompt.prefix
        max_tokens = fitting_max_tokens(request.sampling, len(token_ids), self._max_model_len)
        return VllmPrepared(
            prefix=prefix,
            cost=max_tokens,
            prompts=[token_ids],
            params=self._params(request, max_tokens, None if reading is None else reading.asked, owner),
            num_sequences=request.sampling.num_choices,
            reading=reading,
            is_raw=request.raw is not None,
        )

    def outcome(self, outputs: list[Any], prepared: VllmPrepared) -> Outcome:
        [output], [prompt] = outputs, prepared.prompts
        if any(choice.finish_reason in ("error", "abort", None) for choice in output.outputs):
            return Failure(type="model_error", message="vLLM gave this request up. Run it again.")
        choices = tuple(
            _choice(choice, choice.text if prepared.params.detokenize else self._text(choice, prompt))
            for choice in output.outputs
        )
        if prepared.reading is not None:
            choices = tuple(
                self._parsers.read(prepared.reading, choice, list(given.token_ids), index)
                for index, (choice, given) in enumerate(zip(choices, output.outputs, strict=True))
            )
        usage = Usage(
            input_tokens=len(prompt),
            output_tokens=sum(len(choice.token_ids) for choice in output.outputs),
            cached_tokens=output.num_cached_tokens or 0,
        )
        return Completion(choices=choices, usage=usage, kind="completion" if prepared.is_raw else "chat")

    def _text(self, choice: Any, prompt_ids: list[int]) -> str:
        assert self._decode is not None
        token_ids = list(choice.token_ids)
        # Without stop strings "stop" means a stop token, which is no text.
        return self._decode.text(token_ids[:-1] if choice.finish_reason == "stop" else token_ids, prompt_ids)

    def _params(self, request: Request, max_tokens: int, read: Any, owner: str | None) -> Any:
        """vLLM's parameters. `read`: what the parser asks for that reads the answer, if any.

        Raises: InvalidRequest if vLLM does not accept them; SchemaUnchecked.
        """
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = request.sampling
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
                # Text is made once, at the end, where that gives the same text; stop strings need it as it comes.
                detokenize=bool(sampling.stop) or self._decode is None or read is not None,
                skip_special_tokens=read is None or read.skip_special_tokens,
            )
        except refusals() as error:
            raise InvalidRequest(str(error)) from error
        # These parameters are this request's alone, so vLLM need not copy them.
        params.skip_clone = True
        return params


def _choice(choice: Any, text: str) -> Choice:
    if choice.finish_reason == "length":
        return Choice(text, "max_tokens")
    matched = choice.stop_reason
    return Choice(text, "stop_sequence", matched) if isinstance(matched, str) else Choice(text, "end_turn")


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        if why := why_unavailable(error, path):
            raise EngineDead(f"chat_template {path!r} is unavailable now ({why})") from error
        raise SettingsError(f"chat_template {path!r} cannot be read: {error.strerror}. Name a file.") from error
