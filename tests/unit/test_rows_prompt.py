"""A row becomes a request: templates, columns, ids."""

import json
from typing import Any

import pytest

from batchfile.errors import InvalidFile, InvalidRequest, SettingsError
from batchfile.lines.framing import iter_lines
from batchfile.rows.prompt import AnswerColumns, RowPrompt, request_lines
from batchfile.types import Defaults, Request
from tests.helpers.lines import Row, parse_request

SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}, "stars": {"type": "integer"}}}


def request(prompt: RowPrompt, values: dict[str, Any], number: int = 1) -> Request:
    return parse_request(prompt.request_line(Row(1, values), number), Defaults())


def text_of(prompt: RowPrompt, values: dict[str, Any]) -> str:
    return request(prompt, values).messages[-1].content


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("Hi {{ name }}!", {"name": "Jo"}, "Hi Jo!"),
        ('{{ row["Full Text"] }} {{ row.a }}', {"Full Text": "x", "a": 1}, "x 1"),
        ("{{ a }}|{{ b }}|{{ c }}|{{ d }}", {"a": None, "b": True, "c": [1, "é"], "d": 2.5}, '|true|[1, "é"]|2.5'),
        ("{{ about.size }}{% for tag in tags %}-{{ tag }}{% endfor %}", {"about": {"size": 3}, "tags": ["x"]}, "3-x"),
        ("{{ row }}", {"row": "a column wins"}, "a column wins"),
        ("{{ range }}", {"range": "no global is in the way"}, "no global is in the way"),
        ("<{{ a }}>", {"a": "<b>&"}, "<<b>&>"),
        ("{{ a }}", {"a": "{{ 7 * 7 }}"}, "{{ 7 * 7 }}"),
    ],
)
def test_a_template_is_rendered_over_the_columns(template: str, values: dict[str, Any], text: str) -> None:
    prompt = RowPrompt(prompt=template)
    prompt.check("a.csv", tuple(values))
    assert text_of(prompt, values) == text


@pytest.mark.parametrize(
    ("template", "missing"),
    [("{{ revew }}", "revew"), ('{{ row["x"] }}', "x"), ("{{ row.y }}", "y"), ("{% if z %}a{% endif %}", "z")],
)
def test_a_column_that_does_not_exist_is_found_before_the_run(template: str, missing: str) -> None:
    with pytest.raises(
        InvalidFile, match=f"has no column '{missing}', which --prompt uses; its columns are id, review"
    ):
        RowPrompt(prompt=template).check("a.csv", ("id", "review"))


def test_a_misspelled_column_is_suggested() -> None:
    with pytest.raises(InvalidFile, match="did you mean review"):
        RowPrompt(prompt="{{ revew }}").check("a.csv", ("id", "review"))
    with pytest.raises(InvalidFile, match=r"has no column 'ID'.* did you mean id"):
        RowPrompt(prompt="x", id_column="ID").check("a.csv", ("id", "review"))


@pytest.mark.parametrize("template", ["{% if %}", "{{ a|nope }}", "{{ a", "{% include 'x' %}{% endif %}"])
def test_a_wrong_template_is_a_setting(template: str) -> None:
    with pytest.raises(SettingsError, match="--prompt: line 1: "):
        RowPrompt(prompt=template)


@pytest.mark.parametrize(
    ("template", "values", "reason"),
    [
        ("{{ a }}", {"a": " \n"}, "the prompt is empty"),
        ("{{ a }}", {"b": 1}, "--prompt: 'a' is undefined"),
        ("{{ 1 / a }}", {"a": 0}, "--prompt: division by zero"),
        ("{{ a.__class__.__mro__ }}", {"a": "x"}, "unsafe"),
        ("{{ a.append(1) }}x", {"a": []}, "unsafe"),
    ],
)
def test_a_row_that_cannot_be_rendered_fails_alone(template: str, values: dict[str, Any], reason: str) -> None:
    line = RowPrompt(prompt=template).request_line(Row(1, values), 1)
    assert json.loads(line)["metadata"] == {"row": values}
    with pytest.raises(InvalidRequest, match=reason):
        parse_request(line, Defaults())


def test_a_column_is_the_prompt_with_its_parameters() -> None:
    found = request(
        RowPrompt(), {"prompt": "Hi", "system": "S", "max_tokens": "7", "temperature": "0.5", "seed": "", "x": 1}
    )
    assert [(turn.role, turn.content) for turn in found.messages] == [("system", "S"), ("user", "Hi")]
    assert (found.sampling.max_tokens, found.sampling.temperature, found.sampling.seed) == (7, 0.5, None)
    turns = [{"role": "user", "content": "Hi"}]
    assert text_of(RowPrompt(), {"messages": turns}) == text_of(RowPrompt(), {"messages": json.dumps(turns)}) == "Hi"
    assert text_of(RowPrompt(system="{{ a }}"), {"prompt": "Hi", "a": 1}) == "Hi"


@pytest.mark.parametrize("values", [{"prompt": ""}, {"prompt": None}, {"other": 1}, {"messages": []}])
def test_a_row_without_a_prompt_fails_alone(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="the prompt is empty"):
        request(RowPrompt(), values)


def test_a_column_that_would_be_dropped_in_silence_is_rejected() -> None:
    with pytest.raises(InvalidFile, match="column response_format"):
        RowPrompt().check("a.csv", ("prompt", "response_format"))
    with pytest.raises(InvalidFile, match="both columns"):
        RowPrompt().check("a.csv", ("prompt", "messages"))
    RowPrompt(prompt="{{ prompt }}").check("a.csv", ("prompt", "messages", "response_format"))


