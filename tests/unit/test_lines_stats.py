"""What is counted in a file of requests, and how much of the prompts is shared."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidFile
from batchfile.lines import prefixes, stats
from batchfile.lines.prefixes import STEP_CHARS, SharedPrefixes
from batchfile.lines.stats import read_stats
from batchfile.types import Defaults

DEFAULTS = Defaults(max_tokens=50)


def native(custom_id: str = "a", text: str = "hi", metadata: Any = None, **params: Any) -> str:
    inside = {"messages": [{"role": "user", "content": text}], **params}
    return json.dumps({"custom_id": custom_id, "params": inside} | ({"metadata": metadata} if metadata else {}))


def openai(url: str, **body: Any) -> str:
    return json.dumps({"custom_id": "o", "method": "POST", "url": url, "body": body})


def lines(*given: str) -> list[bytes]:
    return ["\n".join(given).encode()]


def test_every_kind_of_request_is_counted() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    turns = [{"role": "user", "content": "four"}]
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    found = read_stats(
        lines(
            native(max_tokens=10, tools=[tool], metadata={"model_hint": "m"}),
            "",
            native(model="big", text="x" * 9),
            openai("/v1/chat/completions", model="small", messages=turns, max_tokens=10, n=2, response_format=schema),
            openai("/v1/completions", model="small", prompt="12345", max_tokens=7),
            openai("/v1/embeddings", model="e", input=["one", "two"]),
            "{rubbish",
        ),
        "in.jsonl",
        DEFAULTS,
    )
    assert (found.num_requests, found.num_bad) == (6, 1)
    assert found.endpoints == {"params": 2, "/v1/chat/completions": 1, "/v1/completions": 1, "/v1/embeddings": 1}
    assert found.models == {"big": 1, "small": 2, "e": 1}
    assert found.output_tokens_max == 10 + 50 + 2 * 10 + 7
    assert (found.chars.total, found.chars.longest) == (2 + 9 + 4 + 5 + 6, 9)
    assert found.tokens is None


def test_a_tokenizer_counts_each_request_that_can_run() -> None:
    def count(request: Any) -> list[int]:
        return [len(given) for given in request.raw.inputs] if request.raw else [100]

    found = read_stats(
        lines(native(), openai("/v1/embeddings", model="e", input=["one", "two"]), "{}"), "in.jsonl", DEFAULTS, count
    )
    assert found.tokens is not None
    assert (found.tokens.total, found.tokens.longest) == (106, 100)


def test_a_file_without_a_request_is_refused() -> None:
    with pytest.raises(InvalidFile, match="every line is blank"):
        read_stats([b"\n\n"], "in.jsonl", DEFAULTS)


def test_memory_does_not_grow_with_the_values_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "VALUES_MAX", 3)
    found = read_stats(lines(*[native(model=f"m{n % 5}") for n in range(10)]), "in.jsonl", DEFAULTS)
    assert found.models == {"m0": 2, "m1": 2, "m2": 2, None: 4}


def alike(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def exact(prompts: list[str]) -> int:
    """The longest common beginning of each prompt with any earlier one, summed up."""
    return sum(
        max((alike(prompt, earlier) for earlier in prompts[:number]), default=0)
        for number, prompt in enumerate(prompts)
    )


@given(st.lists(st.lists(st.sampled_from(["a" * 64, "b" * 64, "c" * 100, "d"]), max_size=40).map("".join), max_size=8))
def test_shared_beginnings_are_never_overestimated(prompts: list[str]) -> None:
    found = SharedPrefixes()
    for prompt in prompts:
        found.add(prompt)
    assert found.num_chars == sum(map(len, prompts))
    assert found.num_shared <= exact(prompts)


@pytest.mark.parametrize(("shared", "step"), [(640, STEP_CHARS), (2000, STEP_CHARS), (20_000, 2500), (100_000, 12_500)])
def test_a_shared_beginning_is_found_to_within_a_step(shared: int, step: int) -> None:
    draw = random.Random(1)
    head = "".join(draw.choices("abc", k=shared))
    prompts = [head + "".join(draw.choices("xyz", k=500)) for _ in range(5)]
    found = SharedPrefixes()
    for prompt in prompts:
        found.add(prompt)
    assert 4 * (shared - step) < found.num_shared <= exact(prompts)


def test_the_share_is_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_SLOTS", 16)
    found = SharedPrefixes()
    for n in range(400):
        found.add(f"{n % 7:>{STEP_CHARS}}" * (1 + n % 3))
    assert (found.num_shared, found.num_chars) == (17_984, 51_136)


def test_what_was_forgotten_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_SLOTS", 16)
    draw = random.Random(1)
    prompts = ["".join(draw.choices("abc", k=STEP_CHARS)) for _ in range(200)] * 2
    found = SharedPrefixes()
    for prompt in prompts:
        found.add(prompt)
    assert found.num_shared < exact(prompts) / 4


def test_equal_turns_of_other_roles_are_not_shared() -> None:
    text = "x" * 200
    same = read_stats(lines(native(text=text), native(text=text)), "in.jsonl", DEFAULTS)
    other = read_stats(
        lines(native(text=text), native(system=text), native(messages=[{"role": "user", "content": "y" + text}])),
        "in.jsonl",
        DEFAULTS,
    )
    assert same.prefixes.share > 0.4
    assert other.prefixes.share == 0
