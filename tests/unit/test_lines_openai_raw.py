"""OpenAI's completions and embeddings: lines into requests, and native results into its output lines."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchfile.errors import InvalidRequest
from batchfile.types import Choice, Completion, Defaults, Outcome, Raw, Request, Sampling, Usage
from tests.helpers.lines import (
    Scan,
    anthropic_lines,
    encode_result,
    find_problems,
    openai_file,
    parse_request,
    stage_lines,
    write_results,
)

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"


def line(url: str, **body: Any) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **body}}).encode()


def parsed(url: str, **body: Any) -> Request:
    return parse_request(line(url, **body), Defaults())


def raw(url: str, **body: Any) -> Raw:
    found = parsed(url, **body).raw
    assert found is not None
    return found


def test_the_least_completion_gets_openais_tokens_and_temperature() -> None:
    assert parsed(COMPLETIONS, prompt="Once") == Request(
        custom_id="a",
        messages=(),
        model="m",
        raw=Raw(kind="completion", inputs=("Once",)),
        sampling=Sampling(max_tokens=16, is_max_tokens_given=False, temperature=1.0),
    )


def test_a_completion_samples_like_a_chat() -> None:
    given = {"max_tokens": 5, "temperature": 0, "n": 3, "stop": "x", "seed": 1, "top_k": 4, "ignore_eos": True}
    assert parsed(COMPLETIONS, prompt="Once", **given).sampling == Sampling(
        max_tokens=5, temperature=0.0, num_choices=3, stop=("x",), seed=1, top_k=4, ignore_eos=True
    )


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("a", ("a",)), (["a"], ("a",)), ([1, 2], ((1, 2),)), ([[1, 2]], ((1, 2),))],
)
def test_an_input_is_a_text_or_token_ids_in_a_list_or_not(given: Any, inputs: Any) -> None:
    assert raw(COMPLETIONS, prompt=given).inputs == inputs
    assert raw(EMBEDDINGS, input=given).inputs == inputs


def test_an_embedding_takes_many_inputs_and_says_how_its_vectors_are() -> None:
    assert raw(EMBEDDINGS, input=["a", "b"], dimensions=8, encoding_format="base64", user="u") == Raw(
        kind="embedding", inputs=("a", "b"), dimensions=8, is_base64=True
    )
    assert raw(EMBEDDINGS, input=[[1], [2, 3]], encoding_format="float").inputs == ((1,), (2, 3))


def test_keys_that_ask_for_nothing_are_ignored() -> None:
    nothing = {"echo": False, "suffix": "", "best_of": 1, "logprobs": None, "logit_bias": {}, "stream": False}
    assert parsed(COMPLETIONS, prompt="a", **nothing) == parsed(COMPLETIONS, prompt="a")


BAD = [
    (COMPLETIONS, {}, "body.prompt: is missing"),
    (COMPLETIONS, {"messages": []}, "body.prompt: is missing"),
    (COMPLETIONS, {"prompt": ""}, "body.prompt: must not be empty"),
    (COMPLETIONS, {"prompt": []}, "body.prompt: must not be empty"),
    (COMPLETIONS, {"prompt": [[]]}, "body.prompt: item [0] must not be empty"),
    (COMPLETIONS, {"prompt": 5}, "body.prompt: must be a string or a list of token ids, got 5"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "body.prompt: must be a string or a list of token ids, got a list"),
    (COMPLETIONS, {"prompt": [True]}, "body.prompt: must be a string or a list of token ids"),
    (COMPLETIONS, {"prompt": [-1]}, "body.prompt: must be a string or a list of token ids"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "body.prompt: item [1] must be a string or a list of token ids, got 1"),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "body.prompt: has 2 prompts; put each prompt on its own line"),
    (COMPLETIONS, {"prompt": "a", "best_of": 2}, "body.best_of: best_of is not supported; use n"),
    (COMPLETIONS, {"prompt": "a", "n": 0}, "body.n: must be at least 1, got 0"),
    (COMPLETIONS, {"prompt": "a", "max_token": 1}, "body.max_token: unknown field; did you mean max_tokens?"),
    (EMBEDDINGS, {}, "body.input: is missing"),
    (EMBEDDINGS, {"input": None}, "body.input: must be a string or a list of token ids, got null"),
    (EMBEDDINGS, {"input": ["a", ""]}, "body.input: item [1] must not be empty"),
    (EMBEDDINGS, {"input": ["a"] * 2049}, "body.input: has 2049 inputs, and the maximum is 2048"),
    (EMBEDDINGS, {"input": "a", "dimensions": 0}, "body.dimensions: must be at least 1, got 0"),
    (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, 'body.encoding_format: must be "float" or "base64"'),
    (EMBEDDINGS, {"input": "a", "max_tokens": 5}, "body.max_tokens: is not a field of this format"),
    ("/v1/tokenize", {"input": "a"}, "url: must be"),
]


@pytest.mark.parametrize(("url", "body", "message"), BAD, ids=[f"{row[0]} {row[2][:60]}" for row in BAD])
def test_what_is_wrong_is_named(url: str, body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(url, **body)
    assert str(refused.value).startswith(message)


def test_a_line_whose_outside_is_wrong_is_still_read_as_what_its_url_says() -> None:
    broken = json.dumps({"method": "POST", "url": EMBEDDINGS, "body": {"input": ""}}).encode()
    assert [problem.where for problem in find_problems(broken)] == ["custom_id", "body.input"]


def test_a_check_counts_their_characters_and_tokens() -> None:
    scan = Scan()
    lines = [
        line(COMPLETIONS, prompt="four"),
        line(COMPLETIONS, prompt="a", max_tokens=7),
        line(EMBEDDINGS, input=["ab", "c"]),
    ]
    assert list(scan.problems([b"\n".join(lines)])) == []
    assert scan.summary.prompt_chars == 8
    assert scan.summary.max_tokens == {16: 1, 7: 1, 0: 1}


def body_of(outcome: Outcome) -> Any:
    result = encode_result("a", outcome, "m") + b"\n"
    [made] = openai_file([result], batch_id="batch_1", created=1_800_000_000, is_output=None)
    return json.loads(made)["response"]["body"]


USAGE = Usage(input_tokens=5, output_tokens=2, cached_tokens=3)


def test_a_completion_is_a_text_completion() -> None:
    choices = (Choice("yes", "end_turn"), Choice("no", "max_tokens"))
    found = body_of(Completion(choices=choices, usage=USAGE, kind="completion"))
    assert list(found) == ["id", "object", "created", "model", "choices", "usage"]
    assert (found["id"], found["object"]) == ("cmpl-batch_1_0", "text_completion")
    assert found["choices"] == [
        {"index": 0, "text": "yes", "logprobs": None, "finish_reason": "stop"},
        {"index": 1, "text": "no", "logprobs": None, "finish_reason": "length"},
    ]


VECTORS = Completion(choices=(), usage=USAGE, kind="embedding", vectors=((0.5, -0.25), "AAAAPwAAgL4="))


def test_an_embedding_is_a_list_of_vectors_as_they_were_asked_for() -> None:
    assert body_of(VECTORS) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]},
            {"object": "embedding", "index": 1, "embedding": "AAAAPwAAgL4="},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_the_other_dialects_have_text_and_say_where_vectors_are() -> None:
    text = Completion(choices=(Choice("t", "end_turn"),), usage=Usage(output_tokens=1), kind="completion")
    native = [encode_result(custom_id, one, "m") + b"\n" for custom_id, one in (("a", VECTORS), ("b", text))]
    vectors, told = (json.loads(row)["result"] for row in b"".join(anthropic_lines(native, "msgbatch_1")).splitlines())
    assert (vectors["type"], vectors["error"]["error"]["type"]) == ("errored", "invalid_request_error")
    assert "OpenAI's output files" in vectors["error"]["error"]["message"]
    assert told["message"]["content"][0]["text"] == "t"
    staged = [json.loads(row) for row in b"".join(stage_lines(native)).splitlines()]
    assert [(row["status"], row["message"] is None, row["usage"] is None) for row in staged] == [
        ("errored", True, True),
        ("succeeded", False, False),
    ]
    assert staged[0]["error"] == vectors["error"]["error"]
    assert {tuple(row) for row in staged} == {("custom_id", "status", "message", "usage", "error")}


def test_a_parquet_file_holds_the_vectors_as_json(tmp_path: Path) -> None:
    write_results([encode_result("a", VECTORS, "m")], str(tmp_path / "out.parquet"))
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["custom_id"], row["status"], row["input_tokens"]) == ("a", "succeeded", 5)
    assert json.loads(row["text"]) == [[0.5, -0.25], "AAAAPwAAgL4="]
