"""The pools of a worker and the devices of each; what their settings become for vLLM."""

from pathlib import Path

import pytest
from pydantic import JsonValue

from batchfile.engine.vllm.arguments import check_engine_arguments, known_arguments
from batchfile.errors import SettingsError
from batchfile.machine import choice
from batchfile.machine.devices import Device
from batchfile.machine.model_memory import ModelMemory
from runners.supervisor import slot_plans
from tests.helpers.fleet import parse
from tests.helpers.settings import PoolSettings, load_settings

GIB = 1024**3
GPUS = [Device(index=str(n), kind="cuda", name="A100", memory_bytes=80 * GIB, free_bytes=80 * GIB) for n in range(8)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight of them, and models that are not on this machine."""
    monkeypatch.setattr(choice, "visible_devices", lambda: GPUS)
    monkeypatch.setattr(choice, "read_model_memory", lambda model, **_: None)
    monkeypatch.chdir(tmp_path)


def shown(*arguments: str) -> list[tuple[str, str]]:
    """The pool and the GPUs of each process."""
    plans = slot_plans(load_settings(), parse(list(arguments)))
    for number, plan in enumerate(plans):
        assert list(plan.command)[-4:] == ["--slot", str(number), "--of", plan.group]
    return [(plan.group, plan.environ["CUDA_VISIBLE_DEVICES"]) for plan in plans]


@pytest.mark.usefixtures("gpus")
def test_each_pool_gets_the_gpus_that_it_names() -> None:
    assert shown("--pool", "mistral=0-1", "--pool", "llama-70b=4-7") == [
        ("mistral", "0"),
        ("mistral", "1"),
        ("llama-70b", "4,5"),
        ("llama-70b", "6,7"),
    ]
    assert shown("--pool", "mistral=5") == [("mistral", "5")]
    assert len(shown("--pool", "mistral")) == 8
    assert len(shown("--pool", "mistral", "--slots", "3")) == 3


@pytest.mark.usefixtures("gpus")
def test_engine_arguments_decide_on_devices_as_the_settings_that_they_override(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def memory_of(model: str, **given: object) -> ModelMemory:
        asked.append(given)
        return ModelMemory(14_500_000_000, 131_072, 32, 8, 32_768, 7_110_000_000)

    def shape(**arguments: JsonValue) -> tuple[int, int]:
        pool = PoolSettings(model="m", tensor_parallel_size="auto", dtype="bfloat16", engine_args=arguments)
        layout = choice.layout_for(pool, "m", revision=None, max_model_len=None)
        return len(layout.replicas), layout.tensor_parallel_size

    monkeypatch.setattr(choice, "read_model_memory", memory_of)
    assert shape(dtype="float32", quantization="fp8", kv_cache_dtype="fp8") == (8, 1)
    assert asked == [{"revision": None, "dtype": "float32", "quantization": "fp8", "kv_cache_dtype": "fp8"}]
    assert shape(max_model_len=1_000_000) == (4, 2)
    assert shape(gpu_memory_utilization=0.2) == (4, 2)
    with pytest.raises(SettingsError, match="gpu_memory_utilization: 'most' must be a number"):
        shape(gpu_memory_utilization="most")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("value", "words"), [(0, "0, is GPU 0 alone"), ("", "names no GPU")])
def test_no_gpus_are_not_all_gpus(value: int | str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        choice.layout_for(PoolSettings(model="m", gpus=value), "m", revision=None, max_model_len=None)


@pytest.mark.usefixtures("gpus")
def test_two_pools_cannot_have_the_same_gpu() -> None:
    for pools in (["mistral", "llama-70b"], ["mistral=0-4", "llama-70b=4-7"]):
        with pytest.raises(SettingsError, match=r"pool mistral has GPU \d already; give each pool GPUs of its own"):
            shown(*[word for pool in pools for word in ("--pool", pool)])


@pytest.mark.usefixtures("gpus")
def test_an_error_of_one_of_several_pools_says_which() -> None:
    with pytest.raises(SettingsError, match="--pool llama-70b: gpus: 7-8: 8 is not a visible GPU"):
        shown("--pool", "mistral=0-3", "--pool", "llama-70b=7-8")


@pytest.mark.parametrize("value", ["[0, 1]", "true", "1.5"])
def test_gpus_of_another_type_are_refused_with_one_message(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, words in (("gpus", "all, their number, or a list in quotes"), ("tensor_parallel_size", "a whole number")):
        (tmp_path / "batchfile.toml").write_text(f"[run]\n{key} = {value}\n")
        with pytest.raises(SettingsError, match=rf"run\.{key} .*must be {words}") as caught:
            load_settings()
        assert str(caught.value).count("must be") == 1


def test_an_engine_without_gpus_gets_none() -> None:
    with pytest.raises(SettingsError, match="the echo engine uses no GPU; use --pool mistral"):
        slot_plans(load_settings(), parse(["--pool", "mistral=0-3", "--engine", "echo"]))
    [plan] = slot_plans(load_settings(), parse(["--pool", "mistral", "--engine", "echo"]))
    assert "CUDA_VISIBLE_DEVICES" not in plan.environ


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pool", "a", "--pool", "a=1"], "--pool a is given twice"),
        (["--pool", "a="], "'a=' is not valid; use NAME, or NAME=GPUS such as mistral=0-3"),
    ],
)
def test_pools_that_make_no_sense_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert words in capsys.readouterr().err


def test_settings_become_vllms_arguments_and_further_ones_override_them() -> None:
    pool = PoolSettings(model="m", dtype="float16", quantization="fp8", engine_args={"dtype": "auto", "seed": 3})
    assert pool.vllm_arguments == {"dtype": "auto", "quantization": "fp8", "seed": 3}
    assert PoolSettings(model="m", pipeline_parallel_size=2).vllm_arguments == {"pipeline_parallel_size": 2}


def test_a_process_with_the_gpus_of_one_replica_knows_its_size() -> None:
    auto = PoolSettings(model="m", tensor_parallel_size="auto")
    assert choice.tensor_parallel_size(auto, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}) == 4
    assert choice.tensor_parallel_size(auto, {}) == 1
    halves = auto.model_copy(update={"pipeline_parallel_size": 2})
    assert choice.tensor_parallel_size(halves, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}) == 2
    assert choice.tensor_parallel_size(PoolSettings(model="m", tensor_parallel_size="2"), {}) == 2


def test_a_size_that_is_neither_a_number_nor_auto_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_RUN__TENSOR_PARALLEL_SIZE", "many")
    with pytest.raises(
        SettingsError, match=r"run.tensor_parallel_size = 'many' .*a whole number of at least 1, or auto"
    ):
        load_settings()


def test_an_argument_that_vllm_does_not_have_is_named_with_the_nearest() -> None:
    if not known_arguments():
        pytest.skip("vLLM is not installed")
    check_engine_arguments({"enforce_eager": True, "max_num_batched_tokens": 64, "max_model_len": None})
    with pytest.raises(
        SettingsError, match=r"enforce_eger: the installed vLLM has no such argument; did you mean enforce"
    ):
        check_engine_arguments({"enforce_eger": 1})
    with pytest.raises(SettingsError, match="see the engine arguments in vLLM's documentation"):
        check_engine_arguments({"qqq": 1})
    with pytest.raises(SettingsError, match="data_parallel_size: set replicas instead"):
        check_engine_arguments({"data_parallel_size": 1})
    with pytest.raises(SettingsError, match="model: set model instead, which is also checked and stands in receipts"):
        check_engine_arguments({"model": 1})
    for name, value, words in (
        ("max_num_seqs", "abc", "'abc' must be a whole number"),
        ("max_num_seqs", True, "True must be a whole number"),
        ("enforce_eager", "maybe", "'maybe' must be true or false"),
        ("gpu_memory_utilization", "x", "'x' must be a number"),
    ):
        with pytest.raises(SettingsError, match=f"engine argument {name}: {words}"):
            check_engine_arguments({name: value})
