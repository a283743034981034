"""`--strict` rejects a file for one line that cannot run, and says which."""

from pathlib import Path

import pytest

from batchfile import Ledger
from batchfile.errors import InvalidFile
from batchfile.testing import MemoryStore
from tests.helpers.local import RunOptions, inspect, open_batch

GOOD = b'{"custom_id":"a","params":{"messages":[{"role":"user","content":"hi"}]}}\n'
INSIDE = b'{"custom_id":"c","params":{"messages":[],"max_tokens":0}}\n'


def _run(ledger: Ledger, folder: Path, data: bytes) -> int:
    path = str(folder / "mine.jsonl")
    Path(path).write_bytes(data)
    options = RunOptions(input=path, output=str(folder / "out.jsonl"), strict=True)
    return open_batch(ledger, inspect(path), options).batch.total


def test_good_lines_pass(tmp_path: Path) -> None:
    assert _run(Ledger(store=MemoryStore()), tmp_path, GOOD + b"\n" + GOOD.replace(b'"a"', b'"b"')) == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (GOOD + b"nope\n" + GOOD + b"{}\n", r"mine\.jsonl: line 2: is not valid JSON.*2 such lines"),
        (GOOD + b"\n" + INSIDE, r"mine\.jsonl: line 3: params"),
        (GOOD + GOOD, r"mine\.jsonl: line 2: custom_id: 'a' was used on line 1; make it unique; nothing ran"),
        (GOOD + b"nope\n" * 150, "150 such lines"),
    ],
)
def test_the_first_bad_line_and_their_number_are_named_and_nothing_is_left(
    tmp_path: Path, lines: bytes, said: str
) -> None:
    store = MemoryStore()
    with pytest.raises(InvalidFile, match=said):
        _run(Ledger(store=store), tmp_path, lines)
    assert [entry.key for entry in store.list("")] == []
