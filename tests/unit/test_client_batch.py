"""A batch as the Python API holds it, over a remote that says what a test wants."""

from pathlib import Path
from typing import Any, cast

import pytest

import batchfile
from batchfile.client import batch as module
from batchfile.client.base import Remote
from batchfile.client.results import read_result
from batchfile.errors import ServiceUnavailable
from tests.unit.statuses import status

OPEN = status()
FAILED = status(state="ended", reason="failed", detail="line 1: is not JSON", ended_at=1.0)


class Looks:
    """Answers each look with the next of these, the last one for ever."""

    def __init__(self, *looks: batchfile.BatchStatus | Exception) -> None:
        self._looks = list(looks)

    def batch(self, name: str) -> batchfile.BatchStatus:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    def download(self, batch: batchfile.BatchStatus, file: str) -> None:
        """There are none."""


def held(*looks: batchfile.BatchStatus | Exception) -> batchfile.Batch:
    remote = cast(Remote, Looks(*looks))
    return batchfile.Batch(lambda access: remote, OPEN)


def test_a_batch_that_failed_says_why_instead_of_giving_results(tmp_path: Path) -> None:
    batch = held(FAILED)
    assert batch.wait().reason == "failed"
    for ask in (batch.results, lambda: batch.save(tmp_path / "out.jsonl"), batch.results_size):
        with pytest.raises(batchfile.BatchFailed, match="batch_a ended before any request ran: line 1: is not JSON"):
            ask()
    batch.save_errors(tmp_path / "errors.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["errors.jsonl"]


def test_a_service_that_goes_away_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = held(OPEN, ServiceUnavailable("away"), ServiceUnavailable("away"), FAILED)
    assert [status.state for status in batch.watch(every_s=0.0)] == ["open", "ended"]
    monkeypatch.setattr(module, "AWAY_S_MAX", -1.0)
    with pytest.raises(ServiceUnavailable):
        held(ServiceUnavailable("away")).wait()
    with pytest.raises(batchfile.NotFound):
        held(batchfile.NotFound("no such batch")).wait()


def test_results_have_what_their_lines_have() -> None:
    usage: dict[str, Any] = {"input_tokens": 3, "output_tokens": 2, "cached_tokens": 1}
    line = (
        b'{"custom_id":"a","status":"succeeded","message":{"content":[{"type":"thinking","thinking":"Hm.","signature":""},'
        b'{"type":"text","text":"Ja."},{"type":"tool_use","id":"t1","name":"look","input":{"at":1}}]},'
        b'"stop_reason":"stop_sequence","model":"m","usage":{"input_tokens":3,"output_tokens":2,"cached_tokens":1},'
        b'"error":null,"stop_sequence":"."}'
    )
    result = read_result(line)
    (choice,) = result.choices
    assert (result.text, choice.thinking, choice.stop_reason, choice.stop_sequence) == (
        "Ja.",
        "Hm.",
        "stop_sequence",
        ".",
    )
    assert [(call.id, call.name, call.input) for call in choice.calls] == [("t1", "look", {"at": 1})]
    assert result.usage == batchfile.Usage(**usage)
    untold = read_result(line.replace(b'{"input_tokens":3,"output_tokens":2,"cached_tokens":1}', b"null"))
    assert untold.usage == batchfile.Usage(unknown=1)
    vectors = read_result(
        b'{"custom_id":"a","status":"succeeded","message":null,"stop_reason":null,"model":"m","usage":null,"error":null,'
        b'"kind":"embedding","vectors":[[0.5,1],"AAA=",[[1,2]]],"labels":["a",null]}'
    )
    assert (vectors.vectors, vectors.text) == (((0.5, 1.0), "AAA=", ((1.0, 2.0),)), None)
    assert vectors.labels == ("a", None)
