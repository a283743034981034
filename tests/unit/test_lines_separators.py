"""Whatever the text, no output has a raw U+2028, U+2029 or U+0085, and decoding gives the same text."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.types import Choice, Completion, Failure, Outcome, ToolCall, Usage
from tests.helpers.lines import (
    anthropic_lines,
    encode_result,
    escape_separators,
    openai_file,
    stage_document,
    stage_lines,
)

SEPARATORS = "\u2028\u2029\u0085"
RAW = tuple(one.encode() for one in SEPARATORS)
_text = st.text(st.sampled_from(SEPARATORS + 'a\\"\u2026\u00e9'))


def document(line: bytes) -> bytes:
    (result,) = json.loads(b"".join(stage_document([line])))["results"]
    return json.dumps(result).encode()


RENDERINGS: dict[str, Callable[[bytes], bytes]] = {
    "native": lambda line: line,
    "openai": lambda line: b"".join(openai_file([line], batch_id="batch_x", created=0, is_output=None)),
    "anthropic": lambda line: b"".join(anthropic_lines([line], "msgbatch_x")),
    "stage": lambda line: b"".join(stage_lines([line])),
    "stage document": document,
}


@pytest.mark.parametrize("name", RENDERINGS)
@given(text=_text, custom_id=_text.filter(bool))
def test_one_line_is_one_line_for_every_reader(name: str, text: str, custom_id: str) -> None:
    called = Choice(text, "stop_sequence", text, (ToolCall("t", text, {text: text}),), text)
    outcomes: list[Outcome] = [
        Completion(choices=(Choice(text, "end_turn"),), usage=Usage()),
        Completion(choices=(called, called), usage=Usage()),
        Failure(type="api_error", message=text),
        Failure(type="canceled", message=text, status="canceled"),
    ]
    for outcome in outcomes:
        rendered = RENDERINGS[name](encode_result(custom_id, outcome, text) + b"\n")
        assert not any(raw in rendered for raw in RAW)
        assert len(rendered.decode().splitlines()) == 1
        found = json.loads(rendered)
        assert found["custom_id"] == custom_id
        if outcome is outcomes[0]:
            assert text in strings(found)


def strings(value: Any) -> set[str]:
    if isinstance(value, dict | list):
        return set[str]().union(*map(strings, value.values() if isinstance(value, dict) else value))
    return {value} if isinstance(value, str) else set()


def test_results_that_an_older_version_wrote_raw_are_escaped_where_they_are_rendered() -> None:
    raw = encode_result("a", Completion(choices=(Choice("x", "end_turn"),), usage=Usage()), "m")
    raw = raw.replace(b'"x"', f'"{SEPARATORS}"'.encode()) + b"\n"
    for name in ("openai", "anthropic", "stage"):
        assert SEPARATORS in strings(json.loads(RENDERINGS[name](raw)))
        assert not any(one in RENDERINGS[name](raw) for one in RAW)


def test_bytes_without_separators_are_not_copied() -> None:
    for data in (b'"plain"', '"caf\u00e9 \u2026 \u201c\u201d"'.encode()):
        assert escape_separators(data) is data
