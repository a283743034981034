"""`--strict` refuses a file for one line that can not run, and says which."""

import pytest

from batchfile.errors import InvalidFile
from batchfile.local.inputs import check_every_line
from batchfile.store.memory import MemoryStore

GOOD = b'{"custom_id":"a","params":{"messages":[{"role":"user","content":"hi"}]}}\n'


def _check(data: bytes) -> None:
    store = MemoryStore()
    store.put("in.jsonl", data)
    check_every_line(store, "in.jsonl", "mine.jsonl")


def test_good_lines_pass() -> None:
    _check(GOOD + b"\n" + GOOD)


def test_the_first_bad_line_and_their_number_are_named() -> None:
    with pytest.raises(InvalidFile, match=r"mine\.jsonl: line 2: is not valid JSON.*2 such lines"):
        _check(GOOD + b"nope\n" + GOOD + b"{}\n")
