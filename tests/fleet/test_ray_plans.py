"""What `python -m runners.ray` makes of its command line, and what the launcher does next. No Ray."""

from pathlib import Path

import pytest

from batchfile.errors import SettingsError
from tests.helpers.fleet import (
    Bounds,
    HolderReport,
    HolderState,
    Moves,
    Order,
    PoolPlan,
    holder_name,
    moves,
    order_of,
    read_holder_name,
)
from tests.helpers.fleet import options_parse as parse
from tests.helpers.settings import load_settings

PLAN = PoolPlan(pool="mistral", bounds=Bounds(minimum=1, maximum=4), first_port=9400, idle_exit_s=60)


def order(*arguments: str) -> Order:
    return order_of(parse(["up", *arguments]), load_settings())


def holder(number: int, state: HolderState = "running", plan: PoolPlan = PLAN) -> HolderReport:
    return HolderReport(task=plan.task(number), state=state, host="h", pid=1)


def test_a_pool_that_generates_takes_the_gpus_of_its_settings_and_others_take_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MISTRAL_BASE_URL", "http://127.0.0.1:1/v1")
    llama, mistral = order("--pool", "llama-70b=1..3", "--pool", "mistral=4").plans
    assert (llama.num_gpus, llama.bounds) == (2, Bounds(minimum=1, maximum=3))
    assert (mistral.num_gpus, mistral.bounds) == (0, Bounds(minimum=4, maximum=4))
    (chosen,) = order("--pool", "mistral=1", "--gpus", "mistral=1", "--on", "mistral=l40s").plans
    assert (chosen.num_gpus, chosen.on) == (1, "l40s")


@pytest.mark.parametrize(
    ("given", "store"),
    [("file:/data/store", "/data/store"), ("~/store", "/home/me/store"), ("s3://bucket/store", "s3://bucket/store")],
)
def test_every_node_is_told_the_whole_path_of_a_store(monkeypatch: pytest.MonkeyPatch, given: str, store: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert order("--pool", "mistral=1", "--engine", "echo", "--store", given).store == store


def test_a_runner_above_the_minimum_leaves_when_it_is_idle_and_one_below_stays() -> None:
    assert "--idle-exit" not in PLAN.task(0).arguments
    assert PLAN.task(1).arguments[-4:] == ("--idle-exit", "60", "--slot", "0")


def test_no_two_runners_of_an_order_share_a_port() -> None:
    plans = order("--pool", "mistral=40", "--pool", "llama-70b=40").plans
    told = [plan.task(number).arguments for plan in plans for number in range(40)]
    assert len({words[words.index("--metrics-port") + 1] for words in told}) == 80


def test_what_is_relative_here_is_absolute_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batchfile.toml").write_text('store = "work"\n')
    said = order("--pool", "mistral=1")
    assert (said.store, said.config) == (str(tmp_path / "work"), str(tmp_path / "batchfile.toml"))
    assert said.plans[0].arguments[:4] == ("--store", said.store, "--config", said.config)
    assert order("--pool", "mistral=1", "--store", "s3://b/p").store == "s3://b/p"


@pytest.mark.parametrize("bad", ["mistral", "mistral=", "mistral=-1", "mistral=3..1", "mistral=x", "=3"])
def test_a_number_of_runners_that_is_none_is_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["up", "--pool", bad])
    assert bad in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--pool", "nobody=1"], ["--pool", "mistral=1", "--gpus", "llama-70b=1"]])
def test_a_pool_that_is_not_there_is_refused(words: list[str]) -> None:
    with pytest.raises(SettingsError):
        order(*words)


def test_missing_runners_are_started_from_the_lowest_free_number() -> None:
    assert moves(PLAN, {1: holder(1)}, 3) == Moves(start=[0, 2], stop=[], remove=[])


def test_a_runner_that_is_one_too_many_is_left_alone_and_one_without_a_place_is_given_up() -> None:
    assert moves(PLAN, {0: holder(0), 1: holder(1), 2: holder(2)}, 1) == Moves(start=[], stop=[], remove=[])
    assert moves(PLAN, {0: holder(0), 1: None, 2: None}, 2) == Moves(start=[], stop=[], remove=[2])


def test_one_that_has_ended_is_removed_before_its_number_is_used_again() -> None:
    assert moves(PLAN, {0: holder(0, "ended")}, 1) == Moves(start=[1], stop=[], remove=[0])


def test_a_runner_of_another_plan_is_stopped_and_counts_until_it_has_ended() -> None:
    other = PoolPlan(pool="mistral", bounds=Bounds(minimum=1, maximum=9), arguments=("--store", "elsewhere"))
    assert moves(PLAN, {0: holder(0, plan=other)}, 1) == Moves(start=[], stop=[0], remove=[])
    assert moves(PLAN, {0: holder(0), 7: holder(7)}, 2) == Moves(start=[], stop=[7], remove=[])


def test_a_holders_name_tells_pool_and_number() -> None:
    assert read_holder_name(holder_name("llama-70b", 12)) == ("llama-70b", 12)
    assert read_holder_name("launcher") is None
