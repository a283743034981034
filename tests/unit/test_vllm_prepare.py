"""What code of others raises about one request or one answer is about that one: the run goes on."""

from collections.abc import Callable
from typing import Any

import pytest

from batchfile.engine.base import Prepared, SchemaUnchecked
from batchfile.engine.vllm.engine import VllmEngine, _InFlight
from batchfile.errors import EngineDead, InvalidRequest
from batchfile.types import Failure
from tests.unit.test_requests import parsed


class Work:
    def __init__(self, does: Callable[[], Any]) -> None:
        self._does = does

    def prepare(self, request: Any) -> Any:
        return self._does()

    def outcome(self, outputs: Any, prepared: Any) -> Any:
        return self._does()


def engine(does: Callable[[], Any]) -> VllmEngine:
    made = VllmEngine.__new__(VllmEngine)
    made._work = Work(does)  # type: ignore[assignment]
    return made


def raises(error: Exception) -> Callable[..., Any]:
    def does(*_: object) -> Any:
        raise error

    return does


REQUEST = parsed("params", {})


@pytest.mark.parametrize("error", [RuntimeError("depth"), RecursionError("depth"), OverflowError("depth")])
def test_an_unforeseen_error_rejects_the_request(error: Exception) -> None:
    told = rf"^vLLM cannot prepare this request: {type(error).__name__}: depth\. See the runner's log\.$"
    with pytest.raises(InvalidRequest, match=told):
        engine(raises(error)).prepare(REQUEST)
    unchecked = SchemaUnchecked(raises(error))
    with pytest.raises(SchemaUnchecked) as found:
        engine(raises(unchecked)).prepare(REQUEST)
    with pytest.raises(InvalidRequest, match=told):
        found.value.finish("owner")


@pytest.mark.parametrize("error", [InvalidRequest("no"), EngineDead("gone")])
def test_errors_with_a_meaning_keep_it(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        engine(raises(error)).prepare(REQUEST)
    unchecked = SchemaUnchecked(lambda owner: Prepared(model=owner))
    with pytest.raises(SchemaUnchecked) as found:
        engine(raises(unchecked)).prepare(REQUEST)
    assert found.value.finish("owner").model == "owner"


def test_an_answer_that_cannot_be_read_fails_alone() -> None:
    prepared: Any = Prepared()
    failed = engine(raises(KeyError("token")))._outcome(_InFlight(prepared, ["0.0"], {"0.0": None}))
    told = "vLLM's answer cannot be read: KeyError: 'token'. See the runner's log."
    assert failed == Failure(type="model_error", message=told)
