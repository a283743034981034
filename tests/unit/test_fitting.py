"""Which answers fit a schema, how requests are guided by it, and which schemas are none."""

from typing import Any

import pytest
from msgspec.structs import replace

from batchfile.lines.chat import SEED_MAX
from batchfile.runner.fitting import Fitting, fitting_of, next_try, schema_problem, unguided
from batchfile.words import Choice, Completion, Defaults, Message, Request, Sampling, Tool, ToolCall, Tools, Usage

SUBJECT = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}


def request(*, prefill: str | None = None, **sampling: Any) -> Request:
    messages = (Message("user", "write"),) + (() if prefill is None else (Message("assistant", prefill),))
    return Request(custom_id="r", messages=messages, sampling=Sampling(max_tokens=9, **sampling))


def answer(*texts: str) -> Completion:
    return Completion(choices=tuple(Choice(text, "end_turn") for text in texts), usage=Usage())


@pytest.mark.parametrize(
    ("text", "is_fit"),
    [
        ('{"subject": "hello"}', True),
        (' {"subject": "hello", "more": 1}\n', True),
        ('{"subject": 3}', False),
        ("{}", False),
        ('{"subject": "hel', False),
        ('Sure! {"subject": "hello"}', False),
        ("", False),
        ("NaN", False),
        ("[" * 100_000, False),
        ('{"subject": "\ud800"}', False),
    ],
)
def test_an_answer_is_one_json_text_that_fits(text: str, is_fit: bool) -> None:
    fitting = Fitting(SUBJECT)
    assert fitting.fits(fitting.guide(request()), answer(text)) is is_fit


def test_every_choice_must_fit() -> None:
    good, bad = '{"subject": "a"}', "a"
    assert Fitting(SUBJECT).fits(request(), answer(good, good))
    assert not Fitting(SUBJECT).fits(request(), answer(good, bad))


def test_a_continuation_fits_together_with_its_beginning() -> None:
    begun = request(prefill='{"subject": "')
    assert Fitting(SUBJECT).fits(begun, answer('hello"}'))
    assert not Fitting(SUBJECT).fits(begun, answer('{"subject": "hello"}'))


def test_a_request_without_a_schema_is_guided_by_the_batchs() -> None:
    fitting = Fitting(SUBJECT)
    guided = fitting.guide(request())
    assert guided.sampling.json_schema == SUBJECT
    assert fitting.is_guided(guided)
    assert unguided(guided) == request()


@pytest.mark.parametrize("own", [request(json_schema={}), request(json_schema=dict(SUBJECT)), request(prefill="{")])
def test_a_request_with_its_own_schema_and_a_continuation_stay_as_they_are(own: Request) -> None:
    fitting = Fitting(SUBJECT)
    assert fitting.guide(own) is own
    assert not fitting.is_guided(own)


def test_a_request_with_tools_is_free_to_call_them_and_its_text_is_checked() -> None:
    fitting, tools = Fitting(SUBJECT), Tools(offered=(Tool("look", None, {}),))
    one = replace(request(), tools=tools)
    assert fitting.guide(one) is one
    called = Choice("", "tool_use", calls=(ToolCall("t", "look", {}),))
    assert fitting.fits(one, Completion(choices=(called,), usage=Usage()))
    assert not fitting.fits(one, answer("no JSON"))
    assert fitting.guide(request()).sampling.json_schema == SUBJECT


def test_an_engine_that_refuses_the_schema_is_not_asked_again() -> None:
    fitting = Fitting(SUBJECT)
    assert fitting.guide(request()) != request()
    fitting.fits(unguided(fitting.guide(request())), answer("{}"))
    assert fitting.guide(request()) == request()


@pytest.mark.parametrize(("seed", "then"), [(None, None), (0, 1), (SEED_MAX, 0)])
def test_a_set_seed_is_another_one_in_the_next_attempt(seed: int | None, then: int | None) -> None:
    assert next_try(request(seed=seed)).sampling.seed == then


def test_a_batch_without_a_schema_has_nothing_to_check() -> None:
    assert fitting_of(Defaults()) is None


def test_equal_schemas_are_compiled_once() -> None:
    one, two = Defaults(output_schema=dict(SUBJECT)), Defaults(output_schema=dict(SUBJECT))
    assert fitting_of(one) is fitting_of(two)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objct"}, "objct"),
        ({"properties": 3}, "3 is not of type"),
        ({"pattern": "("}, "regex"),
        ({"$ref": "#/$defs/gone"}, "does not exist"),
        ({"$ref": "https://example.com/other"}, "copy what https://example.com/other names"),
    ],
)
def test_what_is_no_schema_is_told_in_one_line(schema: dict[str, Any], why: str) -> None:
    problem = schema_problem(schema)
    assert problem is not None
    assert why in problem
    assert "\n" not in problem
    assert schema_problem(SUBJECT) is None


def test_with_a_schema_that_can_not_be_compiled_no_answer_fits() -> None:
    assert not Fitting({"type": "objct"}).fits(request(), answer("{}"))


def test_a_pattern_that_backtracks_without_end_is_given_up() -> None:
    """The first is within the bound, the second is not, though it fits after a while."""
    fitting = Fitting({"type": "string", "pattern": r"^(a+)(a+)\1b|^a+$"})
    assert fitting.fits(request(), answer(f'"{"a" * 200}"'))
    assert not fitting.fits(request(), answer(f'"{"a" * 800}"'))
