"""The check of a file: many processes say what one says."""

import json
import os
from pathlib import Path

import pytest

import batchfile.local.check as check_module
from batchfile.errors import InvalidRequest
from batchfile.local.check import FileCheck, Rules, token_problems
from batchfile.types import Defaults, Request
from tests.helpers.local import inspect

GOOD = '{"custom_id":"r%d","params":{"messages":[{"role":"user","content":"%s"}],"max_tokens":%d}}'


def _lines() -> list[str]:
    lines = [GOOD % (n, "x" * (n % 97), 1 + n % 5) for n in range(3000)]
    lines[5] = ""
    lines[700] = "not JSON"
    lines[1500] = lines[3]
    lines[2200] = lines[3]
    lines[2800] = json.dumps({"custom_id": "o", "method": "POST", "url": "/v1/chat/completions", "body": {}})
    return lines


def test_processes_find_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(_lines()))
    alone = FileCheck(inspect(str(path)), Rules())
    want = list(alone.problems())
    assert {problem.line for problem in want} == {701, 1501, 2201, 2801}
    monkeypatch.setattr(check_module, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(check_module, "BIG_BYTES", 0)
    together = FileCheck(inspect(str(path)), Rules())
    assert list(together.problems()) == want
    assert together.summary == alone.summary


def test_a_byte_order_mark_is_skipped_at_the_start_of_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join("\ufeff" + GOOD % (n, "x", 1) + "\n" for n in range(50)))
    monkeypatch.setattr(check_module, "PIECE_BYTES", 1_000)
    monkeypatch.setattr(check_module, "BIG_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert list(FileCheck(inspect(str(path)), Rules()).problems()) == []


def test_a_request_that_does_not_fit_the_model_is_found_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(GOOD % (n, "x" * n, 1) for n in range(5)))

    def fit(request: Request) -> None:
        if len(request.messages[0].content) > 3:
            raise InvalidRequest("too long")

    (problem,) = token_problems(inspect(str(path)), Defaults(), fit)
    assert (problem.line, problem.custom_id, problem.message) == (5, "r4", "too long")
