"""Tools and thinking on vLLM: what the model is shown, how its answer is read, and what is not served.

tests/e2e/test_engine_vllm.py generates with them.
"""

import copy
from pathlib import Path
from typing import Any

import pytest

from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Choice, Message, Request, Sampling, Tool, ToolCall, Tools
from tests.helpers.engine import ChatPrompts
from tests.helpers.vllm import Parsers

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"]}
CITY |= {"additionalProperties": False}
TOOLS = Tools(offered=(Tool("look", "Look at a city.", CITY), Tool("find", None, {"type": "object"})))
NAMED = Tools(offered=TOOLS.offered, choice="named", name="look")
# What Hermes and Qwen speak.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "Call as <tool_call>{...}</tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}|{{ c.id }}</tool_call>{% endfor %}"
    "{% if m.tool_call_id %}|{{ m.tool_call_id }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
CALL = '<tool_call>{"name": "look", "arguments": {"city": "%s"}}</tool_call>'


@pytest.fixture(scope="module")
def plain(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model_dir))


@pytest.fixture(scope="module")
def tokenizer(plain: Any) -> Any:
    changed = copy.deepcopy(plain)
    changed.chat_template = TEMPLATE
    changed.add_tokens(["<think>", "</think>"])
    return changed


def parsers(tokenizer: Any, tool_parser: str | None = None, reasoning_parser: str | None = None) -> Parsers:
    return Parsers(
        tokenizer=tokenizer,
        model_config=None,
        prompts=ChatPrompts(copy.deepcopy(tokenizer), "m"),
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
    )


def request(tools: Tools | None = TOOLS, **more: Any) -> Request:
    sampling = more.pop("sampling", Sampling(max_tokens=60, temperature=0.0))
    return Request(custom_id="r", messages=(Message("user", "Rome?"),), sampling=sampling, tools=tools, **more)


def read(found: Parsers, one: Request, text: str, reason: Any = "end_turn") -> Choice:
    reading = found.reading(one)
    assert reading is not None
    return found.read(reading, Choice(text, reason), found._tokenizer.encode(text), 0)


def test_the_model_is_shown_tools_calls_and_answers(tokenizer: Any) -> None:
    prompts = ChatPrompts(copy.deepcopy(tokenizer), "m")
    calls = (ToolCall("toolu_abc", "look", {"city": "Bern"}), ToolCall("toolu_abd", "find", {}))
    turns = (
        Message("user", "Where?"),
        Message("assistant", "", calls),
        Message("tool", "fog", call_id="toolu_abd"),
    )
    shown = tokenizer.decode(prompts.prompt(turns, TOOLS).token_ids)
    assert '"name": "look", "parameters": {"type": "object", "properties": {"city"' in shown
    assert '<tool_call>{"name": "look", "arguments": {"city": "Bern"}}|call00000</tool_call>' in shown
    assert "fog|call00001<|im_end|>" in shown


def test_a_template_that_shows_no_tools_serves_none(plain: Any) -> None:
    found = parsers(plain)
    with pytest.raises(InvalidRequest, match="chat template has no tools"):
        found.reading(request())
    with pytest.raises(InvalidRequest, match="reasoning_parser"):
        found.reading(request(None, is_thinking=True))
    assert found.reading(request(None)) is None
    assert found.reading(request(None, is_thinking=False)) is None


def test_thinking_that_a_template_cannot_turn_off_is_not_disabled(tokenizer: Any) -> None:
    found = parsers(tokenizer, reasoning_parser="qwen3")
    assert found.reading(request(None, is_thinking=False)) is not None
    always = copy.deepcopy(tokenizer)
    always.chat_template = TEMPLATE.replace("enable_thinking", "m.thinking")
    with pytest.raises(InvalidRequest, match="cannot turn it off"):
        parsers(always, reasoning_parser="qwen3").reading(request(None, is_thinking=False))


