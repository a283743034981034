"""Keys of turns, blocks and tools that change no answer: docs/service.md names each of them."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from batchfile.lines.formats import native
from batchfile.lines.formats.shared import TextBlock, without_effect
from tests.helpers.lines import openai_chat

DOCS = Path(__file__).parents[2] / "docs" / "service.md"
MODELS: list[type[BaseModel]] = [
    *(openai_chat.ChatMessage, TextBlock),
    *(native.ToolDefinition, native.ToolUseBlock, native.ToolResultBlock, native.ThinkingBlock),
    *(native.RedactedThinkingBlock, openai_chat.FunctionCall),
]


def named() -> set[str]:
    section = DOCS.read_text().partition("## Keys without an effect\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_the_documentation_names_each_key_without_an_effect(model: type[BaseModel]) -> None:
    assert without_effect(model) <= named()


def test_the_keys_that_clients_send_most_are_among_them() -> None:
    keys = {"user", "safety_identifier", "service_tier", "store", "prompt_cache_key", "metadata", "prediction"}
    assert keys <= without_effect(openai_chat.Body)
    assert without_effect(native.Params) >= {"cache_control", "metadata", "service_tier"}
