"""Our own reading of JSON's grammar agrees with parsers on what is JSON, and says where and why something is not."""

import json
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.lines import json_scan
from batchfile.lines.json_scan import find_fault, longest_number, nesting, value_end

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('{}[],:"\\\n\u2028é😀\x7f'))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=30,
)
STYLE: Any = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":"), "ensure_ascii": False}])
TOKENS = (
    r"""{ } [ ] , : " \ \u12 \x 0 1 - . e + tru true null NaN -Infinity True ' [[[[[[ ]]]]]] {"a":{"b":{"c":{"d":{"""
)
PIECES = st.sampled_from(["", " ", "\t", "\x00", "\x0b", "\xa0", "é", "\ufeff", *TOKENS.split()])


def is_json(text: str) -> bool:
    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


@given(VALUE, STYLE, st.data(), st.sampled_from([json_scan.PIECE_BYTES, 1, 9]))
def test_it_agrees_with_a_parser_on_what_is_json(value: Any, style: Any, data: st.DataObject, piece: int) -> None:
    text = json.dumps(value, **style)
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(PIECES) + text[start + data.draw(st.integers(0, 2)) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "PIECE_BYTES", piece)
        fault = find_fault(text.encode())
    assert (fault is None) == is_json(text), text
    if fault is not None:
        assert 0 <= fault.at <= len(text.encode())
        assert fault.reason
        assert fault.fix


@given(VALUE, STYLE, st.data(), st.sampled_from([json_scan.PIECE_BYTES, 1, 9]))
def test_a_value_ends_where_a_parser_ends_it(value: Any, style: Any, data: st.DataObject, piece: int) -> None:
    text = json.dumps(value, **style).encode()
    after = data.draw(st.sampled_from([b"", b" ", b",1", b"]", b"}", b"\n,{"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "PIECE_BYTES", piece)
        assert value_end(b"[" + text + after, 1, 1 + len(text + after)) == 1 + len(text)


@given(st.dictionaries(TEXT, VALUE, min_size=1, max_size=3), STYLE, st.data())
def test_what_was_cut_off_ends_too_early(value: Any, style: Any, data: st.DataObject) -> None:
    text = json.dumps(value, **style).encode()
    stop = data.draw(st.integers(0, len(text) - 1))
    fault = find_fault(text[:stop])
    assert fault is not None
    assert fault.is_cut


@given(VALUE, st.binary(max_size=4), st.data())
def test_bytes_that_are_not_utf8_pass_in_strings_and_nowhere_else(
    value: Any, foreign: bytes, data: st.DataObject
) -> None:
    foreign = bytes(byte | 0x80 for byte in foreign)
    text = json.dumps([value, "here"]).encode()
    assert find_fault(text.replace(b"here", foreign)) is None
    fault = find_fault(foreign + text)
    assert (fault.at if fault else None) == (0 if foreign else None)


def test_depth_has_no_bound_and_costs_no_stack() -> None:
    deep = b'{"a":[' * 50_000 + b"]}" * 50_000
    assert find_fault(deep) is None
    assert nesting(deep) == 100_000
    fault = find_fault(deep[:-1])
    assert fault is not None
    assert (fault.at, fault.is_cut) == (len(deep) - 1, True)


def test_each_byte_is_looked_at_a_few_times_however_the_containers_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in containers that are entered: no more than there are."""
    text = b"[" + b",".join([b'[[[[[["a"],1],2],3],4],5]'] * 200) + b"]"
    monkeypatch.setattr(json_scan, "STEPS_MAX", text.count(b"[") + text.count(b","))
    assert find_fault(text) is None
    monkeypatch.setattr(json_scan, "STEPS_MAX", 100)
    fault = find_fault(text)
    assert fault is not None
    assert "too many lists" in fault.reason


@given(VALUE)
def test_nesting_and_digits_are_counted_outside_of_strings(value: Any) -> None:
    def depth(found: Any) -> int:
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    assert nesting(json.dumps(value).encode()) == depth(value)
    assert longest_number(json.dumps({"9" * 50: ["7" * 70, 123, -4.5e6]}).encode()) == 7
