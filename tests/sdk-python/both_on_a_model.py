"""Both official clients against a service with a real model behind the pool `mistral`: a few requests each.

`LOCAL_BATCH_URL=... both_on_a_model.py`. Answers are checked with the clients' own models; what a small model says
is not.
"""

import json
import os
import time
from typing import Any

import anthropic
import openai
from anthropic.types.messages import MessageBatchIndividualResponse
from openai.types.chat import ChatCompletion

URL = os.environ["LOCAL_BATCH_URL"]
WAIT_S = 300.0
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TURN = {"role": "user", "content": "Name a city."}


def main() -> None:
    with_anthropic()
    with_openai()
    print("Both clients got their answers from a real model.")


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
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")
    bodies = [{"model": "mistral", "messages": [TURN], "max_tokens": 16, "n": num} for num in (1, 2)]
    lines = [
        {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate(bodies)
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).status == "completed")
    output = client.batches.retrieve(batch.id).output_file_id
    assert output is not None
    found = [json.loads(line) for line in client.files.content(output).text.splitlines()]
    assert [line["custom_id"] for line in found] == ["r0", "r1"]
    answers = [ChatCompletion.model_validate(line["response"]["body"]) for line in found]
    assert [len(answer.choices) for answer in answers] == [1, 2]
    assert all(choice.message.content for answer in answers for choice in answer.choices)


def until(is_so: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.5)


if __name__ == "__main__":
    main()
