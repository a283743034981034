"""Keys of turns, blocks, parts and tools that change no answer: docs/service.md names each of them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from batchfile.lines.formats import native
from batchfile.lines.formats.shared import without_effect
from docs.pages.requests import MODELS
from tests.helpers.lines import openai_chat

DOCS = Path(__file__).parents[2] / "docs" / "service.md"


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def below(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """The models of everything in a request."""
    for field in model.model_fields.values():
        for found in _models_in(field.annotation):
            if found not in seen:
                seen.add(found)
                below(found, seen)
    return seen


NESTED = sorted(
    set[type[BaseModel]]().union(*(below(model, set()) for model in MODELS.values())),
    key=lambda model: f"{model.__module__}.{model.__name__}",
)


def named() -> set[str]:
    section = DOCS.read_text().partition("## Keys without an effect\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("model", NESTED, ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_the_documentation_names_each_key_without_an_effect(model: type[BaseModel]) -> None:
    assert without_effect(model) <= named()


def test_parts_items_and_blocks_of_every_format_are_among_the_models() -> None:
    names = {model.__name__ for model in NESTED}
    assert {"Spoken", "Thought", "Reasoning", "InputFilePart", "ImageBlock", "ToolDefinition", "FunctionCall"} <= names


def test_the_keys_that_clients_send_most_are_among_them() -> None:
    keys = {"user", "safety_identifier", "service_tier", "store", "prompt_cache_key", "metadata", "prediction"}
    assert keys <= without_effect(openai_chat.Body)
    assert without_effect(native.Params) >= {"cache_control", "metadata", "service_tier"}
