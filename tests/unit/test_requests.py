"""Every key that we read is served, without effect for a reason, or rejected by name; docs/requests.md says which."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from batchfile.engine.http.wire import request_body
from batchfile.errors import InvalidRequest
from batchfile.lines.formats import (
    openai_completions,
    openai_embeddings,
    openai_responses,
)
from batchfile.lines.parse import why_unserved
from batchfile.types import Defaults, Request
from docs.pages.requests import ECHO, MODELS, NOTES, rows_of, with_tables
from tests.helpers.lines import openai_chat, parse_request

PAGE = Path(__file__).parents[2] / "docs" / "requests.md"
HI = [{"role": "user", "content": "hi"}]
LEAST: dict[str, dict[str, Any]] = {
    "params": {"messages": HI},
    openai_chat.URL: {"messages": HI},
    openai_completions.URL: {"prompt": "hi"},
    openai_embeddings.URL: {"input": "hi"},
    openai_responses.URL: {"input": "hi"},
    "/v1/score": {"text_1": "hi", "text_2": ["ho"]},
    "/v1/rerank": {"query": "hi", "documents": ["ho", "ha"]},
    "/v1/classify": {"input": "hi"},
    "/v1/pooling": {"input": "hi"},
}
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object"}
# A value for each served key, and what else it needs.
SAMPLES: dict[str, dict[str, Any]] = {
    "add_generation_prompt": {"add_generation_prompt": False},
    "add_special_tokens": {"add_special_tokens": False},
    "allowed_token_ids": {"allowed_token_ids": [1]},
    "bad_words": {"bad_words": ["x"]},
    "cache_salt": {"cache_salt": "x"},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "continue_final_message": {"continue_final_message": True},
    "dimensions": {"dimensions": 8},
    "documents": {"documents": [{"text": "x"}]},
    "echo": {"echo": True},
    "encoding_format": {"encoding_format": "base64"},
    "frequency_penalty": {"frequency_penalty": 1},
    "guided_choice": {"guided_choice": ["x"]},
    "guided_grammar": {"guided_grammar": "x"},
    "guided_json": {"guided_json": SCHEMA},
    "guided_regex": {"guided_regex": "x"},
    "guided_whitespace_pattern": {"guided_whitespace_pattern": " ", "guided_json": SCHEMA},
    "ignore_eos": {"ignore_eos": True},
    "include": {"include": ["message.output_text.logprobs"]},
    "include_reasoning": {"include_reasoning": False},
    "instruction": {"instruction": "x"},
    "instructions": {"instructions": "x"},
    "max_output_tokens": {"max_output_tokens": 7},
    "query": {"query": "x"},
    "reasoning": {"reasoning": {"effort": "low"}},
    "task": {"task": "embed"},
    "text": {"text": {"format": {"type": "json_object"}}},
    "text_1": {"text_1": "x"},
    "text_2": {"text_2": "x"},
    "top_n": {"top_n": 1},
    "include_stop_str_in_output": {"include_stop_str_in_output": True},
    "input": {"input": "x"},
    "logit_bias": {"logit_bias": {"5": 1}},
    "logprob_token_ids": {"logprob_token_ids": [1], "logprobs": True},
    "logprobs": {"logprobs": True},
    "max_completion_tokens": {"max_completion_tokens": 7},
    "max_tokens": {"max_tokens": 7},
    "messages": {"messages": [{"role": "user", "content": "x"}]},
    "min_p": {"min_p": 0.5},
    "min_tokens": {"min_tokens": 1},
    "model": {"model": "x"},
    "n": {"n": 2},
    "output_config": {"output_config": {"effort": "low"}},
    "output_format": {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    "parallel_tool_calls": {"parallel_tool_calls": False, "tools": [TOOL]},
    "presence_penalty": {"presence_penalty": 1},
    "priority": {"priority": 1},
    "prompt": {"prompt": "x"},
    "prompt_logprobs": {"prompt_logprobs": 0},
    "reasoning_effort": {"reasoning_effort": "low"},
    "repetition_detection": {"repetition_detection": {"max_pattern_size": 2, "min_count": 3}},
    "repetition_penalty": {"repetition_penalty": 2},
    "response_format": {"response_format": {"type": "json_object"}},
    "return_token_ids": {"return_token_ids": True},
    "return_tokens_as_token_ids": {"return_tokens_as_token_ids": True},
    "seed": {"seed": 1},
    "skip_special_tokens": {"skip_special_tokens": False},
    "spaces_between_special_tokens": {"spaces_between_special_tokens": False},
    "stop": {"stop": ["x"]},
    "stop_sequences": {"stop_sequences": ["x"]},
    "stop_token_ids": {"stop_token_ids": [1]},
    "structured_outputs": {"structured_outputs": {"regex": "x"}},
    "system": {"system": "x"},
    "temperature": {"temperature": 0.5},
    "thinking": {"thinking": {"type": "enabled"}},
    "thinking_token_budget": {"thinking_token_budget": 5},
    "tool_choice": {"tool_choice": "required", "tools": [TOOL]},
    "tools": {"tools": [TOOL]},
    "top_k": {"top_k": 3},
    "top_logprobs": {"top_logprobs": 2, "logprobs": True},
    "top_p": {"top_p": 0.5},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 5},
    "truncation_side": {"truncation_side": "left"},
    "use_activation": {"use_activation": False},
    "verbosity": {"verbosity": "low"},
    "vllm_xargs": {"vllm_xargs": {"a": 1}},
    "watermarking": {"watermarking": False},
}
_NO_TEXTS = {"text_1": None, "text_2": None}
# Where a key has another form in one format.
OTHER_FORMS: dict[tuple[str, str], dict[str, Any]] = {
    (openai_responses.URL, "tools"): {"tools": [{"type": "function", "name": "f"}]},
    (openai_responses.URL, "tool_choice"): {"tool_choice": "required", "tools": [{"type": "function", "name": "f"}]},
    (openai_responses.URL, "parallel_tool_calls"): {
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "name": "f"}],
    },
    (openai_responses.URL, "top_logprobs"): {"top_logprobs": 2},
    (openai_responses.URL, "logprob_token_ids"): {"logprob_token_ids": [1], "top_logprobs": 1},
    ("/v1/rerank", "documents"): {"documents": ["x"]},
    **{
        ("/v1/score", key): _NO_TEXTS | {first: "x", second: ["y"]}
        for first, second in (("queries", "items"), ("data_1", "data_2"), ("queries", "documents"))
        for key in (first, second)
    },
    ("params", "tools"): {"tools": [{"name": "f", "input_schema": SCHEMA}]},
    ("params", "tool_choice"): {"tool_choice": {"type": "any"}, "tools": [{"name": "f", "input_schema": SCHEMA}]},
    (openai_completions.URL, "logprobs"): {"logprobs": 0},
    (openai_completions.URL, "logprob_token_ids"): {"logprob_token_ids": [1], "logprobs": 1},
}
# Keys that are not sent as they are, because they have another place in the request to an endpoint.
NOT_SENT = {
    *(
        "include",
        "instructions",
        "max_output_tokens",
        "reasoning",
        "text",
        "text_1",
        "text_2",
        "queries",
        "items",
        "data_1",
    ),
    *("data_2", "query"),
    *("input", "max_tokens", "max_completion_tokens", "messages", "model", "output_config", "output_format"),
    *("stop_sequences", "system", "thinking", "tools", "tool_choice", "parallel_tool_calls"),
}
ROWS = [(place, row) for place, model in MODELS.items() for row in rows_of(model)]
SERVED = [(place, row.key) for place, row in ROWS if row.state in {"served", "http only"}]


def parsed(place: str, parts: dict[str, Any]) -> Request:
    inside = LEAST[place] | parts
    line = {"params": inside} if place == "params" else {"method": "POST", "url": place, "body": inside}
    return parse_request(json.dumps({"custom_id": "a", **line}).encode(), Defaults())


def sample(place: str, key: str) -> dict[str, Any]:
    return OTHER_FORMS.get((place, key)) or SAMPLES.get(key) or {key: {"x": 1}}


def fields_in(module: str, *names: str) -> set[str]:
    """The fields of classes in vLLM's source, with those of their bases in the same file, without importing vLLM."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    path = Path(found.submodule_search_locations[0], module)
    classes = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
    fields = set[str]()
    for name in names:
        inside = classes[name].body
        fields |= {node.target.id for node in inside if isinstance(node, ast.AnnAssign) and hasattr(node.target, "id")}
        bases = {base.id for base in classes[name].bases if isinstance(base, ast.Name)} & classes.keys()
        fields |= fields_in(module, *bases)
    return {field for field in fields if not field.startswith("_")}


