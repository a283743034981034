"""Everything that an `anthropic` client of any major version does with batches, against a real service.

A program of its own, because one process can import one version. `anthropic_walk.py NAME...` runs the named walks;
WALK_URL, WALK_KEY (a tenant of its own) and WALK_PAGES_KEY (a tenant with NUM_PAGED batches, and no room for more)
say where. Every body is checked strictly with the version's own models.
"""

import asyncio
import json
import os
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import anthropic
from anthropic.types import ModelInfo
from anthropic.types.beta.messages import BetaMessageBatch, BetaMessageBatchIndividualResponse
from anthropic.types.messages import DeletedMessageBatch, MessageBatch, MessageBatchIndividualResponse

URL, KEY, PAGES_KEY = (os.environ.get(name, "") for name in ("WALK_URL", "WALK_KEY", "WALK_PAGES_KEY"))
NUM_PAGED = 250
NUM_LINES = 2_000 if anthropic.__version__ >= "2" else 1_000
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
POOLS = ["fast", "idle", "llama-70b", "mistral", "slow"]
FAST, SLOW = "claude-echo", "slow"  # an alias of a pool that answers, and a pool that takes forever

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
batches = client.messages.batches
raw = batches.with_raw_response


def request(custom_id: str, content: Any = "Hello there", **more: Any) -> dict[str, Any]:
    params = {"model": FAST, "max_tokens": 50, "messages": [{"role": "user", "content": content}], **more}
    return {"custom_id": custom_id, "params": {key: value for key, value in params.items() if value is not None}}


def checked(answer: Any, model: Any) -> Any:
    """What came over the wire fits the client's model, strictly, with every key there."""
    response = answer.http_response
    assert response.headers["request-id"], response.headers
    body = response.text
    found = model.model_validate_json(body, strict=True)
    missing = set(model.model_fields) - set(json.loads(body))
    assert not missing, f"{model.__name__} lacks {missing}"
    return found


def created(*requests: dict[str, Any]) -> Any:
    return checked(raw.create(requests=list(requests)), MessageBatch)


