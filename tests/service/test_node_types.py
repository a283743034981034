"""The types of the Node adapter are those of the service: every key of requests, results and options, and their values.

The expected keys and values come from the models that the service reads and writes; the compiler compares them.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from batchfile.types import Choice, Completion, Failure, TokenLogprob, ToolCall, TopLogprob, Usage
from tests.helpers.lines import Media, NativeResult, encode_result, native, shared
from tests.schema_samples import Samples, is_anything
from tests.service.node_kit import TS, find_node, install, run

pytestmark = pytest.mark.slow

BATCHES = "/v1/messages/batches"
# The model of each object in `params`, and its type. The sources of media are inside the types of their blocks.
REQUEST_TYPES = {
    "DocumentBlock": "DocumentBlockParam",
    "ImageBlock": "ImageBlockParam",
    "JsonSchemaFormat": "JsonSchemaFormat",
    "OutputConfig": "OutputConfig",
    "RedactedThinkingBlock": "RedactedThinkingBlock",
    "RepetitionDetection": "RepetitionDetection",
    "StructuredOutputs": "StructuredOutputs",
    "TextBlock": "TextBlockParam",
    "Thinking": "Thinking",
    "ThinkingBlock": "ThinkingBlockParam",
    "ToolChoice": "ToolChoice",
    "ToolDefinition": "ToolDefinition",
    "ToolResultBlock": "ToolResultBlockParam",
    "ToolUseBlock": "ToolUseBlockParam",
    "Turn": "BatchMessage",
}
SOURCES = {"Base64Source", "ContentSource", "FileSource", "PathSource", "TextSource", "UrlSource"}
# Files are not referred to by id, paths are for local runs, and two types require what the service does not look at.
NOT_SENT = {"FileSource", "PathSource", "RedactedThinkingBlock", "ToolChoice"}
OF_CALLS = {"idempotencyKey", "maxRetries", "signal", "timeoutMs"}  # options of a create that are not in the document

PARAMS = native.Params.model_json_schema(by_alias=True)
HEAD = """import type * as adapter from '@batchfile/adapter';
type KeysOf<T> = T extends unknown ? keyof T : never;
"""
CONFIG = {
    "target": "ES2022",
    "lib": ["ES2022"],
    "types": ["node"],
    "typeRoots": [str(TS / "node_modules" / "@types")],
    "module": "NodeNext",
    "strict": True,
    "exactOptionalPropertyTypes": True,
    "noEmit": True,
    "paths": {"@batchfile/adapter": [str(TS / "llmAdapter.ts")]},
}


@pytest.fixture(scope="module")
def tsc() -> str:
    find_node()
    return str(install(TS) / "tsc")


def check(tsc: str, folder: Path, lines: Iterable[str], code: int = 0) -> str:
    """Compile these lines. Each is a declaration, so the compiler reports all that is wrong."""
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": CONFIG, "files": ["check.ts"]}))
    (folder / "check.ts").write_text(HEAD + "\n".join(lines) + "\n")
    return run([tsc, "-p", "tsconfig.json"], folder, code=code)


def keys(name: str, required: Iterable[str], optional: Iterable[str] = ()) -> str:
    """The type has exactly these keys, and any of `optional`."""
    may = " | ".join(map(repr, sorted(optional))) or "never"
    must = ", ".join(f"{key!r}: true" for key in sorted(required))
    return f"export const keysOf{name}: Record<Exclude<KeysOf<adapter.{name}>, {may}>, true> = {{ {must} }};"


def values(name: str, given: Iterable[Any]) -> list[str]:
    return [
        f"export const {name.partition('<')[0]}{n}: adapter.{name} = {json.dumps(value)};"
        for n, value in enumerate(given)
    ]


def test_requests_have_every_key_that_the_service_serves_and_none_that_it_rejects(tsc: str, tmp_path: Path) -> None:
    definitions = PARAMS["$defs"]
    assert {name for name, one in definitions.items() if "properties" in one} == REQUEST_TYPES.keys() | SOURCES
    lines = []
    for model, name in REQUEST_TYPES.items():
        properties = definitions[model]["properties"]
        typed = {key for key, one in properties.items() if not is_anything(one)}
        lines.append(keys(name, typed, properties.keys() - typed))
    rejected = shared.rules_of(native.Params, shared.UnsupportedKey).keys()
    ignored = shared.without_effect(native.Params)
    served = PARAMS["properties"].keys() - rejected - ignored
    assert shared.rules_of(native.Params, shared.OnlyEndpoints).keys() <= served
    check(tsc, tmp_path, [*lines, keys("BatchParams", served, ignored)])


def test_a_missing_and_an_unknown_key_fail_by_name(tsc: str, tmp_path: Path) -> None:
    message = check(tsc, tmp_path, [keys("JsonSchemaFormat", {"type", "new_key"})], code=1)
    assert "new_key" in message
    assert "schema" in check(tsc, tmp_path, [keys("JsonSchemaFormat", {"type"})], code=1)


def test_requests_may_have_every_value_that_the_service_serves(tsc: str, tmp_path: Path) -> None:
    samples = Samples(PARAMS["$defs"], skipped=NOT_SENT, has_null=False).of(PARAMS)
    assert len(samples) > 30
    texts = {json.dumps(sample) for sample in samples}
    for word in ("between_tools", "xhigh", "tool_result", "document", "structural_tag"):
        assert any(word in text for text in texts)
    check(tsc, tmp_path, values("BatchParams", samples))


def test_the_options_of_a_create_are_those_of_the_service(tsc: str, tmp_path: Path, api: Any) -> None:
    document = api.http.get("/openapi.json").json()

    def options(path: str) -> set[str]:
        create = document["paths"][path]["post"]
        body = create["requestBody"]["content"]["application/json"]["schema"]
        return {one["name"] for one in create["parameters"] if one["in"] == "query"} | body["properties"].keys()

    assert options(BATCHES) == options("/api/batches")
    asked = {name if name != "model_hint" else "modelHint" for name in options(BATCHES) - {"stage", "requests"}}
    check(tsc, tmp_path, [keys("CreateOptions", asked, OF_CALLS)])


def test_statuses_and_results_have_every_key_and_value_that_the_service_sends(
    tsc: str, tmp_path: Path, api: Any
) -> None:
    document = api.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]

    def answers(path: str, method: str = "get") -> Any:
        return document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]

    def of_stage(path: str, method: str = "get") -> list[Any]:
        """The first of the two API formats that share a path."""
        schema = answers(path, method)
        return Samples(schemas, has_null=False).of(schema.get("oneOf", [schema])[0])

    lines = values("BatchCreated", of_stage(BATCHES, "post"))
    lines += values("BatchStatus", of_stage(f"{BATCHES}/{{batch_id}}"))
    result = schemas["StageResult"]["properties"]
    lines += values("ResultBlock", Samples(schemas).of(schemas["StageMessage"]["properties"]["content"]["items"]))
    lines += [keys("BatchResult", result), keys("BatchUsage", schemas["StageUsage"]["properties"])]
    lines += values("NativeStatus", Samples(schemas).of(answers("/api/batches/{batch_id}")))
    check(tsc, tmp_path, lines)


def test_native_results_are_what_the_service_writes(tsc: str, tmp_path: Path) -> None:
    top = TopLogprob(token="a", logprob=-0.5, bytes=(97,))
    token = TokenLogprob(token="b", logprob=-1.0, top_logprobs=(top,))
    first = TokenLogprob(token="c", logprob=None)
    call = ToolCall("call_1", "look_up", {"name": "Ada"})
    full = Choice("yes", "stop_sequence", "###", (call,), "Hm.", logprobs=(first, token), token_ids=(0, 1))
    prompt: Any = [None, {"1": {"logprob": -1.0, "rank": 1, "decoded_token": "a"}}]
    media = [Media(kind="image", source="https://x", digest="0" * 64), Media(kind="document", source="https://y")]
    usage, unknown = Usage(input_tokens=3, output_tokens=2, cached_tokens=1), Usage(unknown=1)
    outcomes = [
        Completion(choices=(full,), usage=usage, prompt_logprobs=prompt, prompt_token_ids=(1, 2)),
        Completion(choices=(full, Choice("", "max_tokens")), usage=unknown),
        *(Completion(choices=(Choice("x", reason),), usage=usage) for reason in ("refusal", "content_filter")),
        Completion(choices=(), usage=usage, kind="embedding", vectors=((0.5,), "AAAA")),
        Completion(choices=(), usage=usage, kind="pooling", vectors=(((0.5,), (1.0,)),)),
        Completion(choices=(), usage=usage, kind="classification", vectors=((0.5,),) * 2, labels=("good", None)),
        Completion(choices=(Choice("x", "end_turn"),), usage=usage, kind="response"),
        *(Failure(type="api_error", message="no", status=status) for status in ("errored", "canceled", "expired")),
        Failure(type="api_error", message="no", http_status=500),
    ]
    written = [json.loads(encode_result("a", outcome, "model", media=media)) for outcome in outcomes]
    written.append(json.loads(encode_result(None, outcomes[-1], "model", line=7)))
    names = {field.name for field in fields(NativeResult)}
    assert {key for line in written for key in line} == names, "a key that no line here has"
    check(tsc, tmp_path, [keys("NativeResult", names), *values("NativeResult", written)])
