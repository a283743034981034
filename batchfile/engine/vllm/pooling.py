"""The pooling tasks of vLLM: vectors, scores of pairs, and classes, as vLLM's own server makes them."""

import copy
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from batchfile.engine.control_tokens import ControlTokens
from batchfile.engine.fit import (
    check_inputs,
    check_options,
    check_served,
    check_size,
    compared,
    pairs_of,
    ranked,
    truncated,
    vector_of,
)
from batchfile.engine.prompts import RawPrompts, prefix_of_ids
from batchfile.engine.vllm.adapters import Adapters
from batchfile.engine.vllm.options import check_priority
from batchfile.engine.vllm.tasks import NO_OPTIONS, VllmOptions, VllmPrepared, answered_by, read_template
from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Completion, Input, Kind, Outcome, Raw, Request, Task, Usage, Vector

# vLLM's name of what a pooler makes of an input, and what it is good for. A classifier with one class scores pairs too.
_KINDS: dict[str, tuple[Kind, ...]] = {
    "embed": ("embedding", "score", "rerank", "pooling"),
    "token_embed": ("score", "rerank", "pooling"),
    "classify": ("classification", "pooling"),
    "token_classify": ("pooling",),
}
_OF_ONE_CLASS: tuple[Kind, ...] = ("classification", "score", "rerank", "pooling")
_POOLERS: dict[Task, tuple[str, ...]] = {"embed": ("embed", "token_embed"), "classify": ("classify", "token_classify")}
_NAMES: dict[Task, str] = {"embed": "embeddings", "classify": "classes or scores"}
PLURAL = frozenset({"token_embed", "token_classify"})  # a vector for each token


class _Encoded(NamedTuple):
    """`second`: where the second text of a pair begins; None if the model is not told."""

    token_ids: list[int]
    second: int | None = None


