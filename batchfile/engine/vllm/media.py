"""Images and recordings for vLLM: which a model takes, how its chat template names them, and their processing."""

import threading
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from batchfile.engine.prompts import MistralPrompts
from batchfile.request_media import Media, MediaKind
from batchfile.types import Message

KINDS: tuple[MediaKind, ...] = ("image", "audio")


def media_kinds(llm: Any) -> frozenset[MediaKind]:
    """What the model takes, and its `limit_mm_per_prompt` does not exclude; nothing with Mistral's own tokenizer."""
    if not llm.llm_engine.vllm_config.model_config.is_multimodal_model or MistralPrompts.fits(llm.get_tokenizer()):
        return frozenset()
    limits = llm.llm_engine.renderer.get_mm_processor().info.allowed_mm_limits
    return frozenset(kind for kind in KINDS if limits.get(kind, 0))


def media_size(media: Media) -> int:
    """Bytes in memory, about: vLLM's processor keeps as much as it got."""
    if media.kind == "image":
        return int(media.decoded.width) * int(media.decoded.height) * 3
    return len(media.decoded.frames)


class MediaPrompts:
    """Prompts with media of one model. Thread-safe."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._renderer = llm.llm_engine.renderer
        self._lock = threading.Lock()
        self._is_named_by_template: dict[str, bool] = {}

    @property
    def chat_template(self) -> str | None:
        """That of the model's processor: older models have it there instead of in the tokenizer."""
        processor = self._renderer.get_mm_processor().info.get_hf_processor()
        template = getattr(processor, "chat_template", None)
        return template if isinstance(template, str) else None

    def placed(self, turns: Sequence[Message], template: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
        """The turns for the template, and what to write above the text of each of them.

        If the template writes the placeholders of media, the turns are unchanged. Otherwise they are texts, and above
        each are the model's own placeholders, each on its own line, as vLLM does it.
        """
        if self._is_named(template):
            return tuple(turns), ()
        counts: dict[str, int] = {}
        above = tuple(self._placeholders(turn, counts) if turn.parts else "" for turn in turns)
        return tuple(replace(turn, parts=()) if turn.parts else turn for turn in turns), above

    def prompt(self, token_ids: list[int], media: Sequence[Media]) -> Any:
        """vLLM's input for a prompt that has a placeholder for each of `media`. Raises: as vLLM does."""
        given: dict[str, list[Any]] = {}
        for one in media:
            given.setdefault(one.kind, []).append(one.decoded if one.kind == "image" else _samples(one.decoded))
        prompt = {"prompt_token_ids": token_ids, "multi_modal_data": given}
        with self._lock:
            # Without the cache that vLLM shares with its engine process: it requires the order of `add_request`.
            [made] = self._renderer.render_cmpl([prompt], skip_mm_cache=True)
        return made

    def _is_named(self, template: str) -> bool:
        from vllm.renderers.hf import resolve_chat_template_content_format

        if template not in self._is_named_by_template:
            model_config = self._llm.llm_engine.vllm_config.model_config
            tokenizer = self._llm.get_tokenizer()
            found = resolve_chat_template_content_format(template, None, "auto", tokenizer, model_config=model_config)
            self._is_named_by_template[template] = found == "openai"
        return self._is_named_by_template[template]

    def _placeholders(self, turn: Message, counts: dict[str, int]) -> str:
        from vllm.model_executor.model_loader import get_model_cls

        model = get_model_cls(self._llm.llm_engine.vllm_config.model_config)
        lines = []
        for part in turn.parts:
            if isinstance(part, Media):
                counts[part.kind] = counts.get(part.kind, 0) + 1
                lines.append(model.get_placeholder_str(part.kind, counts[part.kind]))
        return "\n".join(line for line in lines if line)


def _samples(recording: Any) -> tuple[Any, int]:
    """One channel of numbers from -1 to 1, and their rate."""
    import numpy as np

    width = recording.width
    if width == 3:  # to 32 bits: the low byte is zero
        raw = np.frombuffer(recording.frames, dtype=np.uint8).reshape(-1, 3)
        samples = np.pad(raw, ((0, 0), (1, 0))).copy().view("<i4").reshape(-1) / 2.0**31
    elif width == 1:
        samples = np.frombuffer(recording.frames, dtype=np.uint8) / 128.0 - 1.0
    else:
        samples = np.frombuffer(recording.frames, dtype=f"<i{width}") / 2.0 ** (8 * width - 1)
    channels = samples.reshape(-1, recording.num_channels)
    return channels.mean(axis=1).astype(np.float32), recording.rate