_POOLED = ("PoolingBasicRequestMixin", "CompletionRequestMixin", "ChatRequestMixin")
_SCORED = ("PoolingBasicRequestMixin", "ClassifyRequestMixin")
_EMBED = (*_POOLED, "EmbedRequestMixin")
_BASE = "entrypoints/pooling/base/protocol.py"
# The classes of a request are in one file, and their bases in another.
MORE = {
    "/v1/score": (
        "entrypoints/pooling/scoring/protocol.py",
        *(f"Score{one}Request" for one in ("Data", "QueriesDocuments", "QueriesItems", "Text")),
    ),
    "/v1/rerank": ("entrypoints/pooling/scoring/protocol.py", "RerankRequest"),
    "/v1/pooling": ("entrypoints/pooling/pooling/protocol.py", "PoolingCompletionRequest", "IOProcessorRequest"),
}
THEIRS = {
    openai_responses.URL: ("entrypoints/openai/responses/protocol.py", "ResponsesRequest"),
    openai_chat.URL: ("entrypoints/openai/chat_completion/protocol.py", "ChatCompletionRequest"),
    openai_completions.URL: ("entrypoints/openai/completion/protocol.py", "CompletionRequest"),
    openai_embeddings.URL: (_BASE, *_EMBED),
    "/v1/classify": (_BASE, *_POOLED, "ClassifyRequestMixin"),
    "/v1/pooling": (_BASE, *_EMBED, "ClassifyRequestMixin"),
    "/v1/score": (_BASE, *_SCORED),
    "/v1/rerank": (_BASE, *_SCORED),
}


