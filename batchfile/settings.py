"""All settings: `batchfile.toml` with `BATCHFILE_*` environment over it, over the defaults. Read once per process.

A table that the file has (pools, stages) replaces the default table; a variable changes one value of whatever is
there: `BATCHFILE_POOLS__MISTRAL__MODEL=...`. Knows no store and no engine.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from batchfile import foreign_variables
from batchfile.errors import SettingsError
from batchfile.layout import is_pool_name
from batchfile.ledger.base import LOCAL, Limits
from batchfile.runner.fitting import schema_problem
from batchfile.words import RoutingTable, Task

CONFIG_FILE = "batchfile.toml"
CONFIG_VARIABLE = "BATCHFILE_CONFIG"  # another place for the file
PREFIX = "BATCHFILE_"
NESTED = "__"
# Ours, and no settings.
OTHER_VARIABLES = {"BATCHFILE_API_KEY", "BATCHFILE_CACHE", "BATCHFILE_CRASH_AT", CONFIG_VARIABLE}
FOREIGN_LEAVES = ("port", ".engine", ".base_url", ".api_key", ".max_num_seqs")  # what other variables may set

# Settings whose values no message repeats. Who mistakes a key for its hash shall not find it in a log.
SECRETS = (".api_key", ".secret", ".sha256", "api_keys", ".base_url")
NO_TABLE = {"model_type", "dict_type"}  # a value in the place of a table: it may be any of the table's

EngineKind = Literal["vllm", "http", "echo"]
Positive = Annotated[float, Field(gt=0)]


def _without_user(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError("must be without credentials, which every log would show; set an api_key instead")
    return url


BaseUrl = Annotated[str, AfterValidator(_without_user)]

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Pool(BaseModel):
    """Runners that serve one model. `aliases`: further model names that mean this pool.

    `task`: what the model is for; with "embed" it makes embeddings and no text (an endpoint knows by itself).
    `tool_parser`, `reasoning_parser`: vLLM's names of what reads the model's calls of tools, and its thinking.
    """

    model_config = _STRICT

    model: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()
    engine: EngineKind = "vllm"
    task: Task = "generate"
    base_url: BaseUrl | None = None
    api_key: SecretStr | None = None
    max_model_len: int = Field(default=8192, ge=16)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    tool_parser: str | None = None
    reasoning_parser: str | None = None

    @model_validator(mode="after")
    def _has_address(self) -> "Pool":
        if self.engine == "http" and not self.base_url:
            raise ValueError("a pool with engine = 'http' needs a base_url")
        return self


class LocalRun(BaseModel):
    """What `batchfile run` uses where its options do not say. `model` None: the demo model, if it is there."""

    model_config = _STRICT

    engine: EngineKind = "vllm"
    model: str | None = None
    base_url: BaseUrl | None = None
    max_model_len: int | None = Field(default=None, ge=16)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=2048, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)


class Times(BaseModel):
    """The protocol's times, in seconds (docs/protocol.md). None: 15 and 90 on a bucket, 1 and 30 in a directory."""

    model_config = _STRICT

    lease_ttl_s: Positive | None = None
    checkpoint_s: Positive | None = None
    grace_s: Positive | None = None
    completion_window_s: Positive | None = None
    retention_s: Positive | None = None

    @model_validator(mode="after")
    def _lease_outlives_checkpoints(self) -> "Times":
        ttl_s, checkpoint_s = self.lease_ttl_s, self.checkpoint_s
        if ttl_s is not None and checkpoint_s is not None and ttl_s < 3 * checkpoint_s:
            raise ValueError("lease_ttl_s must be at least three times checkpoint_s, or leases lapse in use")
        return self


