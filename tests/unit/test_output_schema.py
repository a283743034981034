"""What an answer must fit, what comes of one that does not, and how requests are guided."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from batchfile.errors import InvalidRequest
from batchfile.lines.formats.shared import SEED_MAX
from batchfile.runner import output_schema as rules
from batchfile.runner.output_schema import (
    Demand,
    OutputSchema,
    next_try,
    output_schema_of,
    own_schema,
    unguided,
)
from batchfile.schemas.rules import NOT_JSON, Verdict, judged
from batchfile.types import (
    Choice,
    Completion,
    Defaults,
    Message,
    Request,
    Sampling,
    StopReason,
    Tool,
    ToolCall,
    Tools,
    Usage,
)

SUBJECT = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}
NUMBER = {"type": "integer"}
GOOD = '{"subject": "hello"}'


def fitting_for(schema: dict[str, Any] | None = None) -> OutputSchema:
    return OutputSchema(msgspec.json.encode(SUBJECT if schema is None else schema))


def request(*, prefill: str | None = None, **sampling: Any) -> Request:
    messages = (Message("user", "write"),) + (() if prefill is None else (Message("assistant", prefill),))
    return Request(custom_id="r", messages=messages, sampling=Sampling(max_tokens=9, **sampling))


def answer(*texts: str, reason: StopReason = "end_turn") -> Completion:
    return Completion(choices=tuple(Choice(text, reason) for text in texts), usage=Usage())


def schema_mismatch(asked: Request, completion: Completion, batch: OutputSchema | None = None) -> Demand | None:
    """What the answer does not fit; the same whoever checks it."""
    wanted = rules.demands(asked, completion, own_schema(asked), batch)
    found, judgement = rules.first_mismatch(wanted, rules.judged_here), rules.first_mismatch(wanted, judged)
    assert found is None or found[1].kind == "mismatch"
    assert (found and found[0]) == (judgement and judgement[0])
    return None if found is None else found[0]


def fits(asked: Request, completion: Completion, batch: OutputSchema | None = None) -> bool:
    return schema_mismatch(asked, completion, batch) is None


@pytest.mark.parametrize("reason", ["refusal", "content_filter"])
def test_a_refusal_is_not_checked(reason: StopReason) -> None:
    assert fits(request(json_schema=SUBJECT), answer("I cannot do that.", reason=reason), fitting_for())


def test_every_choice_must_fit() -> None:
    bad = "a"
    assert fits(request(), answer(GOOD, GOOD), fitting_for())
    assert not fits(request(), answer(GOOD, bad), fitting_for())
    assert not fits(request(json_schema=SUBJECT), answer(GOOD, bad))


def test_an_answer_fits_the_schema_of_its_request_and_that_of_its_batch() -> None:
    asked, batch = request(json_schema=NUMBER), fitting_for({"type": ["integer", "string"]})
    assert fits(asked, answer("3"), batch)
    for text, is_own in (('"x"', True), ("[]", True)):
        found = schema_mismatch(asked, answer(text), batch)
        assert found is not None
        assert found.is_own is is_own
    other = schema_mismatch(asked, answer("3"), fitting_for())
    assert other is not None
    assert not other.is_own
    assert fits(request(), answer("any text"))


def test_an_empty_schema_of_a_request_means_any_object() -> None:
    assert fits(request(json_schema={}), answer('{"a": 1}'))
    assert not fits(request(json_schema={}), answer("3"))


def test_a_continuation_fits_together_with_its_beginning_and_its_own_schema_also_without() -> None:
    begun, own = request(prefill='{"subject": "'), request(prefill='{"subject": "', json_schema=SUBJECT)
    assert fits(begun, answer('hello"}'), fitting_for())
    assert not fits(begun, answer(GOOD), fitting_for())
    assert fits(own, answer('hello"}'))
    assert fits(own, answer(GOOD)), "a guide begins anew"
    assert not fits(own, answer("hello"))


def test_a_request_without_a_schema_is_guided_by_the_batchs() -> None:
    output_schema = fitting_for()
    guided = output_schema.guide(request())
    assert guided.sampling.json_schema == SUBJECT
    assert output_schema.is_guided(guided)
    assert unguided(guided) == request()


@pytest.mark.parametrize("own", [request(json_schema={}), request(json_schema=dict(SUBJECT)), request(prefill="{")])
def test_a_request_with_its_own_schema_and_a_continuation_stay_as_they_are(own: Request) -> None:
    output_schema = fitting_for()
    assert output_schema.guide(own) is own
    assert not output_schema.is_guided(own)


def test_a_request_with_tools_is_free_to_call_them_and_its_text_is_checked() -> None:
    output_schema, tools = fitting_for(), Tools(offered=(Tool("look", None, {}),))
    called = Completion(choices=(Choice("", "tool_use", calls=(ToolCall("t", "look", {}),)),), usage=Usage())
    for one, batch in ((request(), output_schema), (request(json_schema=SUBJECT), None)):
        asked = replace(one, tools=tools)
        assert output_schema.guide(asked) is asked
        assert fits(asked, called, batch)
        assert not fits(asked, answer("no JSON"), batch)
    assert output_schema.guide(request()).sampling.json_schema == SUBJECT


def test_an_engine_that_refuses_the_schema_is_not_asked_again() -> None:
    output_schema = fitting_for()
    assert output_schema.guide(request()) != request()
    output_schema.answered(unguided(output_schema.guide(request())))
    assert output_schema.guide(request()) == request()


@pytest.mark.parametrize(("seed", "then"), [(None, None), (0, 1), (SEED_MAX, 0)])
def test_a_set_seed_is_another_one_in_the_next_attempt(seed: int | None, then: int | None) -> None:
    assert next_try(request(seed=seed)).sampling.seed == then


def test_a_batch_and_a_request_without_a_schema_have_nothing_to_check() -> None:
    assert output_schema_of(Defaults()) is None
    assert own_schema(request()) is None


def test_equal_schemas_are_one() -> None:
    one, two = Defaults(output_schema=dict(SUBJECT)), Defaults(output_schema=dict(SUBJECT))
    assert output_schema_of(one) is output_schema_of(two)


def test_a_schema_that_cannot_be_written_is_refused_in_our_words() -> None:
    schema: dict[str, Any] = {}
    for _ in range(50_000):
        schema = {"not": schema}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        own_schema(request(json_schema=schema))


OWN, BATCHS = Demand(b"{}", (), True), Demand(b"{}", (), False)
FAILURES = [
    (OWN, Verdict("mismatch", "answer.a does not fit properties/a/type"), "model_error", "answer.a does not fit"),
    (OWN, Verdict("mismatch", NOT_JSON), "model_error", "failed: the answer is not JSON (the request's"),
    (OWN, Verdict("unusable", '3 is not of type "object"'), "invalid_request_error", "cannot be checked against the"),
    (OWN, Verdict("unknown", "takes more than 1 s"), "invalid_request_error", "schema takes more than 1 s. Make"),
    (BATCHS, Verdict("unknown", "takes more than 1 s"), "model_error", "against its stage's JSON schema takes more"),
    (BATCHS, Verdict("mismatch", "x"), "model_error", "Output validation failed"),
    (BATCHS, Verdict("unusable", "x"), "model_error", "Output validation failed"),
]


@pytest.mark.parametrize(("demand", "verdict", "code", "words"), FAILURES)
def test_what_a_request_ends_with_whose_answer_does_not_fit(
    demand: Demand, verdict: Verdict, code: str, words: str
) -> None:
    failure = rules.failure_of(demand, verdict, answer("x"))
    assert failure.type == code
    assert words in failure.message


def test_an_answer_that_was_cut_off_says_so() -> None:
    failure = rules.failure_of(OWN, Verdict("mismatch", NOT_JSON), answer('{"a', reason="max_tokens"))
    assert failure.message == "Output validation failed: the answer ends at max_tokens. Raise max_tokens."
    failure = rules.failure_of(OWN, Verdict("mismatch", "answer.a does not"), answer("{}", reason="max_tokens"))
    assert "answer.a does not" in failure.message