def ended(batch_id: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while (batch := checked(raw.retrieve(batch_id), MessageBatch)).processing_status != "ended":
        assert time.monotonic() < deadline, f"{batch_id} did not end"
        assert batch.results_url is batch.ended_at is None
        time.sleep(0.1)
    counts = batch.request_counts
    assert counts.processing == 0
    assert batch.ended_at is not None
    assert batch.results_url == f"{URL}/v1/messages/batches/{batch_id}/results"
    return batch


def lines_of(batch: Any) -> list[bytes]:
    """As they are on the wire."""
    headers = {"anthropic-version": "2023-06-01", "x-api-key": KEY, "accept-encoding": "identity"}
    with urllib.request.urlopen(urllib.request.Request(batch.results_url, headers=headers)) as answer:
        body: bytes = answer.read()
    assert b"\r" not in body
    lines = body.split(b"\n")
    assert lines.pop() == b""
    return lines


def results_of(batch: Any, kind: Any = MessageBatchIndividualResponse) -> dict[str, Any]:
    """Each through the client, and each strictly."""
    for line in lines_of(batch)[:500]:
        strict = kind.model_validate_json(line, strict=True)
        if strict.result.type == "succeeded":
            message = json.loads(line)["result"]["message"]
            assert not set(type(strict.result.message).model_fields) - message.keys()
            assert not set(type(strict.result.message.usage).model_fields) - message["usage"].keys()
    return {response.custom_id: response.result for response in batches.results(batch.id)}


def error_of(call: Callable[[], Any]) -> Any:
    try:
        call()
    except anthropic.AnthropicError as error:
        return error
    raise AssertionError("an error was expected")


def refused(kind: type[Exception], error_type: str, call: Callable[[], Any]) -> str:
    """The call raises exactly this class, with the type and the id of the request in it. Its words."""
    error = error_of(call)
    assert type(error) is kind, (type(error), error)
    body = error.body
    assert (body["type"], body["error"]["type"]) == ("error", error_type), body
    assert body["request_id"] == error.response.headers["request-id"], body
    assert getattr(error, "request_id", body["request_id"]) == body["request_id"]
    return str(body["error"]["message"])


def walk_contents() -> None:
    """All that a request may hold, and what can not be served, each on its own line."""
    blocks = [
        {"type": "text", "text": "Tell me", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "all"},
    ]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    tool = {"name": "look", "input_schema": {"type": "object"}}
    answer = {"type": "tool_result", "tool_use_id": "toolu_none", "content": "x"}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    bad = {
        "tokens": (request("tokens", max_tokens=None), "params.max_tokens"),
        "zero": (request("zero", max_tokens=0), "params.max_tokens"),
        "model": (request("model", model="gpt"), "gpt"),
        "image": (request("image", [image]), "is not an image"),
        "forced": (request("forced", tool_choice={"type": "any"}), "params.tool_choice"),
        "unknown_call": (request("unknown_call", [answer]), "params.messages[0].content[0].tool_use_id"),
        "server_tool": (request("server_tool", tools=[{"type": "web_search_20250305", "name": "s"}]), "params.tools"),
        "thinking": (request("thinking", model=SLOW, thinking={"type": "adaptive"}), "does not support thinking"),
        "no_tools": (request("no_tools", model=SLOW, tools=[tool]), "does not support tools"),
        "stream": (request("stream", stream=True), "params.stream"),
        "temperatur": (request("temperatur", temperatur=1), "did you mean temperature?"),
        "role": (request("role", messages=[{"role": "tool", "content": "x"}]), "params.messages[0].role"),
        "empty": (request("empty", messages=[]), "params.messages"),
    }
    good = [
        request("plain", temperature=0.2, top_p=0.9, top_k=5, metadata={"user_id": "u"}, service_tier="auto"),
        request("blocks", blocks, system=[{"type": "text", "text": "Be brief."}], thinking={"type": "disabled"}),
        request("roles", messages=[{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be kind."}]),
        request("prefill", messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]),
        request("stop", "one two STOP three", stop_sequences=["STOP", "never"]),
        request("cut", "one two three", max_tokens=2),
        request("unicode", "Zoë\u2028🚀\r\n\n\x00end", model="fast"),
        request("schema", '{"a":"x"}', output_config={"format": {"type": "json_schema", "schema": schema}}),
        request("A-b_9" * 12),
    ]
    batch = created(*good, *(line for line, _ in bad.values()))
    total = len(good) + len(bad)
    assert batch.id.startswith("msgbatch_")
    assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", total)
    assert batch.expires_at > batch.created_at
    batch = ended(batch.id)
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (len(good), len(bad))
    results = results_of(batch)
    assert list(results) == [line["custom_id"] for line in good] + list(bad)
    for custom_id, (_, words) in bad.items():
        error = results[custom_id].error
        assert (results[custom_id].type, error.type) == ("errored", "error")
        assert error.error.type == "invalid_request_error"
        assert words in error.error.message, error.error.message
    messages = {line["custom_id"]: results[line["custom_id"]].message for line in good}
    texts = {custom_id: message.content[0].text for custom_id, message in messages.items()}
    assert texts["blocks"] == "Tell me\n\nall"
    assert texts["unicode"] == "Zoë\u2028🚀\r\n\n\x00end"
    assert texts["stop"] == "one two "
    assert (messages["stop"].stop_reason, messages["stop"].stop_sequence) == ("stop_sequence", "STOP")
    assert (messages["cut"].stop_reason, messages["cut"].stop_sequence) == ("max_tokens", None)
    assert messages["plain"].stop_reason == "end_turn"
    assert all(message.usage.output_tokens > 0 for message in messages.values())
    assert len({message.id for message in messages.values()}) == len(good)
    again = {
        response.custom_id: response.result.message.id
        for response in batches.results(batch.id)
        if response.result.type == "succeeded"
    }
    assert again == {custom_id: message.id for custom_id, message in messages.items()}
    refused(anthropic.BadRequestError, "invalid_request_error", lambda: batches.cancel(batch.id))
    checked(raw.delete(batch.id), DeletedMessageBatch)
    for call in (batches.retrieve, batches.results, batches.cancel, batches.delete):
        refused(anthropic.NotFoundError, "not_found_error", lambda call=call: call(batch.id))


def walk_tools() -> None:
    """A model that thinks, then calls a tool; the answer of the tool goes back with both, as they came."""
    tools = [{"name": name, "description": "Look.", "input_schema": {"type": "object"}} for name in ("look", "find")]
    asked: dict[str, Any] = {"tools": tools, "thinking": {"type": "adaptive"}}
    named = {"type": "tool", "name": "find", "disable_parallel_tool_use": True}
    first = created(
        request("auto", **asked),
        request("named", **asked, tool_choice=named),
        request("free", tools=tools, tool_choice={"type": "none"}),
    )
    results = results_of(ended(first.id))
    messages = {name: result.message for name, result in results.items()}
    assert {name: message.stop_reason for name, message in messages.items()} == {
        "auto": "tool_use",
        "named": "tool_use",
        "free": "end_turn",
    }
    thinking, call = messages["auto"].content
    assert (thinking.type, thinking.thinking, thinking.signature) == ("thinking", "Hm.", "")
    assert (call.type, call.name, call.input) == ("tool_use", "look", {"place": "Zürich"})
    raw_call = json.loads(lines_of(batches.retrieve(first.id))[0])["result"]["message"]["content"][1]
    assert raw_call["caller"] == {"type": "direct"}
    assert messages["named"].content[1].name == "find"
    assert messages["named"].content[1].id != call.id
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": [block.model_dump(mode="json") for block in messages["auto"].content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Here."}]},
    ]
    second = created(request("answer", tools=tools, messages=turns))
    (answered,) = results_of(ended(second.id)).values()
    assert answered.message.content[0].text == "Where?"