class Pooling:
    """Vectors, scores and classes. Raises: SettingsError if the model is not for the task."""

    def __init__(self, llm: Any, options: VllmOptions, adapters: Adapters) -> None:
        config = llm.llm_engine.vllm_config.model_config
        self._pooler = _pooler_of(config, llm.llm_engine.get_supported_tasks())
        if self._pooler not in _POOLERS[options.task]:
            raise SettingsError(
                f"The model {options.model} does not make {_NAMES[options.task]}; task = '{options.task}' needs one "
                "that does."
            )
        self._model = options.display_name
        self._kinds = _KINDS[self._pooler]
        self._labels: Mapping[int, str] = getattr(config.hf_config, "id2label", None) or {}
        self._num_classes: int = getattr(config.hf_config, "num_labels", 0)
        if self._pooler == "classify" and self._num_classes == 1:
            self._kinds = _OF_ONE_CLASS
        self._max_model_len: int = config.max_model_len
        self._size: int = getattr(config, "embedding_size", None) or config.get_hidden_size()
        self._adapters = adapters
        tokenizer = llm.get_tokenizer()
        self._prompts = RawPrompts(copy.deepcopy(tokenizer))
        self._texts = Texts(copy.deepcopy(tokenizer), config, options, self._max_model_len)
        self._side: str = tokenizer.truncation_side
        self._policy: str = llm.llm_engine.vllm_config.scheduler_config.policy

    @property
    def _pairs(self) -> bool:
        """A cross-encoder reads both texts of a pair together."""
        return self._pooler == "classify"

    def prepare(self, request: Request) -> VllmPrepared:
        check_served(request, self._kinds, self._model)
        check_options(request)
        check_priority(request, self._policy)
        self._check_pooler(request)
        adapter = self._adapters.of(request.model)
        options, raw = request.options or NO_OPTIONS, request.raw
        assert raw is not None, "a request without text has inputs"
        self._check_template(request)
        is_of_pairs = self._pairs and raw.kind in ("score", "rerank")
        encoded = self._of_pairs(request, raw) if is_of_pairs else [self._of_one(request, one) for one in raw.inputs]
        prompts = [one.token_ids for one in encoded]
        check_inputs([len(token_ids) for token_ids in prompts], self._max_model_len)
        num_vectors = sum(map(len, prompts)) if self._pooler in PLURAL else len(prompts)
        check_size(num_vectors, raw.dimensions or (self._num_classes if "classify" in self._pooler else self._size))
        return VllmPrepared(
            cost=sum(map(len, prompts)),
            prompts=prompts,
            params=[_params(self._pooler, options.use_activation, raw.dimensions, one.second) for one in encoded],
            num_sequences=len(prompts),
            **answered_by(adapter, prefix_of_ids(prompts[0])),
            kind=request.kind,
            options=request.options,
            raw=raw,
        )

    def outcome(self, outputs: list[Any], prepared: VllmPrepared) -> Outcome:
        raw = prepared.raw
        assert raw is not None, "a request without text has inputs"
        found = [output.outputs.data for output in outputs]
        usage = Usage(
            input_tokens=sum(map(len, prepared.prompts)),
            cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
        )
        labels = tuple[str | None, ...]()
        if raw.kind == "classification":
            labels = tuple(self._labels.get(int(one.argmax())) for one in found)
        return Completion(choices=(), usage=usage, kind=raw.kind, vectors=self._vectors(raw, found), labels=labels)

    def _vectors(self, raw: Raw, found: Sequence[Any]) -> tuple[Vector, ...]:
        if raw.kind in ("score", "rerank"):
            if self._pairs:
                return ranked(raw, [float(one.squeeze()) for one in found])
            if self._pooler == "token_embed":
                return ranked(raw, _late_interaction(raw, found))
            return compared(raw, [one.tolist() for one in found])
        if raw.is_base64 and self._pooler in PLURAL:
            return tuple(vector_of(one.flatten().tolist(), is_base64=True) for one in found)
        return tuple(_tuple(one.tolist(), is_base64=raw.is_base64) for one in found)

    def _check_pooler(self, request: Request) -> None:
        wanted = None if request.options is None else request.options.task
        if wanted not in (None, self._pooler):
            raise InvalidRequest(
                f"task: the model {self._model} is loaded for {self._pooler}, not for {wanted}; remove it, or set "
                f"engine_args = {{pooler_config = {{task = '{wanted}'}}}} for the pool, if the model can do that."
            )

    def _check_template(self, request: Request) -> None:
        options = request.options
        if options is not None and options.chat_template_kwargs and not (self._pairs and self._texts.has_template):
            key = "instruction" if "instruction" in options.sent else "chat_template_kwargs"
            raise InvalidRequest(
                f"{key}: this pool renders no template around a pair; remove it, or use a pool of a cross-encoder "
                "whose chat_template has it."
            )

    def _of_one(self, request: Request, given: Input) -> _Encoded:
        options = request.options or NO_OPTIONS
        adds = options.add_special_tokens is not False
        if isinstance(given, str) and options.truncate_prompt_tokens is not None and options.truncation_side is None:
            return _Encoded(self._texts.encode(given, None, adds=adds, keep=options.truncate_prompt_tokens).token_ids)
        token_ids = self._prompts.token_ids(given, adds_special_tokens=adds)
        return _Encoded(truncated(request, token_ids, self._max_model_len, self._side))

    def _of_pairs(self, request: Request, raw: Raw) -> list[_Encoded]:
        options = request.options or NO_OPTIONS
        keep = options.truncate_prompt_tokens if options.truncation_side is None else None
        adds = options.add_special_tokens is not False
        found = []
        for one, other in pairs_of(raw, raw.inputs):
            assert isinstance(one, str), "scores are of texts"
            assert isinstance(other, str), "scores are of texts"
            encoded = self._texts.pair(one, other, options.chat_template_kwargs or {}, adds=adds, keep=keep)
            token_ids, start = encoded
            cut = truncated(request, token_ids, self._max_model_len, self._side)
            if start is not None and cut != token_ids:
                is_left = (options.truncation_side or self._side) == "left"
                start = max(0, start - (len(token_ids) - len(cut))) if is_left else min(start, len(cut))
            found.append(_Encoded(cut, start))
        return found


