"""Advice about unknown keys: no suggestion changes the meaning, equals the key, or is a key that is rejected too."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.lines.formats import native, openai_completions, openai_embeddings
from batchfile.lines.key_advice import NOT_SERVED, OTHERWISE, SAME, typo_of
from tests.helpers.lines import COLUMNS, REQUEST_KEYS, find_problems, openai_chat

HI = [{"role": "user", "content": "hi"}]
FORMATS: dict[str, tuple[Any, dict[str, Any]]] = {
    "params": (native.FORMAT, {"messages": HI}),
    openai_chat.URL: (openai_chat.FORMAT, {"messages": HI}),
    openai_completions.URL: (openai_completions.FORMAT, {"prompt": "hi"}),
    openai_embeddings.URL: (openai_embeddings.EMBEDDINGS, {"input": "hi"}),
}


def told(place: str, **more: Any) -> dict[str, str]:
    """What is said of a request with one more key, by place."""
    inside = FORMATS[place][1] | more
    line = {"params": inside} if place == "params" else {"method": "POST", "url": place, "body": inside}
    return {
        found.where: f"{found.message} | {found.fix}"
        for found in find_problems(json.dumps({"custom_id": "a", **line}).encode())
    }


def fields(form: Any) -> set[str]:
    return set(form.body.model_fields)


def test_of_thousands_of_unknown_keys_the_first_ones_get_advice() -> None:
    """Which takes long: a line of 50,000 would stop its planner for half a minute."""
    found = told("params", max_token=5, **{f"top_{n}": n for n in range(5000)}, temperatur=0)
    assert len(found) == 5002
    assert "did you mean max_tokens?" in found["params.max_token"]
    assert found["params.temperatur"] == "unknown field; remove it | "


@pytest.mark.parametrize(
    ("place", "key", "words"),
    [
        (openai_embeddings.URL, "min_tokens", "min_tokens is not supported; remove it"),
        (openai_chat.URL, "reasoning", "is not supported here; use reasoning_effort"),
        ("params", "reasoning_effort", "is not supported here; use output_config.effort"),
        ("params", "thinking_token_budget", "is not supported here; use thinking.budget_tokens"),
        (openai_chat.URL, "thinking", "is not supported here; use reasoning_effort"),
        ("params", "streem", "unknown field; remove it"),  # a batch does not stream
        ("params", "top_n", "is not a field of this format; remove it"),
        ("params", "tok_p", "unknown field; remove it"),  # top_k or top_p
        ("params", "models", "models is not supported; remove it"),
        ("params", "response_format", "is not supported here; use output_config"),
        (openai_chat.URL, "system", "is not supported here; put it into a system turn"),
        (openai_chat.URL, "prompt", "is not supported here; put the text into messages"),
        (openai_chat.URL, "max_new_tokens", "unknown field; did you mean max_tokens? | Rename it to max_tokens."),
        ("params", "stop", "unknown field; did you mean stop_sequences?"),
        ("params", "temprature", "unknown field; did you mean temperature?"),
        (openai_completions.URL, "messages", "belongs to /v1/chat/completions; use that url"),
        (openai_embeddings.URL, "max_tokens", "is not a field of this format; remove it"),
        (openai_chat.URL, "speed", "is not a field of this format; remove it"),
    ],
)
def test_keys_of_other_apis_are_known_by_name(place: str, key: str, words: str) -> None:
    (said,) = told(place, **{key: 1}).values()
    assert said.startswith(words)


def test_no_key_is_renamed_to_one_that_is_there() -> None:
    (said,) = told("params", max_tokens=1, max_new_tokens=1).values()
    assert said.startswith("unknown field; max_tokens is given already, so remove this one")
    (said,) = told("params", max_tokens=1, max_token=1).values()
    assert said.startswith("unknown field; max_tokens is given already, so remove this one")


def test_a_flat_response_format_is_told_where_its_keys_belong() -> None:
    found = told(openai_chat.URL, response_format={"type": "json_schema", "name": "n", "strict": True, "schema": {}})
    assert found == {
        f"body.response_format.{key}": f"belongs inside response_format.json_schema | Move {key} there."
        for key in ("name", "strict", "schema")
    }


@pytest.mark.parametrize("kind", ["json_object", "text", None])
def test_a_schema_next_to_another_type_is_told_the_whole_form(kind: str | None) -> None:
    form = {"schema": {}} if kind is None else {"type": kind, "schema": {}}
    said = told(openai_chat.URL, response_format=form)["body.response_format.schema"]
    assert said == (
        "is only allowed with the type json_schema | "
        'Write {"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}} as response_format.'
    )


@pytest.mark.parametrize("place", FORMATS)
def test_a_suggestion_is_another_key_that_is_served_there(place: str) -> None:
    form, minimal = FORMATS[place]
    others = set[str]().union(*(fields(other) for other, _ in FORMATS.values()))
    known = fields(form)
    for key in (others | SAME.keys() | OTHERWISE.keys() | NOT_SERVED) - known:
        (said,) = told(place, **{key: 1}).values()
        for suggested in re.findall(r"did you mean (\w+)|Rename it to (\w+)", said):
            ours = "".join(suggested)
            assert ours != key
            assert ours in SAME[key]
            assert ours in known - form.unsupported_keys.keys() - minimal.keys()


@given(st.sampled_from([*FORMATS]), st.from_regex(r"[a-z]{1,4}_?[a-z]{0,8}", fullmatch=True))
def test_whatever_a_key_is_a_suggestion_is_another_key_that_is_served_there(place: str, key: str) -> None:
    form, minimal = FORMATS[place]
    if key not in fields(form):
        (said,) = told(place, **{key: 1}).values()
        for ours in re.findall(r"did you mean (\w+)", said):
            assert ours in fields(form) - form.unsupported_keys.keys() - minimal.keys() - {key}


@pytest.mark.parametrize(
    ("key", "meant"),
    [("max_token", "max_tokens"), ("maxTokens", "max_tokens"), ("max-tokens", "max_tokens"), ("sede", "seed")]
    + [
        (key, None)
        for key in ("min_tokens", "max", "top", "top_a", "length_penalty", "stop", "seed", "s", "", "tok_p", "tok_k")
    ],
)
def test_a_typing_error_is_other_spelling_or_one_letter(key: str, meant: str | None) -> None:
    assert typo_of(key, ["max_tokens", "top_k", "top_p", "seed", "presence_penalty"]) == meant


def test_no_column_is_taken_for_another_that_means_something_else() -> None:
    columns = set().union(*(fields(form) for form, _ in FORMATS.values())) - REQUEST_KEYS - set(COLUMNS)
    assert {key: typo_of(key, COLUMNS) for key in columns} == dict.fromkeys(columns)


def test_a_key_that_belongs_inside_is_told_so() -> None:
    for carrier in ("params", "body"):
        for key in {*COLUMNS, "tools", "response_format", "max_completion_tokens"} - {"custom_id"}:
            line = {"custom_id": "a", carrier: {}, key: 1}
            said = {found.where: found.message for found in find_problems(json.dumps(line).encode())}
            assert said[key] == f"belongs inside {carrier}"
