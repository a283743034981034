"""Whatever the official clients' types let a user write is read: the next key that they add is noticed here."""

from typing import Any, get_args

import anthropic.types as a
import anthropic.types.message_create_params as a_create
import openai.types.chat as o
import openai.types.chat.completion_create_params as o_create
import pytest
from openai.types import completion_create_params as o_completion
from openai.types import embedding_create_params as o_embedding
from openai.types.responses import response_create_params as o_response
from openai.types.shared_params import FunctionDefinition, ResponseFormatJSONSchema, response_format_json_schema
from pydantic import BaseModel

from tests.helpers.lines import (
    native,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    openai_shared,
    shared,
)


def keys(kind: Any) -> set[str]:
    """Of a TypedDict, with its bases; of a union of them, all."""
    if get_args(kind):
        return set[str]().union(*map(keys, get_args(kind)))
    return set(kind.__required_keys__ | kind.__optional_keys__)


PAIRS: list[tuple[Any, type[BaseModel]]] = [
    (a_create.MessageCreateParamsNonStreaming, native.Params),
    (a.MessageParam, native.Turn),
    (a.TextBlockParam, shared.TextBlock),
    (a.ToolUseBlockParam, native.ToolUseBlock),
    (a.ToolResultBlockParam, native.ToolResultBlock),
    (a.ThinkingBlockParam, native.ThinkingBlock),
    (a.RedactedThinkingBlockParam, native.RedactedThinkingBlock),
    (a.ToolParam, native.ToolDefinition),
    (a.ToolChoiceParam, native.ToolChoice),
    (a.ThinkingConfigParam, native.Thinking),
    (a.OutputConfigParam, native.OutputConfig),
    (a.JSONOutputFormatParam, native.JsonSchemaFormat),
    (o_create.CompletionCreateParamsNonStreaming, openai_chat.Body),
    (o.ChatCompletionMessageParam, openai_chat.ChatMessage),
    (o.ChatCompletionContentPartTextParam, shared.TextBlock),
    (o.ChatCompletionMessageFunctionToolCallParam, openai_chat.FunctionCall),
    (o.ChatCompletionFunctionToolParam, openai_chat.FunctionTool),
    (o.ChatCompletionNamedToolChoiceParam, openai_chat.FunctionChoice),
    (FunctionDefinition, openai_chat.Function),
    (ResponseFormatJSONSchema, openai_shared.ResponseFormat),
    (response_format_json_schema.JSONSchema, openai_shared.JsonSchema),
    (o_completion.CompletionCreateParamsNonStreaming, openai_completions.Body),
    (o_embedding.EmbeddingCreateParams, openai_embeddings.Body),
    (o_response.ResponseCreateParamsNonStreaming, openai_responses.Body),
]


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[f"{ours.__module__}.{ours.__name__}" for _, ours in PAIRS])
def test_every_key_of_the_clients_types_is_known(theirs: Any, ours: type[BaseModel]) -> None:
    known = {field.alias or name for name, field in ours.model_fields.items()}
    assert keys(theirs) - known == set()