@pytest.mark.parametrize(
    ("values", "column", "custom_id"),
    [
        ({"custom_id": "c", "id": 1}, None, "c"),
        ({"id": 17}, None, "17"),
        ({"id": 17.0}, None, "17"),
        ({"id": ""}, None, "row-000007"),
        ({"id": None, "a": 1}, None, "row-000007"),
        ({"a": 1}, None, "row-000007"),
        ({"id": 1, "key": "k"}, "key", "k"),
    ],
)
def test_the_id_of_a_row(values: dict[str, Any], column: str | None, custom_id: str) -> None:
    assert request(RowPrompt(prompt="x", id_column=column), values, 7).custom_id == custom_id


@pytest.mark.parametrize(
    ("value", "reason"), [("", "is empty"), ([1], "must be text or a whole number"), (1.5, "must be")]
)
def test_a_value_that_is_no_id_fails_its_row(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=f"key: {reason}"):
        request(RowPrompt(prompt="x", id_column="key"), {"key": value})


def test_choices_and_schemas_guide_the_answer() -> None:
    chosen = request(RowPrompt(prompt="x", choices=("good", "bad"), into="label"), {})
    assert (chosen.sampling.json_schema or {})["properties"] == {"label": {"type": "string", "enum": ["good", "bad"]}}
    assert request(RowPrompt(prompt="x", schema=SCHEMA), {}).sampling.json_schema == SCHEMA
    with pytest.raises(SettingsError, match="cannot be combined"):
        RowPrompt(choices=("a",), schema=SCHEMA)
    with pytest.raises(SettingsError, match=r'^--schema: is not a valid JSON schema: properties/a/type: "nope" is not'):
        RowPrompt(schema={"properties": {"a": {"type": "nope"}}})
    with pytest.raises(SettingsError, match=r'^schema: is not a valid JSON schema: pattern: "\(" is not a "regex"$'):
        RowPrompt(schema={"pattern": "("}, is_command=False)
    with pytest.raises(SettingsError, match=r"different and not empty, got '[^']+'"):
        RowPrompt(choices=("a", ""))


@pytest.mark.parametrize(
    ("prompt", "added"),
    [
        (RowPrompt(), ("answer", "error")),
        (RowPrompt(into="label", choices=("a", "b")), ("label", "error")),
        (RowPrompt(schema=SCHEMA), ("label", "stars", "error")),
        (RowPrompt(schema=SCHEMA, into="all"), ("all", "error")),
        (RowPrompt(schema={"type": "array"}), ("answer", "error")),
    ],
)
def test_the_columns_that_are_added(prompt: RowPrompt, added: tuple[str, ...]) -> None:
    assert prompt.columns("a.csv", ["id"]).added == added


def test_an_added_column_never_replaces_one_of_the_rows() -> None:
    with pytest.raises(InvalidFile, match=r"has a column 'answer' already; .*--into"):
        RowPrompt().columns("a.csv", ["answer"])
    assert RowPrompt().columns("a.csv", ["error"]) == AnswerColumns(error="answer_error")


@pytest.mark.parametrize(
    ("prompt", "used"),
    [
        (RowPrompt(prompt="{{ b }} {{ row.c }}"), "bc"),
        (RowPrompt(prompt="{{ b }}", system='{{ row["a"] }}', id_column="d"), "abd"),
        (RowPrompt(prompt="Hi"), ""),
        (RowPrompt(prompt="{{ row }} {{ row.a }}"), "abcd"),
        (RowPrompt(prompt="{% set all = row %}{{ all.a }}"), "abcd"),
        (RowPrompt(prompt="{{ row[b] }}"), "abcd"),
    ],
)
def test_the_columns_that_requests_depend_on(prompt: RowPrompt, used: str) -> None:
    assert prompt.used("abcd") == tuple(used)
    assert RowPrompt().used(["a", "prompt", "system", "max_tokens"]) == ("prompt", "system", "max_tokens")


def test_numbered_rows_and_messages_for_python() -> None:
    prompt = RowPrompt(prompt="{{ b }}", is_numbered=True, is_command=False)
    assert request(prompt, {"id": 5, "b": "x"}, 7).custom_id == "row-000007"
    with pytest.raises(InvalidFile, match="has no column 'b', which prompt uses"):
        prompt.check("the table", ("id",))
    with pytest.raises(InvalidRequest, match=r"^prompt: 'b' is undefined"):
        request(prompt, {})
    assert RowPrompt(into="error").columns("a.csv", ["id"]).error == "error_error"


def test_requests_are_on_the_lines_of_their_rows() -> None:
    rows = [Row(2, {"a": 1}), Row(5, {"a": 2}), Row(6, {}, "broken"), Row(9, {"a": 3})]
    lines = [*iter_lines(request_lines(rows, RowPrompt(prompt="{{ a }}")))]
    assert [line.row for line in lines] == [2, 5, 6, 9]
    assert [json.loads(line.data or b"")["custom_id"] for line in lines] == [f"row-00000{n}" for n in (1, 2, 3, 4)]


def test_a_column_with_spaces_in_its_name_is_shown_as_a_template_takes_it() -> None:
    with pytest.raises(SettingsError, match=r"got 'No'; for a column whose .* write {{ row\[\"Order No\"\] }}$"):
        RowPrompt(prompt="Where is {{ Order No }}?")
    with pytest.raises(SettingsError, match=r"end of print statement'$"):
        RowPrompt(prompt="Where is {{ order")


def test_a_template_without_columns_is_the_same_for_every_row() -> None:
    assert RowPrompt(prompt="Is it good? review").is_constant
    assert not RowPrompt(prompt="Is it good?", system="About {{ review }}").is_constant
    assert not RowPrompt(prompt="Is it good? {{ row }}").is_constant
    assert not RowPrompt().is_constant
