"""The options of `batchfile run` and the settings of `[run]` for engines: what they become, and what is refused."""

import inspect
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from batchfile.cli.run_options import run_options
from batchfile.errors import SettingsError
from batchfile.local import engines
from tests.helpers.local import RunOptions
from tests.helpers.settings import load_settings


def parsed(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @click.command()
    @run_options()
    def command(**given: Any) -> None:
        found.update(given)

    done = CliRunner().invoke(command, arguments)
    if done.exit_code:
        raise click.UsageError(done.output)
    return found


def chosen(monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    monkeypatch.setattr(engines, "check_vllm", lambda model, revision: None)
    return dict(engines.choose_engine(load_settings(), RunOptions(model="m", engine="vllm", **options)).arguments)


def test_an_engine_argument_is_json_or_text() -> None:
    given = ["enforce_eager=true", "seed=3", "load_format=dummy", 'hf_overrides={"a": [1]}', "async_scheduling=False"]
    assert parsed(*[word for one in given for word in ("--engine-arg", one)])["engine_arg"] == {
        "enforce_eager": True,
        "seed": 3,
        "load_format": "dummy",
        "hf_overrides": {"a": [1]},
        "async_scheduling": False,
    }
    with pytest.raises(click.UsageError, match="'seed' must be KEY=VALUE"):
        parsed("--engine-arg", "seed")
    with pytest.raises(click.UsageError, match="'seed' is given twice"):
        parsed("--engine-arg", "seed=1", "--engine-arg", "seed=2")


def test_options_become_vllms_arguments_and_override_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_RUN__QUANTIZATION", "awq")
    monkeypatch.setenv("BATCHFILE_RUN__KV_CACHE_DTYPE", "fp8")
    monkeypatch.setenv("BATCHFILE_RUN__ENGINE_ARGS", '{"seed": 1, "enforce_eager": true}')
    arguments = chosen(
        monkeypatch, quantization="fp8", max_num_batched_tokens=64, gpu_memory_utilization=0.5, engine_arg={"seed": 2}
    )
    assert arguments["gpu_memory_utilization"] == 0.5
    assert arguments["engine_args"] == {
        "quantization": "fp8",
        "kv_cache_dtype": "fp8",
        "max_num_batched_tokens": 64,
        "seed": 2,
        "enforce_eager": True,
    }


def test_a_chat_template_is_a_file_that_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    assert chosen(monkeypatch, chat_template=str(file))["chat_template"] == str(file)
    with pytest.raises(SettingsError, match=r"chat_template: nowhere\.jinja: no such file"):
        chosen(monkeypatch, chat_template="nowhere.jinja")


@pytest.mark.parametrize("size", ["0", "many", 0, -1, "1.5"])
def test_a_tensor_parallel_size_is_a_number_or_auto(size: Any) -> None:
    with pytest.raises(SettingsError, match="must be a whole number of at least 1, or auto"):
        RunOptions(tensor_parallel_size=size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"replicas": "2"}, "replicas: '2' must be a whole number"),
        ({"replicas": 2.5}, "replicas: 2.5 must be a whole number"),
        ({"max_num_batched_tokens": True}, "max_num_batched_tokens: True must be a whole number"),
        ({"gpu_memory_utilization": "most"}, "gpu_memory_utilization: 'most' must be a number"),
        ({"replicas": 0}, "replicas: 0 must be at least 1"),
    ],
)
def test_a_number_is_one(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        RunOptions(**options)


@pytest.mark.parametrize(
    "options", [{"gpus": 2}, {"tensor_parallel_size": 2}, {"quantization": "fp8"}, {"engine_arg": {"seed": 1}}]
)
def test_options_of_vllm_are_for_vllm(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"--{next(iter(options)).replace('_', '-')} is for --engine vllm, not for"):
        engines.choose_engine(load_settings(), RunOptions(engine="echo", **options))


def test_replicas_of_an_endpoint_are_refused() -> None:
    options = RunOptions(engine="http", model="m", base_url="http://127.0.0.1:1/v1", replicas=2)
    with pytest.raises(SettingsError, match="use --max-num-seqs for more requests at once"):
        engines.choose_engine(load_settings(), options)


def test_every_setting_of_an_engine_is_an_option_of_a_run() -> None:
    names = set(engines.EngineSettings.model_fields) - {"engine_args"} | {"engine_arg"}
    assert names <= set(inspect.signature(RunOptions).parameters)