class ApiKey(BaseModel):
    """Whose a key is. `sha256`: of the key, in hex; the key itself is nowhere. `dialect`: what its answers speak."""

    model_config = _STRICT

    tenant: str
    sha256: str
    dialect: Literal["stage", "anthropic"] | None = None

    @field_validator("sha256")
    @classmethod
    def _is_a_digest(cls, sha256: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(
                "must be the key's SHA-256 in 64 hex digits, not the key; `batchfile keys new` prints both"
            )
        return sha256

    @field_validator("tenant")
    @classmethod
    def _fits_a_key(cls, tenant: str) -> str:
        if not is_pool_name(tenant):
            raise ValueError(f"{tenant!r} is no tenant name: lower-case letters, digits, dots, dashes; at most 63")
        return tenant


class Webhook(BaseModel):
    """Where a tenant hears of the ends of its batches. `allow_private`: an address that the internet can not reach."""

    model_config = _STRICT

    url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s#]*)?$")
    secret: SecretStr
    allow_private: bool = False

    @field_validator("secret")
    @classmethod
    def _is_standard(cls, secret: SecretStr) -> SecretStr:
        prefix, _, text = secret.get_secret_value().partition("_")
        try:
            key = base64.b64decode(text, validate=True)
        except ValueError:
            key = b""
        if prefix != "whsec" or not 16 <= len(key) <= 64:
            raise ValueError("must be whsec_ and 16 to 64 bytes in base64")
        return secret


class Api(BaseModel):
    """The HTTP service's limits. `spool_dir` None: the system's directory for temporary files.

    `public_url`: where callers find the service, for links in answers; None: what they sent their request to.
    `trust_forwarded`: a proxy before it says so in X-Forwarded-Proto and X-Forwarded-Host, and overwrites the caller's.
    """

    model_config = _STRICT

    body_bytes_max: int = Field(default=256 * 1024 * 1024, ge=1024)  # after unpacking
    requests_max: int = Field(default=1_000_000, ge=1)  # of one batch
    file_bytes_max: int = Field(default=512 * 1024 * 1024, ge=1024)
    in_flight_max: int = Field(default=64, ge=1)  # HTTP requests of one key at a time, in one process
    open_batches_max: int = Field(default=1_000, ge=1)  # of one tenant
    body_wait_s: Positive = 60.0  # a body of which nothing arrives for this long is given up
    spool_dir: Path | None = None
    public_url: str | None = Field(default=None, pattern=r"^https?://[^\s{}?#]+$")
    trust_forwarded: bool = False


class InboxFiles(BaseModel):
    """What becomes of dropped files that do not say it beside them. `move_done`: to done/, once they have run."""

    model_config = _STRICT

    move_done: bool = False


# Two pools and four stages, so that nothing is needed to start.
DEFAULT_POOLS: dict[str, Any] = {
    "llama-70b": {
        "model": "meta-llama/Meta-Llama-3-70B-Instruct",
        "tensor_parallel_size": 2,
    },
    "mistral": {"model": "mistralai/Mistral-7B-Instruct-v0.3"},
}
DEFAULT_STAGES = {"sales_intel": "llama-70b", "subject": "mistral", "email": "mistral", "polish": "llama-70b"}


class Settings(BaseSettings):
    """Everything that can be set. `store`: a directory or `s3://bucket/prefix`. `schemas`: stage -> a JSON file.

    `host` None: loopback while there are no keys, every interface where there are. `webhooks`: by tenant.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    store: str | None = None
    run: LocalRun = LocalRun()
    pools: dict[str, Pool]
    stages: dict[str, str]
    schemas: dict[str, Path] = Field(default_factory=dict)
    limits: Times = Times()
    host: str | None = None
    port: int = Field(default=8000, ge=0, le=65535)
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = ()
    allow_anonymous: bool = False
    api: Api = Api()
    webhooks: dict[str, Webhook] = Field(default_factory=dict)
    inbox: InboxFiles = InboxFiles()
    _schemas: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, keys: object) -> object:
        """`tenant:sha256` or `tenant:sha256:dialect`, with commas between them, or a list of these."""
        if isinstance(keys, str):
            keys = [key for key in re.split(r"[,\s]+", keys) if key]
        if not isinstance(keys, list | tuple):
            return keys
        if any(isinstance(key, str) and ":" not in key for key in keys):
            raise ValueError("each must be tenant:sha256, as `batchfile keys new TENANT` prints it")
        names = ("tenant", "sha256", "dialect")
        return [dict(zip(names, key.split(":"), strict=False)) if isinstance(key, str) else key for key in keys]

    @field_validator("pools")
    @classmethod
    def _names_fit_keys(cls, pools: dict[str, Pool]) -> dict[str, Pool]:
        if not pools:
            raise ValueError("at least one pool is needed")
        for name in pools:
            if not is_pool_name(name):
                raise ValueError(f"{name!r} is no pool name: lower-case letters, digits, dots, dashes; at most 63")
        return pools

    @model_validator(mode="after")
    def _stages_have_pools(self) -> "Settings":
        for stage, pool in self.stages.items():
            if pool not in self.pools:
                raise ValueError(f"stages.{stage} names the pool {pool!r}; there are {', '.join(sorted(self.pools))}")
        for stage in self.schemas:
            if stage not in self.stages:
                raise ValueError(f"schemas.{stage} is for no stage; there are {', '.join(sorted(self.stages))}")
            self._schemas[stage] = _read_schema(stage, config_path().parent / self.schemas[stage])
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls, config_path())
        tables = {"pools": DEFAULT_POOLS, "stages": DEFAULT_STAGES}
        missing = {name: table for name, table in tables.items() if name not in file()}
        foreign = InitSettingsSource(settings_cls, _foreign_tree(file()))
        return env_settings, foreign, file, InitSettingsSource(settings_cls, missing)

    def routing(self) -> RoutingTable:
        return RoutingTable(
            stages=dict(self.stages),
            pools={name: (pool.model, *pool.aliases) for name, pool in self.pools.items()},
        )

    def schema_of(self, stage: str | None) -> dict[str, Any] | None:
        """The JSON schema that the answers of this stage must fit, as it was at the start; None: any text will do."""
        return self._schemas.get(stage or "")

    def ledger_limits(self, *, is_local: bool, is_service: bool = False) -> Limits:
        """The protocol's times: the defaults of the kind of store and use, and what is set over them.

        A run on one machine keeps its batches for long; a service lets them expire, whatever its store.
        """
        base = LOCAL if is_local else Limits()
        if is_service:
            of_service = Limits()
            base = replace(
                base,
                grace_s=of_service.grace_s,
                completion_window_s=of_service.completion_window_s,
                retention_s=of_service.retention_s,
            )
        return replace(base, **self.limits.model_dump(exclude_none=True))


def _read_schema(stage: str, path: Path) -> dict[str, Any]:
    """Raises: ValueError where the file can not be used. A relative path starts at the settings file."""
    try:
        schema = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"schemas.{stage}: {path} can not be read: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"schemas.{stage}: {path} must hold a JSON object")
    problem = schema_problem(schema)
    if problem is not None:
        raise ValueError(f"schemas.{stage}: {path} is no JSON schema: {problem}")
    return schema


def _foreign(file: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    pools = file.get("pools", DEFAULT_POOLS)
    if not isinstance(pools, Mapping):
        return {}  # the model says what is wrong with it
    is_http = {name: isinstance(pool, Mapping) and pool.get("engine") == "http" for name, pool in pools.items()}
    return foreign_variables.foreign_values(is_http, os.environ)


def _foreign_tree(file: Mapping[str, Any]) -> dict[str, Any]:
    return foreign_variables.nested(_foreign(file), file.get("pools", DEFAULT_POOLS))


def config_path() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)


def load_settings() -> Settings:
    """Raises: SettingsError naming the value, where it stands and what is accepted."""
    _refuse_misspelt_variables(os.environ)
    path = config_path()
    if os.environ.get(CONFIG_VARIABLE) and not path.is_file():
        raise SettingsError(f"{CONFIG_VARIABLE} names {path}, and there is no such file")
    try:
        return Settings()  # type: ignore[call-arg]  # the two tables come from a source
    except ValidationError as error:
        raise SettingsError("; ".join(_problems(error))) from error
    except (ValueError, OSError) as error:  # tomllib's and pydantic-settings' own
        raise SettingsError(f"the settings can not be read ({path} or {PREFIX}*): {error}") from error


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from: `default`, the file's path or a variable's name."""

    name: str
    value: object
    origin: str


def explain_settings(settings: Settings) -> list[Setting]:
    """Every value of `settings`, in order, with its origin."""
    path = config_path()
    file = dict(_leaves(TomlConfigSettingsSource(Settings, path)()))
    variables = {name.upper(): name for name in os.environ}
    found = []
    for name, value in _leaves(settings.model_dump(mode="json")):
        found.append(Setting(name, value, _origin(name, variables, file, path)))
    return found


def _read_file() -> dict[str, Any]:
    return TomlConfigSettingsSource(Settings, config_path())()


def _origin(name: str, variables: Mapping[str, str], file: Mapping[str, object], path: Path) -> str:
    if name.endswith(tuple(FOREIGN_LEAVES)) and (foreign := _foreign(_read_file()).get(name)):
        by_us = variables.get(PREFIX + name.replace(".", NESTED).upper())
        return by_us or foreign[0]
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        variable = PREFIX + NESTED.join(parts[:size]).upper()
        if variable in variables:
            return variables[variable]
    return str(path) if name in file else "default"


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _problems(error: ValidationError) -> Iterator[str]:
    """Each problem with the setting's name, where it was set, and what is accepted."""
    variables = {name.upper(): name for name in os.environ}
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        origin = _origin(name, variables, {name: None}, config_path())
        if item["type"] == "extra_forbidden":
            yield f"{name} (from {origin}) is not a setting{_nearest(item['loc'])}"
            continue
        is_shown = (
            isinstance(item["input"], str | int | float | bool)
            and not name.endswith(SECRETS)
            and item["type"] not in NO_TABLE
        )
        shown = f" = {item['input']!r}" if is_shown else ""
        message = item["msg"].removeprefix("Value error, ")
        yield f"{name}{shown} (from {origin}): {message[:1].lower()}{message[1:]}"


def _nearest(location: tuple[int | str, ...]) -> str:
    owners: dict[str, type[BaseModel]] = {
        "pools": Pool,
        "run": LocalRun,
        "limits": Times,
        "api": Api,
        "webhooks": Webhook,
        "inbox": InboxFiles,
    }
    first = str(location[0])
    model = owners.get(first, Settings) if len(location) > 1 else Settings
    near = get_close_matches(str(location[-1]), model.model_fields, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(model.model_fields)}"


def _refuse_misspelt_variables(environ: Mapping[str, str]) -> None:
    """A misspelt variable would be ignored silently. Other variables of this prefix belong to other tools."""
    for name in environ:
        upper = name.upper()
        if not upper.startswith(PREFIX):
            continue
        first = upper.removeprefix(PREFIX).split(NESTED)[0].lower()
        if upper in OTHER_VARIABLES:
            continue
        near = get_close_matches(first, Settings.model_fields, n=1, cutoff=0.75)
        if near and near[0] != first:
            raise SettingsError(f"{name} is not a setting; did you mean {PREFIX}{near[0].upper()}?")