@pytest.mark.parametrize("place", THEIRS)
def test_every_field_of_vllms_requests_is_in_the_table(place: str) -> None:
    """Compared with vLLM 0.32, which is installed for tests, and once by hand with 0.33."""
    theirs = fields_in(*THEIRS[place])
    theirs |= fields_in(*MORE[place]) if place in MORE else set()
    assert len(theirs) > 9
    assert theirs - MODELS[place].model_fields.keys() == set()


def test_the_page_is_current() -> None:
    assert with_tables(PAGE.read_text()) == PAGE.read_text(), "run: python -m docs.pages"


def test_every_note_and_every_reason_is_about_a_key() -> None:
    keys = {row.key for _, row in ROWS}
    assert NOTES.keys() | ECHO <= keys
    assert [row.key for _, row in ROWS if row.state == "no effect" and not row.note] == []


@pytest.mark.parametrize(("place", "key"), SERVED)
def test_a_served_key_changes_the_request_of_the_engine(place: str, key: str) -> None:
    parts = sample(place, key)
    without = {name: value for name, value in parts.items() if name != key}
    plain = parsed(place, {} if place == "/v1/score" else without)
    assert parsed(place, parts) != plain


@pytest.mark.parametrize(("place", "key"), [row for row in SERVED if row[1] not in NOT_SENT])
def test_an_endpoint_is_sent_a_served_key_as_it_is(place: str, key: str) -> None:
    parts = sample(place, key)
    sent = json.loads(request_body(parsed(place, parts), "m", 5))
    if key == "documents" and place == "/v1/score":
        key = "text_2"
        parts = {key: parts["documents"]}
    assert sent[key] == (LEAST[place] | parts)[key]


@pytest.mark.parametrize(("place", "key"), [(place, row.key) for place, row in ROWS if row.state == "no effect"])
def test_a_key_without_effect_changes_nothing(place: str, key: str) -> None:
    assert parsed(place, {key: {"x": 1}}) == parsed(place, {})


@pytest.mark.parametrize(("place", "key"), [(place, row.key) for place, row in ROWS if row.state == "rejected"])
def test_a_rejected_key_is_named(place: str, key: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{'params' if place == 'params' else 'body'}\.{key}: "):
        parsed(place, {key: {"x": 1}})


WRONG = [
    ("params", {"min_tokens": -1}, "params.min_tokens: must be at least 0, got -1"),
    ("params", {"logit_bias": {"07": 1}}, 'params.logit_bias.07: must be a token id, got "07"'),
    ("params", {"thinking": {"type": "disabled", "budget_tokens": 5}}, "params.thinking.budget_tokens: has no effect"),
    (
        openai_chat.URL,
        {"response_format": {"type": "text", "triggers": ["a"]}},
        "body.response_format: the type ",
    ),
    (
        openai_chat.URL,
        {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}, "structures": []}},
        "body.response_format: the type structural_tag needs format alone",
    ),
    (
        openai_responses.URL,
        {"text": {"format": {"type": "text", "schema": SCHEMA}}},
        'body.text.format: has schema, but its type is "text"; make it "json_schema" or remove schema',
    ),
    (openai_responses.URL, {"text": {"format": {"type": "json_schema"}}}, "body.text.format: schema is missing"),
    ("/v1/score", {"text_1": ""}, "body.text_1: must not be empty"),
    (
        openai_chat.URL,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": ""}]}]},
        "body.messages[0].content[0].image_url: must not be empty",
    ),
    (openai_responses.URL, {"input": [{"type": "reasoning"}]}, "body.input: has no message; add one"),
    ("params", {"logit_bias": {"5": 101}}, "params.logit_bias.5: must be at most 100, got 101"),
    ("params", {"top_logprobs": 3}, "params.top_logprobs: needs logprobs; add it"),
    ("params", {"chat_template_kwargs": {"tokenize": 1}}, "params.chat_template_kwargs: must not contain tokenize"),
    (
        "params",
        {"structured_outputs": {"regex": "x", "choice": ["y"]}},
        "params.structured_outputs: has regex and choice; keep one of them",
    ),
    ("params", {"structured_outputs": {"json_object": False}}, "params.structured_outputs: needs one of json, "),
    ("params", {"guided_whitespace_pattern": " "}, "params.guided_whitespace_pattern: needs one of json, json_object"),
    (
        "params",
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "guided_regex": "x"},
        "params.guided_regex: conflicts with output_config; keep one of them",
    ),
    (
        openai_chat.URL,
        {"guided_choice": ["x"], "response_format": {"type": "json_object"}},
        "body.guided_choice: conflicts with response_format; keep one of them",
    ),
    (
        openai_chat.URL,
        {"continue_final_message": True, "add_generation_prompt": True},
        "body.add_generation_prompt: cannot be true together with continue_final_message",
    ),
    (openai_chat.URL, {"guided_json": "no JSON"}, "body.guided_json: must be a JSON schema, as an object or as JSON"),
    (openai_chat.URL, {"reasoning_effort": "huge"}, 'body.reasoning_effort: must be "none", "minimal", "low"'),
    (openai_chat.URL, {"stop_token_ids": ["a"]}, 'body.stop_token_ids[0]: must be a whole number, got "a"'),
]