def walk_lines() -> None:
    """Thousands of results, in order."""
    names = [f"line-{number}" for number in range(NUM_LINES)]
    batch = ended(created(*(request(name, name) for name in names)).id)
    assert batch.request_counts.succeeded == NUM_LINES
    num = 0
    for name, response in zip(names, batches.results(batch.id), strict=True):
        assert response.custom_id == name
        assert response.result.message.content[0].text == name
        num += 1
    assert num == NUM_LINES
    results_of(batch)


def walk_cancel() -> None:
    batch = created(*(request(str(number), model=SLOW) for number in range(3)), request("quick"))
    early = refused(
        anthropic.NotFoundError,
        "not_found_error",
        lambda: client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object),
    )
    assert "results_url" in early
    assert "results_url" in str(error_of(lambda: batches.results(batch.id)))  # the client does not even ask
    refused(anthropic.BadRequestError, "invalid_request_error", lambda: batches.delete(batch.id))
    canceling = checked(raw.cancel(batch.id), MessageBatch)
    assert canceling.processing_status in {"canceling", "ended"}
    assert canceling.cancel_initiated_at is not None
    batch = ended(batch.id)
    counts = batch.request_counts
    assert counts.canceled >= 3
    assert counts.canceled + counts.succeeded == 4
    kinds = Counter(result.type for result in results_of(batch).values())
    assert (kinds["canceled"], kinds["succeeded"]) == (counts.canceled, counts.succeeded)


def walk_errors() -> None:
    bad = anthropic.BadRequestError
    for wrong in ("", "a b", "x" * 65, "ö"):
        message = refused(bad, "invalid_request_error", lambda wrong=wrong: batches.create(requests=[request(wrong)]))
        assert "requests[0].custom_id" in message
    message = refused(bad, "invalid_request_error", lambda: batches.create(requests=[request("a"), request("a")]))
    assert "requests[1].custom_id" in message
    twice = [request("a", model="gpt"), request("a")]
    refused(bad, "invalid_request_error", lambda: batches.create(requests=twice))
    none: Any = [{"custom_id": "a", "params": None}]
    refused(bad, "invalid_request_error", lambda: batches.create(requests=none))
    refused(bad, "invalid_request_error", lambda: batches.create(requests=[]))
    refused(bad, "invalid_request_error", lambda: batches.list(limit=0))
    refused(bad, "invalid_request_error", lambda: batches.list(limit=1001))
    refused(bad, "invalid_request_error", lambda: batches.list(after_id="msgbatch_a", before_id="msgbatch_b"))
    refused(anthropic.NotFoundError, "not_found_error", lambda: batches.retrieve("msgbatch_nope"))
    refused(anthropic.NotFoundError, "not_found_error", lambda: batches.list(after_id="msgbatch_nope"))
    refused(anthropic.NotFoundError, "not_found_error", lambda: client.models.retrieve("gpt"))
    refused(anthropic.NotFoundError, "not_found_error", lambda: client.post("/v1/nothing", cast_to=object))
    stranger = anthropic.Anthropic(base_url=URL, api_key="nope", max_retries=0)
    refused(anthropic.AuthenticationError, "authentication_error", stranger.messages.batches.list)
    refused(anthropic.AuthenticationError, "authentication_error", stranger.models.list)
    huge = [request("a", "x" * 5_000_000)]
    too_large = getattr(anthropic, "ContentTooLargeError", None) or anthropic._exceptions.RequestTooLargeError
    refused(too_large, "request_too_large", lambda: batches.create(requests=huge))
    full = anthropic.Anthropic(base_url=URL, api_key=PAGES_KEY, max_retries=0)
    refused(anthropic.RateLimitError, "rate_limit_error", lambda: full.messages.batches.create(requests=[request("a")]))


