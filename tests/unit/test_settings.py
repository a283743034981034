"""Settings: the defaults, the file over them, the environment over both; a wrong value is named."""

import os
from pathlib import Path

import pytest

from batchfile.errors import SettingsError
from tests.helpers.settings import explain_settings, load_settings


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BATCHFILE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def _origin(name: str) -> str:
    return next(item.origin for item in explain_settings(load_settings()) if item.name == name)


def test_nothing_is_needed_to_start() -> None:
    settings = load_settings()
    assert settings.stages == {
        "sales_intel": "llama-70b",
        "subject": "mistral",
        "email": "mistral",
        "polish": "llama-70b",
    }
    assert settings.pools["llama-70b"].tensor_parallel_size == 2
    assert settings.pools["mistral"].model == "mistralai/Mistral-7B-Instruct-v0.3"
    assert settings.pools["mistral"].max_model_len == 8192
    assert settings.pools["mistral"].gpu_memory_utilization == 0.9


def test_a_table_of_the_file_replaces_the_default_table() -> None:
    Path("batchfile.toml").write_text('[pools.small]\nmodel = "a/b"\n[stages]\nwrite = "small"\n')
    settings = load_settings()
    assert list(settings.pools) == ["small"]
    assert settings.stages == {"write": "small"}
    assert settings.routing().pools == {"small": ("a/b",)}


