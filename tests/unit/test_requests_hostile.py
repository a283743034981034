"""No value of any key breaks what reads requests: each line is read, or rejected with the place of its problem."""

import json
import re
from contextlib import suppress

import pytest

from batchfile.errors import InvalidRequest
from batchfile.testing import EchoEngine
from batchfile.types import Defaults, Request
from docs.pages.requests import MODELS
from tests.helpers.endpoint import request_body
from tests.helpers.lines import find_problems, parse_request
from tests.unit.test_requests import LEAST

pytestmark = pytest.mark.slow

# JSON texts: wrong types, bounds, empty values, and values that are right for one key and read in a way of its own.
VALUES = (
    *("null", "true", "0", "-1", "1.0", "1e400", "123456789012345678901234567890", '""', '"x"', '"\\ud800"'),
    *("[]", "[null]", "[1.0]", '["x"]', "[[]]", "[{}]", "{}", '{"x": 1}', '{"07": 1}', '{"99999999999": 1}'),
    *('{"type": "json_schema"}', '{"format": {"type": "json_schema"}}', '{"type": "disabled", "budget_tokens": 1}'),
    *('[{"role": "assistant", "content": null}]', '[{"role": "user", "content": []}]', '[{"type": "reasoning"}]'),
    *('[{"type": "function_call", "call_id": "c", "name": "n", "arguments": "{"}]', '{"json": "{"}'),
    "[" * 150 + "]" * 150,
)


@pytest.mark.parametrize("place", MODELS)
def test_no_value_of_a_key_breaks_the_reader(place: str) -> None:
    num_read, fields = 0, MODELS[place].model_fields
    engines = [EchoEngine(), EchoEngine(task="embed"), EchoEngine(task="classify")]
    for key in [field.alias or name for name, field in fields.items()]:
        for value in VALUES:
            inside = json.dumps(LEAST[place] | {key: None}).replace(f'"{key}": null', f'"{key}": {value}')
            about = '"params"' if place == "params" else f'"method": "POST", "url": "{place}", "body"'
            line = f'{{"custom_id": "a", {about}: {inside}}}'.encode()
            request = read(line)
            assert bool(find_problems(line)) == isinstance(request, str), line
            if isinstance(request, str):
                assert re.match(r"(params|body)\b", request), line
                continue
            num_read += 1
            assert json.loads(request_body(request, "m", 5)), line
            for engine in engines:
                with suppress(InvalidRequest):
                    engine.prepare(request)
    assert num_read > len(fields) // 2


def read(line: bytes) -> Request | str:
    """The request, or why it is rejected."""
    try:
        return parse_request(line, Defaults())
    except InvalidRequest as error:
        return str(error)
