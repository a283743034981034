"""What decides the answers of an engine is known before it is loaded, and changes with whatever changes an answer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchfile.engine.vllm import identity as vllm_identity
from batchfile.engine.vllm import model_files
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


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "config.json").write_text('{"a": 1}'),
        lambda path: (path / "tokenizer.json").write_text("[1]"),
        lambda path: (path / "chat_template.jinja").write_text("{{ tools }}"),
        lambda path: (path / "generation_config.json").write_text("{}"),
        lambda path: (path / "model.safetensors").write_bytes(b"other weights"),
        lambda path: (path / "model.safetensors").write_bytes(b"WEIGHTS"),
        lambda path: (path / "model.safetensors").rename(path / "more.safetensors"),
        lambda path: (path / "linked").symlink_to(path.with_name("more"), target_is_directory=True),
    ],
)
def test_a_change_of_the_models_files_is_another_identity(folder: Path, change: Callable[[Path], object]) -> None:
    more = folder.with_name("more")
    more.mkdir()
    (more / "config.json").write_text("{}")
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    times = folder / "model.safetensors", (1, 1)
    os.utime(*times)
    assert fingerprint(folder) == before, "the time of a small file says nothing"
    change(folder)
    assert fingerprint(folder) != before


def test_a_fine_tune_with_the_size_and_the_time_of_its_base_is_another_identity(folder: Path) -> None:
    path = folder / "large.safetensors"
    prints = []
    for offset in (None, 0, 40 * 2**20, 65 * 2**20):
        with path.open("wb") as file:
            file.truncate(66 * 2**20)
            if offset is not None:
                file.seek(offset)
                file.write(b"tuned" * 2**17)
        os.utime(path, (1, 1))
        prints.append(fingerprint(folder))
    assert len({*prints}) == 4
    os.utime(path, (2, 2))
    assert fingerprint(folder) not in prints, "only a part of a large file is read, so its time counts too"


def test_a_file_of_a_hubs_cache_is_its_blob(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    found = []
    for name, content in (("a" * 64, "one"), ("a" * 64, "two"), ("b" * 64, "two")):
        (blobs / name).write_text(content)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(blobs / name)
        found.append((fingerprint(folder), fingerprint(folder / "model.safetensors")))
    assert found[0] == found[1]
    assert not {*found[1]} & {*found[2]}


def test_a_folder_that_is_not_of_a_model_is_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_FILES_MAX", 3)
    assert identity(folder) is None


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
        {"engine_args": {"load_format": "dummy"}},
        {"engine_args": {"load_format": "pt"}},
        {"engine_args": {"kv_cache_dtype": "fp8"}},
        {"engine_args": {"hf_overrides": {"rope_scaling": None}}},
    ],
)
def test_an_option_that_changes_answers_is_another_identity(folder: Path, options: dict[str, Any]) -> None:
    assert fingerprint(folder, **options) != fingerprint(folder)


@pytest.mark.parametrize(
    "argument",
    [
        lambda path: {"generation_config": path},
        lambda path: {"hf_config_path": path},
        lambda path: {"tokenizer": path},
        lambda path: {"reasoning_parser_plugin": f"{path}/config.json"},
        lambda path: {"speculative_config": {"model": path}},
        lambda path: {"default_mm_loras": {"image": path}},
        lambda path: {"logits_processors": ["module:Class", path]},
    ],
)
def test_the_content_of_what_an_argument_names_counts(
    folder: Path, tmp_path: Path, argument: Callable[[str], dict[str, Any]]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("1")
    before = fingerprint(folder, engine_args=argument(str(other)))
    moved = other.rename(tmp_path / "moved")
    assert fingerprint(folder, engine_args=argument(str(moved))) == before != fingerprint(folder)
    (moved / "config.json").write_text("2")
    assert fingerprint(folder, engine_args=argument(str(moved))) != before


def test_a_model_that_an_argument_names_takes_precedence(folder: Path, tmp_path: Path) -> None:
    assert fingerprint("/no/such/folder", engine_args={"model": str(folder)}) == fingerprint(folder)


@pytest.mark.parametrize("value", ["auto", "vllm"])
def test_a_word_with_a_meaning_is_not_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = fingerprint(folder, engine_args={"generation_config": value})
    (tmp_path / value).mkdir()
    (tmp_path / value / "config.json").write_text("1")
    assert fingerprint(folder, engine_args={"generation_config": value}) == before


def test_where_files_are_put_does_not_matter(folder: Path, tmp_path: Path) -> None:
    given = {"download_dir": str(tmp_path), "compilation_config": {"cache_dir": str(tmp_path)}}
    assert fingerprint(folder, engine_args=given) == fingerprint(folder, engine_args={"compilation_config": {}})


def test_text_that_is_too_long_for_a_name_is_text(folder: Path) -> None:
    one, other = ({"hf_overrides": {"a": letter * 5000}} for letter in "ab")
    assert fingerprint(folder, engine_args=one) != fingerprint(folder, engine_args=other)


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

    def cached(model: str, revision: str | None, names: object) -> Path | None:
        return tmp_path / "snapshots" / commits[revision] / "config.json" if revision in commits else None

    monkeypatch.setattr(model_files, "cached_config", cached)
    model = "owner/name"
    assert fingerprint(model) == fingerprint(model, revision="v1") != fingerprint(model, revision="v2")
    assert identity(model, revision="v3") is None
    one, other = fingerprint(folder, lora={"a": model}), fingerprint(folder, lora={"a": f"{model}@v2"})
    assert fingerprint(folder, lora={"a": f"{model}@v1"}) == one != other
    assert identity(folder, lora={"a": f"{model}@v3"}) is None
    tokenizers = [fingerprint(model, engine_args={"tokenizer_revision": name}) for name in ("v1", "v2")]
    assert tokenizers[0] == fingerprint(model) != tokenizers[1]
    commits["v2"] = COMMIT
    assert fingerprint(model, engine_args={"tokenizer_revision": "v2"}) == tokenizers[0], "a branch that has moved"
    assert identity(model, engine_args={"tokenizer_revision": "v3"}) is None
    for name in ("hf_config_path", "generation_config"):
        before = fingerprint(folder, engine_args={name: model})
        commits[None] = COMMIT[::-1] if name == "hf_config_path" else COMMIT
        assert fingerprint(folder, engine_args={name: model}) != before


def test_the_content_of_a_chat_template_counts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("one")
    before = fingerprint(folder, chat_template=str(path))
    path.write_text("two")
    assert fingerprint(folder, chat_template=str(path)) != before != fingerprint(folder)


def test_an_option_that_changes_only_the_speed_is_the_same_identity(folder: Path) -> None:
    faster = {"max_num_batched_tokens": 4096, "enforce_eager": True, "load_format": "safetensors"}
    options = {"max_num_seqs": 8, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "engine_args": faster}
    assert fingerprint(folder, **options) == fingerprint(folder)


def test_a_repository_that_is_not_here_makes_all_unknown(folder: Path) -> None:
    assert identity(folder, engine_args={"generation_config": "owner/never-fetched"}) is None
    assert identity(folder, engine_args={"tokenizer": "owner/never-fetched"}) is None
    assert identity(folder, engine_args={"attention_backend": "some/backend"}) is not None


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