def walk_pages() -> None:
    """Both ways through hundreds of batches, as the client's iterator goes."""
    pages = anthropic.Anthropic(base_url=URL, api_key=PAGES_KEY).messages.batches
    whole = checked(pages.with_raw_response.list(limit=1000), type(pages.list(limit=1)))
    ids = [batch.id for batch in whole.data]
    assert (len(ids), whole.has_more, whole.first_id, whole.last_id) == (NUM_PAGED, False, ids[0], ids[-1])
    times = [batch.created_at for batch in whole.data]
    assert times == sorted(times, reverse=True)
    assert [batch.id for batch in pages.list(limit=60)] == ids
    assert len(pages.list().data) == 20
    assert [batch.id for batch in pages.list(limit=7, after_id=ids[-20])] == ids[-19:]
    newer = pages.list(limit=60, before_id=ids[200])
    assert [batch.id for batch in newer.data] == ids[140:200]
    assert newer.has_more
    assert {batch.id for batch in newer} == set(ids[:200])
    assert not pages.list(limit=60, before_id=ids[60]).has_more
    first = pages.list(before_id=ids[0])
    assert (first.data, first.has_more, first.first_id, first.last_id) == ([], False, None, None)


def walk_deletes() -> None:
    """Batches are deleted while they are listed: the cursor of the next page is gone by then."""
    made = [created(request("a")).id for _ in range(5)]
    for batch_id in made:
        ended(batch_id)
    seen = []
    for batch in batches.list(limit=2):
        if batch.id in made:
            seen.append(batch.id)
            batches.delete(batch.id)
    assert sorted(seen) == sorted(made)


def walk_beta() -> None:
    """The older namespace, with its own header and query."""
    beta = client.beta.messages.batches
    batch_id = checked(beta.with_raw_response.create(requests=[request("a")]), BetaMessageBatch).id  # type: ignore[list-item]
    batch = ended(batch_id)
    assert checked(beta.with_raw_response.retrieve(batch_id), BetaMessageBatch).processing_status == "ended"
    results_of(batch, BetaMessageBatchIndividualResponse)
    assert [line.result.type for line in beta.results(batch_id)] == ["succeeded"]
    assert batch_id in [batch.id for batch in beta.list()]
    beta.delete(batch_id)


def walk_async() -> None:
    async def go() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=URL, api_key=KEY) as one:
            batch = await one.messages.batches.create(requests=[request(str(number)) for number in range(30)])
            while (await one.messages.batches.retrieve(batch.id)).processing_status != "ended":
                await asyncio.sleep(0.1)
            return [line.custom_id async for line in await one.messages.batches.results(batch.id)]

    assert asyncio.run(go()) == [str(number) for number in range(30)]


def walk_models() -> None:
    models = client.models.list(limit=2)
    assert [model.id for model in models] == POOLS
    assert models.has_more
    assert [model.id for model in client.models.list(before_id="slow", limit=1)] == POOLS[-2::-1]
    for name in ("fast", "claude-echo", "org/echo-1"):
        found = checked(client.models.with_raw_response.retrieve(name), ModelInfo)
        assert (found.id, found.display_name) == ("fast", "org/echo-1")


def walk_retry() -> None:
    """For a service that dies after its commit: the client asks again by itself. Prints the batch it got."""
    one = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=8)
    print(one.messages.batches.create(requests=[request("a")]).id)


def walk_down() -> None:
    """For a service whose store does not answer."""
    for call in (lambda: batches.retrieve("msgbatch_a"), lambda: batches.create(requests=[request("a")])):
        refused(anthropic._exceptions.ServiceUnavailableError, "api_error", call)
        assert error_of(call).response.headers["retry-after"]


WALKS = {name.removeprefix("walk_"): walk for name, walk in list(globals().items()) if name.startswith("walk_")}
ALONE = {"retry", "down"}  # for a service that is made to fail

if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(WALKS.keys() - ALONE):
        WALKS[name]()
