"""Which files are LoRA adapters, what vLLM reserves for them, and which one a request names. Without vLLM."""

import json
from pathlib import Path

import pytest

from batchfile.engine.vllm.adapters import Adapters, check_adapters, load_adapters, lora_arguments, split_source
from batchfile.errors import InvalidRequest, SettingsError


def adapter(folder: Path, **config: object) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "peft_type": "LORA", "other": [1]} | config))
    return str(folder)


def test_a_source_is_a_folder_or_a_repository_with_a_revision(tmp_path: Path) -> None:
    assert split_source("/models/a@b") == ("/models/a@b", None)
    assert split_source(str(tmp_path)) == (str(tmp_path), None)
    assert split_source("owner/name") == ("owner/name", None)
    assert split_source("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")


def test_memory_is_reserved_for_the_largest_rank_and_for_at_most_eight_at_a_time(tmp_path: Path) -> None:
    given = {f"a{n}": adapter(tmp_path / str(n), r=n + 1, rank_pattern={"q": 17} if n == 3 else {}) for n in range(9)}
    found = load_adapters(given)
    assert [(one.name, one.number, one.rank) for one in found[:4]] == [
        ("a0", 1, 1),
        ("a1", 2, 2),
        ("a2", 3, 3),
        ("a3", 4, 17),
    ]
    enabled = {"enable_lora": True, "max_lora_rank": 32}
    assert lora_arguments(found, {}, is_cpu=False) == {**enabled, "max_loras": 8, "max_cpu_loras": 9}
    given = {"max_loras": 20, "dtype": "auto"}
    assert lora_arguments(found, given, is_cpu=False) == {**enabled, "max_loras": 20, "max_cpu_loras": 20}
    assert lora_arguments([], {}, is_cpu=True) == {}


def test_on_a_cpu_one_place_more_is_reserved_and_stays_empty(tmp_path: Path) -> None:
    found = load_adapters({"a": adapter(tmp_path / "a"), "b": adapter(tmp_path / "b")})
    assert lora_arguments(found, {"max_loras": 1}, is_cpu=True)["max_loras"] == 3


def test_a_folder_of_the_hubs_cache_gives_the_commit(tmp_path: Path) -> None:
    commit = "a1" * 20
    [found] = load_adapters({"a": adapter(tmp_path / "snapshots" / commit)})
    assert found.commit == commit


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 0}, "has the rank 0; it must be from 1 to 512"),
        ({"r": 513}, "has the rank 513"),
        ({"r": "8"}, r"adapter_config\.json cannot be read"),
        ({"peft_type": "IA3"}, "an adapter of the kind IA3"),
    ],
)
def test_an_adapter_that_vllm_cannot_load_is_named(tmp_path: Path, config: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=rf"lora 'a': .*{words}"):
        check_adapters({"a": adapter(tmp_path, **config)})


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="lora 'a': /nowhere does not exist"):
        check_adapters({"a": "/nowhere"})
    with pytest.raises(SettingsError, match="lora: the name 'a b' must not"):
        check_adapters({"a b": "/nowhere"})
    with pytest.raises(SettingsError, match=r"has no adapter_config\.json"):
        check_adapters({"a": str(tmp_path)})


def test_a_request_names_an_adapter_or_the_model(tmp_path: Path) -> None:
    loaded = load_adapters({"sql": adapter(tmp_path / "1"), "polish": adapter(tmp_path / "2")})
    known, any_model = Adapters(loaded, ("org/m", "m")), Adapters(loaded)
    assert known.of("polish") is any_model.of("polish") is loaded[1]
    assert known.of(None) is known.of("m") is any_model.of("gpt-4o") is None
    with pytest.raises(InvalidRequest, match="model: 'gpt-4o' is unknown; use one of org/m, m, sql, polish"):
        known.of("gpt-4o")
    assert Adapters((), ("m",)).of("gpt-4o") is None, "without adapters, a model is what it always was"
