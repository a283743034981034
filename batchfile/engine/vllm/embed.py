"""vLLM loaded to make embeddings: texts or token ids into vectors."""

import copy
from typing import Any

from batchfile.engine.embedding import check_size, check_task, vector_of
from batchfile.engine.raw_prompt import RawPrompts, prefix_of_ids
from batchfile.engine.tokens import check_inputs
from batchfile.engine.vllm.task import VllmPrepared
from batchfile.errors import SettingsError
from batchfile.types import Completion, Outcome, Request, Usage


class Embedding:
    """Of an LLM with the pooling runner. Raises: SettingsError where its model makes no embeddings."""

    def __init__(self, llm: Any, model: str) -> None:
        if "embed" not in llm.llm_engine.get_supported_tasks():
            raise SettingsError(f"The model {model} makes no embeddings; task = 'embed' needs one that does.")
        config = llm.llm_engine.vllm_config.model_config
        self._max_model_len: int = config.max_model_len
        self._dimensions: int = getattr(config, "embedding_size", None) or config.get_hidden_size()
        self._prompts = RawPrompts(copy.deepcopy(llm.get_tokenizer()))

    def prepare(self, request: Request) -> VllmPrepared:
        from vllm import PoolingParams

        check_task(request, "embed")
        raw = request.raw
        assert raw is not None, "an embedding has inputs"
        check_size(len(raw.inputs), raw.dimensions or self._dimensions)
        prompts = [self._prompts.token_ids(given) for given in raw.inputs]
        check_inputs([len(token_ids) for token_ids in prompts], self._max_model_len)
        return VllmPrepared(
            prefix=prefix_of_ids(prompts[0]),
            cost=sum(map(len, prompts)),
            prompts=prompts,
            params=PoolingParams(task="embed", dimensions=raw.dimensions),
            num_sequences=len(prompts),
            is_base64=raw.is_base64,
        )

    def outcome(self, outputs: list[Any], prepared: VllmPrepared) -> Outcome:
        vectors = tuple(vector_of(output.outputs.data.tolist(), is_base64=prepared.is_base64) for output in outputs)
        usage = Usage(
            input_tokens=sum(map(len, prepared.prompts)),
            cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
        )
        return Completion(choices=(), usage=usage, kind="embedding", vectors=vectors)
