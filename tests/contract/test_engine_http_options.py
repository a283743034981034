"""The HTTP engine and options: an endpoint is sent them as they are, and what it tells about tokens is kept."""

import json
from typing import Any

from batchfile.types import Completion, Defaults, Failure, Request, TokenLogprob, TopLogprob
from tests.contract.engine_http_kit import chat_server, engine, run, server
from tests.helpers.endpoint import HttpEngine
from tests.helpers.lines import decode_result, encode_result, parse_request

__all__ = ["chat_server", "engine", "server"]

LIKELY = {"token": "ye", "logprob": -0.5, "bytes": [121, 101]}


def asked(url: str = "/v1/chat/completions", **body: Any) -> Request:
    talk: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]} if url.endswith("chat/completions") else {}
    line = {"custom_id": "a", "method": "POST", "url": url, "body": talk | body}
    return parse_request(json.dumps(line).encode(), Defaults())


def says(body: dict[str, Any]) -> dict[str, Any]:
    return {"status": 200, "text": json.dumps(body)}


def test_what_an_endpoint_tells_about_tokens_is_in_the_result(server: Any, engine: HttpEngine) -> None:
    content = [{**LIKELY, "top_logprobs": [LIKELY]}]
    choice = {"message": {"content": "ye", "reasoning": "hm"}, "logprobs": {"content": content}, "token_ids": [7]}
    server.script.append(says({"choices": [choice], "prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"2": {}}]}))
    [made] = run(engine, asked(logprobs=True, top_logprobs=1, return_token_ids=True, prompt_logprobs=0))
    assert isinstance(made, Completion)
    likely = {"token": "ye", "logprob": -0.5, "bytes": (121, 101)}
    assert made.choices[0].logprobs == (TokenLogprob(**likely, top_logprobs=(TopLogprob(**likely),)),)
    assert made.choices[0].token_ids == (7,)
    assert made.choices[0].thinking == "hm", "as vLLM's API returns it for this format"
    assert (made.prompt_token_ids, made.prompt_logprobs) == ((1, 2), [None, {"2": {}}])
    assert decode_result(encode_result("a", made, "m")).token_ids == [7]


def test_logprobs_of_a_completion_have_the_same_form(server: Any, engine: HttpEngine) -> None:
    told = {"tokens": ["a", "b"], "token_logprobs": [None, -1], "top_logprobs": [None, {"b": -1, "c": -2}]}
    server.script.append(says({"choices": [{"text": "ab", "logprobs": told}]}))
    [made] = run(engine, asked("/v1/completions", prompt="x", logprobs=2))
    assert isinstance(made, Completion)
    first, second = made.choices[0].logprobs or ()
    assert (first.token, first.logprob, first.top_logprobs) == ("a", None, ())
    assert [top.token for top in second.top_logprobs] == ["b", "c"]


def test_logprobs_of_another_form_are_that_requests_failure(server: Any, engine: HttpEngine) -> None:
    odd = says({"choices": [{"message": {"content": "ye"}, "logprobs": {"content": [{"token": 5}]}}]})
    server.script.extend([odd] * 20)
    [made] = run(engine, asked(logprobs=True))
    assert isinstance(made, Failure)
    assert "has a type that OpenAI's API does not have there" in made.message
    server.script.clear()
    [fine] = run(engine, asked())
    assert isinstance(fine, Completion)


def test_reasoning_that_the_request_declines_is_left_out(server: Any, engine: HttpEngine) -> None:
    server.script.append(says({"choices": [{"message": {"content": "ye", "reasoning_content": "hm"}}]}))
    [made] = run(engine, asked(include_reasoning=False))
    assert isinstance(made, Completion)
    assert made.choices[0].thinking is None
    assert server.seen[0]["body"]["include_reasoning"] is False


def test_scores_and_ranks_are_the_endpoints_own(server: Any, engine: HttpEngine) -> None:
    server.script.append(says({"data": [{"index": 1, "score": 0.25}, {"index": 0, "score": 0.5}]}))
    server.script.append(
        says({"results": [{"index": 2, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.5}]})
    )
    [score] = run(engine, asked("/v1/score", queries="a", documents=["b", "c"], max_tokens_per_doc=5))
    [ranked] = run(engine, asked("/v1/rerank", query="a", documents=["b", "c", "d"], top_n=2))
    assert isinstance(score, Completion)
    assert isinstance(ranked, Completion)
    assert (score.kind, score.vectors) == ("score", ((0.5,), (0.25,)))
    assert (ranked.kind, ranked.vectors) == ("rerank", ((2.0, 0.75), (0.0, 0.5)))
    first, second = (seen["body"] for seen in server.seen)
    assert first == {"model": "served", "text_1": ["a"], "text_2": ["b", "c"], "max_tokens_per_doc": 5}
    assert second == {"model": "served", "query": "a", "documents": ["b", "c", "d"], "top_n": 2}


def test_classes_and_vectors_of_poolers_are_the_endpoints_own(server: Any, engine: HttpEngine) -> None:
    classes = [{"index": 0, "label": "calm", "probs": [0.25, 0.75], "num_classes": 2}]
    server.script.append(says({"data": classes, "usage": {"prompt_tokens": 3, "total_tokens": 3}}))
    server.script.append(says({"data": [{"index": 0, "data": [[0.5, 1], [2, 3]]}, {"index": 1, "data": [[4, 5]]}]}))
    [classified] = run(engine, asked("/v1/classify", input="a", use_activation=True))
    [pooled] = run(engine, asked("/v1/pooling", input=["a", "b"], task="token_embed"))
    assert isinstance(classified, Completion)
    assert isinstance(pooled, Completion)
    assert (classified.kind, classified.vectors, classified.labels) == ("classification", ((0.25, 0.75),), ("calm",))
    assert classified.usage.input_tokens == 3
    assert (pooled.kind, pooled.vectors) == ("pooling", (((0.5, 1.0), (2.0, 3.0)), ((4.0, 5.0),)))
    assert [seen["path"] for seen in server.seen] == ["/classify", "/pooling"], "vLLM has them outside of /v1"
    assert [seen["body"] for seen in server.seen] == [
        {"model": "served", "input": ["a"], "use_activation": True},
        {"model": "served", "input": ["a", "b"], "encoding_format": "float", "task": "token_embed"},
    ]