@pytest.mark.parametrize(("place", "parts", "message"), WRONG, ids=[row[2][:60] for row in WRONG])
def test_a_wrong_value_is_named(place: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(place, parts)
    assert str(refused.value).startswith(message)


GUIDES = [
    ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ("a", "b")),
    ({"guided_choice": ["a", "b"]}, "choice", ("a", "b")),
    ({"guided_regex": "a+"}, "regex", "a+"),
    ({"guided_grammar": "root ::= 'a'"}, "grammar", "root ::= 'a'"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structural_tag", "{}"),
]


@pytest.mark.parametrize(("parts", "name", "value"), GUIDES)
@pytest.mark.parametrize("place", ["params", openai_chat.URL, openai_completions.URL])
def test_a_guide_has_one_form_for_engines(place: str, parts: dict[str, Any], name: str, value: Any) -> None:
    request = parsed(place, parts)
    assert request.has_guide
    assert request.options is not None
    assert getattr(request.options.guide, name) == value


@pytest.mark.parametrize("parts", [{"guided_json": SCHEMA}, {"structured_outputs": {"json": json.dumps(SCHEMA)}}])
def test_a_json_schema_under_vllms_names_is_the_requests_own_schema(parts: dict[str, Any]) -> None:
    for place in ("params", openai_chat.URL):
        request = parsed(place, parts)
        assert request.sampling.json_schema == SCHEMA
        assert "response_format" not in json.loads(request_body(request, "m", 5)), "it is sent as the request has it"


def test_a_response_format_of_text_leaves_the_guide_to_the_options() -> None:
    request = parsed(openai_chat.URL, {"response_format": {"type": "text"}, "structured_outputs": {"json": SCHEMA}})
    assert request.sampling.json_schema == SCHEMA


def test_a_response_format_may_be_combined_with_how_json_is_written() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    asked = {"response_format": form, "structured_outputs": {"disable_any_whitespace": True}}
    request = parsed(openai_chat.URL, asked)
    assert request.sampling.json_schema == SCHEMA
    assert request.options is not None
    assert request.options.guide is not None
    assert request.options.guide.disable_any_whitespace
    sent = json.loads(request_body(request, "m", 5))
    assert {key: sent[key] for key in asked} == asked


def test_a_structural_tag_is_sent_as_it_is_and_given_to_vllm_as_text() -> None:
    tag = {"type": "structural_tag", "format": {"type": "const_string", "value": "x"}}
    request = parsed(openai_chat.URL, {"response_format": tag})
    assert request.options is not None
    assert request.options.guide is not None
    assert json.loads(request.options.guide.structural_tag or "") == tag
    assert json.loads(request_body(request, "m", 5))["response_format"] == tag


def test_every_endpoint_of_vllms_run_batch_is_served_or_refused_by_name() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = Path(found.submodule_search_locations[0], "entrypoints/launchers/run_batch.py").read_text()
    paths = set(re.findall(r"url(?: == |\.endswith\()\"([^\"]+)\"", source))
    assert paths >= {"/v1/embeddings", "/score", "/rerank", "/v1/audio/transcriptions"}
    for path in paths:
        told = why_unserved(path)
        assert told is None or told.startswith(f'"{path}" is not served; '), path
