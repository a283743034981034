"""What decides the answers of an engine is known before it is loaded, and changes with whatever changes an answer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchfile.engine.vllm import identity as vllm_identity
from batchfile.testing import EchoEngine
from tests.helpers.engine import EngineIdentity, engine_factory

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the data type depends on the machine."""
    monkeypatch.setattr(vllm_identity, "is_cpu_build", lambda: False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("[]")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def identity(model: object, **options: Any) -> EngineIdentity | None:
    return engine_factory("vllm", model=str(model), **options).identity()


def fingerprint(model: object, **options: Any) -> str:
    found = identity(model, **options)
    assert found is not None
    return found.fingerprint


def _touch(path: Path) -> None:
    os.utime(path / "model.safetensors", (1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "config.json").write_text('{"a": 1}'),
        lambda path: (path / "tokenizer.json").write_text("[1]"),
        lambda path: (path / "chat_template.jinja").write_text("{{ tools }}"),
        lambda path: (path / "generation_config.json").write_text("{}"),
        lambda path: (path / "model.safetensors").write_bytes(b"other weights"),
        lambda path: (path / "model.safetensors").rename(path / "more.safetensors"),
        _touch,
    ],
)
def test_a_change_of_the_models_files_is_another_identity(folder: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    change(folder)
    assert fingerprint(folder) != before


def test_where_a_model_lies_and_its_notes_do_not_matter(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "README.md").write_text("# A model")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "etag").write_text("1")
    assert fingerprint(folder.rename(folder.with_name("moved"))) == before


def test_a_snapshot_of_a_hub_is_its_commit(tmp_path: Path) -> None:
    path = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    path.mkdir(parents=True)
    found = identity(path)
    assert found is not None
    assert found.parts["the model"] == f"commit {COMMIT}"


@pytest.mark.parametrize(
    "options",
    [
        {"tool_parser": "hermes"},
        {"reasoning_parser": "qwen3"},
        {"max_model_len": 512},
        {"task": "embed"},
        {"parse_control_tokens": True},
        {"engine_args": {"dtype": "float16"}},
        {"engine_args": {"quantization": "fp8"}},
        {"engine_args": {"kv_cache_dtype": "fp8"}},
        {"engine_args": {"hf_overrides": {"rope_scaling": None}}},
    ],
)
def test_an_option_that_changes_answers_is_another_identity(folder: Path, options: dict[str, Any]) -> None:
    assert fingerprint(folder, **options) != fingerprint(folder)


def test_the_files_of_an_adapter_and_its_name_count(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    before = fingerprint(folder, lora={"polish": str(adapter)})
    assert before not in {fingerprint(folder), fingerprint(folder, lora={"sql": str(adapter)})}
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    config_changed = fingerprint(folder, lora={"polish": str(adapter)})
    (adapter / "adapter_model.safetensors").write_bytes(b"other weights")
    assert len({before, config_changed, fingerprint(folder, lora={"polish": str(adapter)})}) == 3
    assert identity(folder, lora={"polish": "/no/such/folder"}) is None


def test_the_revisions_of_a_model_and_of_an_adapter_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {None: COMMIT, "v1": COMMIT, "v2": COMMIT[::-1]}

    def cached(model: str, revision: str | None) -> Path | None:
        return tmp_path / "snapshots" / commits[revision] / "config.json" if revision in commits else None

    monkeypatch.setattr(vllm_identity, "cached_config", cached)
    model = "owner/name"
    assert fingerprint(model) == fingerprint(model, revision="v1") != fingerprint(model, revision="v2")
    assert identity(model, revision="v3") is None
    one, other = fingerprint(folder, lora={"a": model}), fingerprint(folder, lora={"a": f"{model}@v2"})
    assert fingerprint(folder, lora={"a": f"{model}@v1"}) == one != other
    assert identity(folder, lora={"a": f"{model}@v3"}) is None


def test_the_content_of_a_chat_template_counts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("one")
    before = fingerprint(folder, chat_template=str(path))
    path.write_text("two")
    assert fingerprint(folder, chat_template=str(path)) != before != fingerprint(folder)


def test_an_option_that_changes_only_the_speed_is_the_same_identity(folder: Path) -> None:
    faster = {"max_num_batched_tokens": 4096, "enforce_eager": True}
    options = {"max_num_seqs": 8, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "engine_args": faster}
    assert fingerprint(folder, **options) == fingerprint(folder)


@pytest.mark.parametrize("model", ["owner/never-fetched", "s3://bucket/model", "/no/such/folder"])
def test_a_model_whose_files_are_not_here_is_unknown(model: str) -> None:
    assert identity(model) is None


def test_a_missing_chat_template_is_unknown(folder: Path) -> None:
    assert identity(folder, chat_template="/no/such/file") is None


def test_an_endpoint_is_unknown() -> None:
    assert engine_factory("http", model="m", base_url="http://127.0.0.1:1/v1").identity() is None


def test_the_echo_engine_has_the_identity_that_was_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = engine_factory("echo", model="m")
    known = maker.identity()
    assert known is not None
    assert maker().info.fingerprint == known.fingerprint
    monkeypatch.setenv("BATCHFILE_ECHO_LATENCY_S", "0.5")
    assert maker().info.fingerprint == known.fingerprint
    monkeypatch.setenv("BATCHFILE_ECHO_GUIDED", "{}")
    other = maker.identity()
    assert other is not None
    assert maker().info.fingerprint == other.fingerprint != known.fingerprint
    assert EchoEngine(tokens=lambda request: 3).info.fingerprint is None
