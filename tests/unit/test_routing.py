"""Which pool a request goes to."""

import pytest

from batchfile.errors import InvalidRequest, SettingsError
from batchfile.routing import check_stage, route
from batchfile.types import RoutingTable

TABLE = RoutingTable(
    stages={"sales_intel": "llama-70b", "subject": "mistral"},
    pools={"mistral": ("mistralai/Mistral-7B", "small"), "llama-70b": ("meta-llama/Llama-3-70B",)},
)
ADAPTED = RoutingTable(pools=TABLE.pools, stages=TABLE.stages, adapters={"sql": "mistral", "polish": "llama-70b"})
ONE = RoutingTable(pools={"only": ("m",)})


@pytest.mark.parametrize(
    ("stage", "hint", "model", "pool"),
    [
        ("subject", "llama-70b", "small", "llama-70b"),  # the hint before all
        ("subject", "meta-llama/Llama-3-70B", None, "llama-70b"),  # a hint may be a model
        (None, "small", None, "mistral"),  # or an alias
        ("sales_intel", None, "small", "llama-70b"),  # a stage before the model
        ("sales_intel", None, "claude-unknown", "llama-70b"),  # which is ignored then
        (None, None, "mistral", "mistral"),  # a model may be a pool
        (None, None, "mistralai/Mistral-7B", "mistral"),
        (None, None, "small", "mistral"),
    ],
)
def test_hint_then_stage_then_model(stage: str | None, hint: str | None, model: str | None, pool: str) -> None:
    assert route(TABLE, stage=stage, hint=hint, model=model) == pool


def test_the_name_of_an_adapter_leads_to_its_pool_as_a_model_and_as_a_hint() -> None:
    assert route(ADAPTED, stage=None, hint=None, model="sql") == "mistral"
    assert route(ADAPTED, stage="subject", hint="polish", model=None) == "llama-70b"
    with pytest.raises(InvalidRequest, match="pools are llama-70b, mistral; adapters are polish, sql"):
        route(ADAPTED, stage=None, hint=None, model="sqll")


def test_the_only_pool_takes_what_names_nothing() -> None:
    assert route(ONE, stage=None, hint=None, model=None) == "only"


def test_everything_takes_all_whatever_they_say() -> None:
    table = RoutingTable(everything="local")
    assert route(table, stage="x", hint="y", model="z") == "local"


@pytest.mark.parametrize(
    ("stage", "hint", "model", "message"),
    [
        ("email", None, None, "stage: 'email' is unknown; use one of sales_intel, subject"),
        (None, "gpt", None, "metadata.model_hint: 'gpt' is not a pool, model or alias; pools are llama-70b, mistral"),
        (None, None, "gpt", "model: 'gpt' is not a pool, model or alias; pools are llama-70b, mistral"),
        (
            None,
            None,
            None,
            "no pool given: set a stage (sales_intel, subject), metadata.model_hint or model (llama-70b, mistral)",
        ),
    ],
)
def test_what_is_unknown_is_named_with_what_exists(
    stage: str | None, hint: str | None, model: str | None, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        route(TABLE, stage=stage, hint=hint, model=model)
    assert str(caught.value) == message


def test_an_unknown_model_is_refused_even_where_there_is_one_pool() -> None:
    with pytest.raises(InvalidRequest):
        route(ONE, stage=None, hint=None, model="gpt")


def test_an_unknown_stage_is_said_with_those_that_there_are() -> None:
    check_stage(TABLE.stages, "subject")
    with pytest.raises(SettingsError, match=r"^stage: 'write' is unknown; use one of sales_intel, subject$"):
        check_stage(TABLE.stages, "write")
    with pytest.raises(SettingsError, match=r"^stage: 'write' is unknown; there are none; add it under \[stages\]$"):
        check_stage({}, "write")