@pytest.mark.parametrize(
    ("pools", "variable", "stages"),
    [
        ("mistral", None, ["subject", "email"]),
        ("mistral", "BATCHFILE_POOLS__LLAMA-70B__MODEL", ["sales_intel", "subject", "email", "polish"]),
        ("small", None, []),
    ],
)
def test_a_file_with_pools_alone_has_only_the_stages_of_these(
    pools: str, variable: str | None, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("batchfile.toml").write_text(f'[pools.{pools}]\nmodel = "a/b"\n')
    if variable is not None:
        monkeypatch.setenv(variable, "c/d")
    settings = load_settings()
    assert pools in settings.pools
    assert [*settings.stages] == stages


def test_the_environment_wins_over_the_file_and_each_value_knows_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("batchfile.toml").write_text('store = "here"\n[run]\nmodel = "from-file"\n')
    monkeypatch.setenv("BATCHFILE_STORE", "s3://bucket/prefix")
    settings = load_settings()
    assert settings.store == "s3://bucket/prefix"
    assert settings.run.model == "from-file"
    assert _origin("store") == "BATCHFILE_STORE"
    assert _origin("run.model") == "batchfile.toml"
    assert _origin("run.engine") == "default"


def test_a_variable_changes_one_value_of_a_default_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_POOLS__MISTRAL__MODEL", "my/mistral")
    settings = load_settings()
    assert settings.pools["mistral"].model == "my/mistral"
    assert settings.pools["llama-70b"].tensor_parallel_size == 2
    assert _origin("pools.mistral.model") == "BATCHFILE_POOLS__MISTRAL__MODEL"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run]\nengine = 'vlm'\n", ["run.engine", "'vlm'", "batchfile.toml", "'vllm', 'http' or 'echo'"]),
        ("[run]\nmax_tokens = 0\n", ["run.max_tokens", "= 0 (from batchfile.toml): must be at least 1"]),
        ("[run]\ngrace_s = inf\n", ["run.grace_s", "inf", "finite"]),
        ("[limits]\nchekpoint_s = 3\n", ["limits.chekpoint_s", "did you mean checkpoint_s"]),
        ("[[api_keys]]\ntenant = 'a'\nsha = 'x'\n", ["api_keys.0.sha", "did you mean sha256"]),
        ("[limits]\ncheckpoint_s = 10\nlease_ttl_s = 20\n", ["limits", "three times checkpoint_s"]),
        ("[stages]\nwrite = 'big'\n", ["stages.write", "'big'", "mistral"]),
        ("[pools.Big]\nmodel = 'a'\n", ["pools", "'Big'", "lower-case"]),
        ("[pools.a]\nmodel = 'a'\nengine = 'http'\n[stages]\n", ["pools.a", "base_url"]),
        ("[pools.a]\nmodel = 'a'\nlora = {a = '/x'}\n[stages]\n", ["pools.a", "'a' is the name of the model"]),
        (
            "[pools.a]\nmodel = 'm'\nlora = {x = '/x'}\n[pools.b]\nmodel = 'm'\nlora = {x = '/y'}\n[stages]\n",
            ["lora: the adapter 'x' is both in pools.a and in pools.b; give one of them another name"],
        ),
        (
            "[pools.a]\nmodel = 'm'\nlora = {b = '/x'}\n[pools.b]\nmodel = 'n'\n[stages]\n",
            ["pools.a.lora: 'b' is the name of the pool 'b' too; give the adapter another name"],
        ),
        (
            "[pools.a]\nmodel = 'm'\nlora = {a = '/x'}\n[stages]\n",
            ["pools.a.lora: 'a' is the name of the pool 'a' too; give the adapter another name"],
        ),
        (
            "[pools.a]\nmodel = 'm'\nlora = {n = '/x'}\n[pools.b]\nmodel = 'n'\n[stages]\n",
            ["pools.a.lora: 'n' is the model of the pool 'b' too"],
        ),
        (
            "[pools.a]\nmodel = 'm'\nlora = {n = '/x'}\n[pools.b]\nmodel = 'k'\naliases = ['n']\n[stages]\n",
            ["pools.a.lora: 'n' is an alias of the pool 'b' too"],
        ),
        (
            "[pools.a]\nmodel = 'a'\nengine = 'http'\nbase_url = 'http://h'\nlora = {b = '/x'}\n[stages]\n",
            ["pools.a", "lora is for models that are loaded here"],
        ),
        (
            "[pools.a]\nmodel = 'a'\nengine = 'http'\nbase_url = 'http://h'\nrevision = 'v1'\n[stages]\n",
            ["pools.a", "revision is for models that are loaded here"],
        ),
        ("stor = 'x'\n", ["stor", "did you mean store"]),
        ("[run]\nmax_tokens = 'many'\n", ["run.max_tokens = 'many' (from batchfile.toml): must be a whole number"]),
        ("[run]\nmax_tokens = 1.5\n", ["must be a whole number"]),
        ("[run]\ntemperature = 3\n", ["must be at most 2"]),
        ("allow_anonymous = 'perhaps'\n", ["must be true or false"]),
        ("store = 1\n", ["must be text"]),
        ("pools = 1\n", ["pools (from batchfile.toml): must be a table"]),
        ("[pools]\na = 1\n", ["pools.a (from batchfile.toml): must be a table"]),
        ("[pools.a]\naliases = 1\n", ["pools.a.model", "is missing; add it", "must be a list"]),
        ("[schemas]\nemail = 1\n", ["must be the path of a file"]),
        ("a = 1\nb =\n", ["batchfile.toml: is not valid TOML: ", "line 2, column 4"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(text: str, words: list[str]) -> None:
    Path("batchfile.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["BATCHFILE_POOLS", "BATCHFILE_RUN", "BATCHFILE_WEBHOOKS"])
def test_a_variable_in_the_place_of_a_table_must_be_json(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("BATCHFILE_STORE", "./store")  # no JSON, and right
    monkeypatch.setenv(name, "{half")
    with pytest.raises(SettingsError, match=f"{name} is not valid JSON; give a JSON object or list, .* {name}__NAME"):
        load_settings()


def test_a_variable_of_a_list_within_a_table_must_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_STORE", "./store")
    monkeypatch.setenv("BATCHFILE_POOLS__X__ALIASES", "[bad")
    with pytest.raises(
        SettingsError, match="BATCHFILE_POOLS__X__ALIASES is not valid JSON; give a JSON object or list"
    ):
        load_settings()


def test_each_kind_of_url_is_told_its_own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_API__PUBLIC_URL", "https://x.org/?a=1")
    with pytest.raises(SettingsError, match=r"URL without \?, #"):
        load_settings()


def test_a_file_of_other_bytes_is_named() -> None:
    Path("batchfile.toml").write_bytes(b"store = '\xff'\n")
    with pytest.raises(SettingsError, match=r"batchfile\.toml: is not UTF-8"):
        load_settings()


def test_a_misspelt_variable_is_refused_with_the_right_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_STROE", "x")
    with pytest.raises(SettingsError, match="did you mean BATCHFILE_STORE"):
        load_settings()


def test_variables_of_other_tools_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_ECHO_SLOTS", "4")
    monkeypatch.setenv("BATCHFILE_CACHE", "/somewhere")
    load_settings()


def test_the_file_may_lie_elsewhere_but_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.toml"
    monkeypatch.setenv("BATCHFILE_CONFIG", str(other))
    with pytest.raises(SettingsError, match="no such file"):
        load_settings()
    other.write_text('store = "there"\n')
    assert load_settings().store == "there"


def test_the_protocols_times_fit_the_store_and_can_be_set() -> None:
    assert load_settings().ledger_limits(is_local=True).checkpoint_s == 1.0
    assert load_settings().ledger_limits(is_local=False).checkpoint_s == 15.0
    Path("batchfile.toml").write_text("[limits]\ncheckpoint_s = 7\n")
    limits = load_settings().ledger_limits(is_local=False)
    assert (limits.checkpoint_s, limits.lease_ttl_s) == (7.0, 90.0)


@pytest.mark.parametrize(
    ("name", "value", "is_local", "fits"),
    [
        ("CHECKPOINT_S", "30", False, True),
        ("CHECKPOINT_S", "31", False, False),
        ("CHECKPOINT_S", "11", True, False),
        ("LEASE_TTL_S", "44", False, False),
        ("LEASE_TTL_S", "3", True, True),
    ],
)
def test_a_lease_outlives_checkpoints_also_where_one_of_them_is_a_default(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, is_local: bool, fits: bool
) -> None:
    monkeypatch.setenv(f"BATCHFILE_LIMITS__{name}", value)
    settings = load_settings()
    assert settings.service_grace_s == 20.0
    if fits:
        settings.ledger_limits(is_local=is_local)
        return
    with pytest.raises(SettingsError, match=f"three times checkpoint_s.*{value}"):
        settings.ledger_limits(is_local=is_local)


def test_the_users_own_variables_make_a_pool_an_http_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    monkeypatch.setenv("WORKER_CONCURRENCY", "7")
    monkeypatch.setenv("PORT", "8123")
    settings = load_settings()
    pool = settings.pools["llama-70b"]
    assert (pool.engine, pool.base_url, pool.max_num_seqs) == ("http", "http://127.0.0.1:9/v1", 7)
    assert pool.api_key is not None
    assert pool.api_key.get_secret_value() == "secret"
    assert settings.pools["mistral"].engine == "vllm"
    assert settings.port == 8123
    shown = {item.name: item for item in explain_settings(settings)}
    assert shown["pools.llama-70b.base_url"].origin == "LLAMA_BASE_URL"
    assert "secret" not in str(shown["pools.llama-70b.api_key"].value)


def test_our_variable_stands_over_one_that_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("BATCHFILE_PORT", "8124")
    assert load_settings().port == 8124


def test_api_keys_are_pairs_with_commas_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_API_KEYS", f"acme:{'a' * 64}, bob:{'b' * 64}:anthropic")
    assert [(key.tenant, key.dialect) for key in load_settings().api_keys] == [("acme", None), ("bob", "anthropic")]


@pytest.mark.parametrize("keys", ["acme", "acme:secret", f"Acme!:{'a' * 64}", f"acme:{'a' * 64}:latin"])
def test_an_api_key_that_is_no_pair_is_refused(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("BATCHFILE_API_KEYS", keys)
    with pytest.raises(SettingsError, match="api_keys"):
        load_settings()


@pytest.mark.parametrize("keys", ["bf_Secret", "acme:bf_Secret", f"acme:{'a' * 64},bf_Secret"])
def test_a_key_in_the_place_of_its_hash_is_not_repeated(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("BATCHFILE_API_KEYS", keys)
    with pytest.raises(SettingsError, match="keys new") as refused:
        load_settings()
    assert "bf_Secret" not in str(refused.value)


def test_a_stages_schema_is_read_beside_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "email.json").write_text('{"type": "object"}')
    (tmp_path / "batchfile.toml").write_text('[schemas]\nemail = "email.json"\n')
    monkeypatch.setenv("BATCHFILE_CONFIG", str(tmp_path / "batchfile.toml"))
    settings = load_settings()
    assert settings.schema_of("email") == {"type": "object"}
    assert settings.schema_of("polish") is None
    (tmp_path / "email.json").write_text("[")
    assert settings.schema_of("email") == {"type": "object"}, "a running service does not see the change"
    with pytest.raises(SettingsError, match=r"schemas\.email"):
        load_settings()


def test_a_schema_that_is_none_is_refused_with_its_file_and_why(tmp_path: Path) -> None:
    (tmp_path / "subject.json").write_text('{"type": "objct"}')
    Path("batchfile.toml").write_text('[schemas]\nsubject = "subject.json"\n')
    with pytest.raises(SettingsError, match=r"schemas\.subject.*subject\.json is not a valid JSON schema.*objct"):
        load_settings()


def test_how_long_a_deleted_batch_stays_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFILE_LIMITS__DOWNLOAD_GRACE_S", "0")
    monkeypatch.setenv("BATCHFILE_LIMITS__TOMBSTONE_S", "7200")
    limits = load_settings().ledger_limits(is_local=False, is_service=True)
    assert (limits.download_grace_s, limits.tombstone_s) == (0, 7200)
    monkeypatch.setenv("BATCHFILE_LIMITS__TOMBSTONE_S", "60")
    with pytest.raises(SettingsError, match=r"limits.tombstone_s = '60'.*7200"):
        load_settings()


@pytest.mark.parametrize("place", ["https://images.example", "s3:/photos", "user@images.example", "images.example/a"])
def test_a_place_to_read_media_from_is_a_host_or_a_bucket(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("BATCHFILE_MEDIA__ACME__ALLOW", f'["images.example:8443", "s3://photos/public/", "{place}"]')
    with pytest.raises(SettingsError, match=r"media\.acme\.allow.* must be a host, such as images\.example"):
        load_settings()