class Texts:
    """Encodes texts as a Hugging Face tokenizer does with all its options. Thread-safe."""

    def __init__(self, tokenizer: Any, config: Any, options: VllmOptions, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._lock = threading.Lock()
        self._template = None if options.chat_template is None else read_template(options.chat_template)
        self._separates: bool = getattr(config, "use_sep_token", True)
        self._has_types = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        self._control_tokens = None
        if self._template is not None and not options.parse_control_tokens:
            known = copy.deepcopy(tokenizer)
            known.chat_template = self._template
            self._control_tokens = ControlTokens(known, getattr(known, "backend_tokenizer", None))

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def pair(self, one: str, other: str, arguments: Mapping[str, Any], *, adds: bool, keep: int | None) -> _Encoded:
        """The two texts as one prompt: in the pool's template, or next to each other.

        As in conversations, control tokens in texts are text in a template. Raises: InvalidRequest.
        """
        if self._template is None:
            return (
                self.encode(one, other, adds=adds, keep=keep)
                if self._separates
                else self.encode(one + other, None, adds=adds, keep=keep)
            )
        turns = [{"role": "query", "content": one}, {"role": "document", "content": other}]
        try:
            if self._control_tokens is None:
                return self.encode(self._render(turns, arguments), None, adds=adds, keep=keep)
            text, has_data = self._control_tokens.rendered(turns, arguments, self._render)
        except InvalidRequest:
            raise
        except Exception as error:  # a template is a program and may raise anything
            raise InvalidRequest(f"The pool's chat template rejected this pair: {error}") from error
        if has_data:
            return _Encoded(self._control_tokens.encode(text, adds_special_tokens=adds))
        return self.encode(text, None, adds=adds, keep=keep)

    def _render(self, turns: list[dict[str, Any]], arguments: Mapping[str, Any]) -> str:
        with self._lock:
            return str(
                self._tokenizer.apply_chat_template(turns, chat_template=self._template, tokenize=False, **arguments)
            )

    def encode(self, one: str, other: str | None, *, adds: bool, keep: int | None) -> _Encoded:
        """`keep`: at most so many tokens, special ones included; -1: as many as fit. Raises: InvalidRequest if the
        special ones alone are more, because then the tokenizer would keep the whole text.
        """
        bound = self._max_model_len if keep == -1 else keep
        with self._lock:
            found = self._tokenizer(
                text=one,
                text_pair=other,
                add_special_tokens=adds,
                truncation=bound is not None,
                max_length=bound,
                return_token_type_ids=self._has_types,
            )
        token_ids: list[int] = list(found["input_ids"])
        if keep is not None and bound is not None and len(token_ids) > bound:
            raise InvalidRequest(f"truncate_prompt_tokens: the control tokens alone are more than {keep}; raise it")
        types = found["token_type_ids"] if self._has_types and other is not None else None
        return _Encoded(token_ids, None if types is None else types.index(1) if 1 in types else len(types))


@lru_cache(maxsize=1024)
def _params(pooler: str, use_activation: bool | None, dimensions: int | None, second: int | None) -> Any:
    from vllm import PoolingParams

    types = None if second is None else {"compressed_token_type_ids": second}
    return PoolingParams(task=pooler, use_activation=use_activation, dimensions=dimensions, extra_kwargs=types)


def _pooler_of(config: Any, supported: Sequence[str]) -> str:
    """The task of the model's pooler, as vLLM's server chooses it: the operator's choice, or the first of these."""
    chosen = getattr(config.pooler_config, "task", None)
    if chosen is not None:
        return str(chosen)
    if "token_classify" in supported and any("ForTokenClassification" in name for name in config.architectures):
        return "token_classify"
    return next((name for name in ("embed", "classify", "token_embed", "token_classify") if name in supported), "")


def _late_interaction(raw: Raw, found: Sequence[Any]) -> list[float]:
    """For each token of a query, its nearest token of the document; the sum of their products."""
    return [float((one.float() @ other.float().T).amax(dim=-1).sum()) for one, other in pairs_of(raw, found)]


def _tuple(given: list[Any], *, is_base64: bool) -> Vector:
    if given and isinstance(given[0], list):
        return tuple(tuple(one) for one in given)
    return vector_of(given, is_base64=is_base64)
