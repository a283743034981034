"""Both official clients against a service with a real model behind the pool `mistral`: a few requests each.

`LOCAL_BATCH_URL=... both_on_a_model.py [anthropic|openai]`. Answers are checked with the clients' own models; what a
small model says is not.
"""

import json
import os
import sys
import time
from typing import Any

import anthropic
import openai
from anthropic.types.messages import MessageBatchIndividualResponse
from openai.types import Completion
from openai.types.chat import ChatCompletion

URL = os.environ["LOCAL_BATCH_URL"]
WAIT_S = 300.0
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TURN = {"role": "user", "content": "Name a city."}


def main(*wanted: str) -> None:
    walks = {"anthropic": with_anthropic, "openai": with_openai}
    versions = {"anthropic": anthropic.__version__, "openai": openai.__version__}
    for name in wanted or walks:
        walks[name]()
        print(f"{name} {versions[name].partition('.')[0]} in Python")


def with_anthropic() -> None:
    client = anthropic.Anthropic(base_url=URL, api_key="none")
    asked: dict[str, dict[str, Any]] = {
        "plain": {"system": [{"type": "text", "text": "You are brief."}], "messages": [TURN]},
        "prefill": {"messages": [TURN, {"role": "assistant", "content": "It is"}]},
        "schema": {"messages": [TURN], "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        "refused": {"messages": [TURN], "max_tokens": 0},
    }
    requests = [
        {"custom_id": name, "params": {"model": "mistral", "max_tokens": 24} | params} for name, params in asked.items()
    ]
    batch = client.messages.batches.create(requests=requests)  # type: ignore[arg-type]
    until(lambda: client.messages.batches.retrieve(batch.id).processing_status == "ended")
    lines = [MessageBatchIndividualResponse.model_validate(line) for line in client.messages.batches.results(batch.id)]
    assert [line.custom_id for line in lines] == list(asked)
    found = {line.custom_id: line.result for line in lines}
    for name in ("plain", "prefill", "schema"):
        result = found[name]
        assert result.type == "succeeded", result
        assert result.message.usage.output_tokens > 0
        assert result.message.content[0].type == "text"
    schema = found["schema"]
    assert schema.type == "succeeded"
    assert json.loads(schema.message.content[0].text)["city"] in {"Paris", "Rome"}  # type: ignore[union-attr]
    refused = found["refused"]
    assert refused.type == "errored"
    assert refused.error.error.type == "invalid_request_error"


def with_openai() -> None:
    chats = answers("/v1/chat/completions", [{"messages": [TURN], "n": num} for num in (1, 2)])
    found = [ChatCompletion.model_validate(body) for body in chats]
    assert [len(answer.choices) for answer in found] == [1, 2]
    assert all(choice.message.content for answer in found for choice in answer.choices)
    prompts: list[dict[str, Any]] = [{"prompt": "Paris, Rome,", "n": 2}, {"prompt": [5, 6, 7]}]
    texts = [Completion.model_validate(body) for body in answers("/v1/completions", prompts)]
    assert [len(answer.choices) for answer in texts] == [2, 1]
    assert texts[1].usage is not None
    assert texts[1].usage.prompt_tokens == 3


def answers(endpoint: Any, bodies: list[dict[str, Any]]) -> list[Any]:
    """The answer to each, in order."""
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": endpoint, "body": {"model": "mistral", "max_tokens": 16} | body}
        for n, body in enumerate(bodies)
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).status == "completed")
    output = client.batches.retrieve(batch.id).output_file_id
    assert output is not None
    found = [json.loads(line) for line in client.files.content(output).text.splitlines()]
    assert [line["custom_id"] for line in found] == [line["custom_id"] for line in lines]
    return [line["response"]["body"] for line in found]


def until(is_so: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