def test_a_parser_that_is_none_is_refused_at_the_start(tokenizer: Any) -> None:
    for names in ({"tool_parser": "nonsense"}, {"reasoning_parser": "nonsense"}):
        with pytest.raises(SettingsError, match="nonsense"):
            parsers(tokenizer, **names)


def test_calls_are_read_by_the_parser_of_the_models_family(tokenizer: Any) -> None:
    found = parsers(tokenizer)
    one = read(found, request(), "I look. " + CALL % "Bern" + CALL % "Rome")
    assert (one.text.strip(), one.stop_reason) == ("I look.", "tool_use")
    assert [(call.name, call.input) for call in one.calls] == [("look", {"city": "Bern"}), ("look", {"city": "Rome"})]
    assert one == read(found, request(), "I look. " + CALL % "Bern" + CALL % "Rome")
    assert len({call.id for call in one.calls}) == 2
    single = Tools(offered=TOOLS.offered, is_parallel=False)
    assert len(read(found, request(single), CALL % "Bern" + CALL % "Rome").calls) == 1


def test_what_can_not_be_read_as_calls_stays_text(tokenizer: Any) -> None:
    found = parsers(tokenizer)
    for text in (
        "No call.",
        "<tool_call>{nonsense</tool_call>",
        '<tool_call>{"name": "look", "arguments": 5}</tool_call>',
    ):
        assert read(found, request(), text, "max_tokens") == Choice(text, "max_tokens")


def test_an_answer_over_which_a_parser_stumbles_stays_text(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug of the parser's")

    found = parsers(tokenizer)
    monkeypatch.setattr(found._class, "parse", stumble)
    text = CALL % "Bern"
    assert read(found, request(), text) == Choice(text, "end_turn")


def test_tools_and_a_schema_exclude_each_other(tokenizer: Any) -> None:
    with pytest.raises(InvalidRequest, match="cannot be combined"):
        parsers(tokenizer).reading(request(sampling=Sampling(max_tokens=9, json_schema={})))


def test_thinking_is_told_apart_from_text_and_calls(tokenizer: Any) -> None:
    found = parsers(tokenizer, reasoning_parser="deepseek_r1")
    assert read(found, request(None), "<think>hm</think>yes") == Choice("yes", "end_turn", thinking="hm")
    called = read(found, request(), "hm</think>" + CALL % "Bern")
    assert (called.text, called.thinking, called.calls[0].input) == ("", "hm", {"city": "Bern"})
    cut = read(found, request(None), "hm", "max_tokens")
    assert (cut.text, cut.thinking, cut.stop_reason) == ("", "hm", "max_tokens")
    assert read(found, request(None, is_thinking=False), "yes") == Choice("yes", "end_turn")
    assert found.template_arguments(request(None, is_thinking=False))["enable_thinking"] is False


@pytest.mark.parametrize(
    ("choice", "strict", "is_guided"),
    [("auto", True, True), ("auto", None, False), ("auto", False, False), ("any", None, True), ("any", True, True)],
)
def test_the_schema_of_a_strict_tool_guides_its_call(
    tokenizer: Any, choice: Any, strict: bool | None, is_guided: bool
) -> None:
    tools = Tools(offered=(Tool("look", None, CITY, strict),), choice=choice)
    reading = parsers(tokenizer).reading(request(tools))
    assert reading is not None
    guide = reading.asked.structured_outputs
    assert (guide is not None and '"Bern"' in (guide.structural_tag or str(guide.json))) == is_guided


@pytest.mark.parametrize("choice", ["any", "named"])
def test_tools_that_vllm_cannot_make_a_grammar_of_fail_their_request(tokenizer: Any, choice: Any) -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(150):
        deep = {"type": "object", "properties": {"a": deep}}
    tools = Tools(offered=(Tool("look", None, deep),), choice=choice, name="look" if choice == "named" else None)
    with pytest.raises(InvalidRequest, match=r"^vLLM rejected the tools: "):
        parsers(tokenizer).reading(request(tools))
