"""Reads all settings: `BATCHFILE_*` variables override `batchfile.toml`, which overrides the defaults.

A table in the file (pools, stages) replaces the default table; a variable changes a single value of either:
`BATCHFILE_POOLS__MISTRAL__MODEL=...`. Read once per process. Knows no store and no engine.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from batchfile import env_aliases
from batchfile.errors import SettingsError
from batchfile.ledger.base import LOCAL, Limits
from batchfile.ledger.keys import is_pool_name
from batchfile.routing import check_adapter_names
from batchfile.schemas.rules import schema_problem
from batchfile.settings_built_in import DEFAULT_POOLS, built_in
from batchfile.settings_tables import (
    Api,
    ApiKey,
    InboxFiles,
    LocalRun,
    MediaAccess,
    PoolSettings,
    Times,
    Webhook,
    expected,
)
from batchfile.types import NAME_RULE, RoutingTable

CONFIG_FILE = "batchfile.toml"
CONFIG_VARIABLE = "BATCHFILE_CONFIG"  # another path of the file
PREFIX = "BATCHFILE_"
NESTED = "__"
# Variables of batchfile that are not settings.
OTHER_VARIABLES = {"BATCHFILE_API_KEY", "BATCHFILE_CACHE", "BATCHFILE_CRASH_AT", CONFIG_VARIABLE}

# Settings whose values no message repeats: a key that was given in place of its hash must not end up in a log.
SECRETS = (".api_key", ".secret", ".sha256", "api_keys", ".base_url")
NO_TABLE = {"model_type", "dict_type"}  # a value in place of a table may be a secret of that table


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    store: str | None = Field(
        default=None,
        description=(
            "Where all state is kept: a directory or `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`. `--store` "
            "overrides it."
        ),
    )
    run: LocalRun = LocalRun()
    pools: dict[str, PoolSettings] = Field(
        description="The runners of one model, by the pool's name. A file with pools replaces the built-in ones."
    )
    stages: dict[str, str] = Field(
        description=(
            "The pool of a stage. A file with stages replaces the built-in ones. With pools alone, a built-in stage "
            "remains if the file defines its pool."
        )
    )
    schemas: dict[str, Path] = Field(
        default_factory=dict,
        description=(
            "A file with a JSON schema that the answers of a stage must fit. A relative path starts at the folder "
            "of the settings file."
        ),
    )
    limits: Times = Times()
    host: str | None = Field(default=None, description="The address that the HTTP service listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="The port of the HTTP service; 0 takes a free one.")
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        default=(),
        description=(
            "The keys that the service accepts, as `batchfile keys new TENANT` prints them. In the variable, put "
            "commas between them."
        ),
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Let a service without API keys listen beyond loopback, and accept requests for every host name.",
    )
    api: Api = Api()
    webhooks: dict[str, Webhook] = Field(
        default_factory=dict,
        description="Where a tenant hears that a batch has ended, by tenant; `default` for a service without keys.",
    )
    media: dict[str, MediaAccess] = Field(
        default_factory=dict,
        description=(
            "From where the requests of a tenant may name images, audio and documents, and their limits, by tenant; "
            "`default` for a service without keys. Set it where the runners read their settings. Without a table, from "
            "nowhere. `batchfile run` reads from everywhere, with the limits of `default`."
        ),
    )
    inbox: InboxFiles = InboxFiles()
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe events that the service, its runners and scalers log."
    )
    _schemas: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, keys: object) -> object:
        """`tenant:sha256`, perhaps with `:FORMAT` (of the API) and `:NAME`, separated by commas, or a list of these."""
        if isinstance(keys, str):
            keys = [key for key in re.split(r"[,\s]+", keys) if key]
        if not isinstance(keys, list | tuple):
            return keys
        if any(isinstance(key, str) and ":" not in key for key in keys):
            raise ValueError("each must be tenant:sha256, as `batchfile keys new TENANT` prints it")
        names = tuple(ApiKey.model_fields)
        return [_key_of(names, key) if isinstance(key, str) else key for key in keys]

    @field_validator("pools")
    @classmethod
    def _names_fit_keys(cls, pools: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
        if not pools:
            raise ValueError("at least one pool is needed")
        for name in pools:
            if not is_pool_name(name):
                raise ValueError(f"{name!r} is not a valid pool name; {NAME_RULE}")
        return pools

    @model_validator(mode="after")
    def _stages_have_pools(self) -> "Settings":
        check_adapter_names(self.routing(), {name: pool.lora for name, pool in self.pools.items()})
        for stage, pool in self.stages.items():
            if pool not in self.pools:
                known = ", ".join(sorted(self.pools))
                raise ValueError(f"stages.{stage}: pool {pool!r} is unknown; use one of {known}")
        for stage in self.schemas:
            if stage not in self.stages:
                known = ", ".join(sorted(self.stages))
                raise ValueError(f"schemas.{stage}: stage {stage!r} is unknown; use one of {known}")
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
        tables = built_in(file(), env_settings())
        missing = {name: table for name, table in tables.items() if name not in file()}
        foreign = InitSettingsSource(settings_cls, _foreign_tree(file()))
        return env_settings, foreign, file, InitSettingsSource(settings_cls, missing)

    def routing(self) -> RoutingTable:
        return RoutingTable(
            stages=dict(self.stages),
            pools={name: (pool.model, *pool.aliases) for name, pool in self.pools.items()},
            adapters={adapter: name for name, pool in self.pools.items() for adapter in pool.lora},
            tasks={name: pool.task for name, pool in self.pools.items() if pool.engine != "http"},
        )

    @property
    def own_pools(self) -> frozenset[str]:
        """Those that somebody has set: not the built-in ones as they are."""
        built_in = {name: PoolSettings.model_validate(table) for name, table in DEFAULT_POOLS.items()}
        return frozenset(name for name, pool in self.pools.items() if pool != built_in.get(name))

    def schema_of(self, stage: str | None) -> dict[str, Any] | None:
        """The JSON schema for the answers of this stage, as it was at the start; None: any text is accepted."""
        return self._schemas.get(stage or "")

    def ledger_limits(self, *, is_local: bool, is_service: bool = False) -> Limits:
        """The protocol's times: the defaults of the kind of store and use, overridden by the settings.

        A run on one machine keeps its batches for long; a service lets them expire, in any kind of store.
        Raises: SettingsError where leases would expire between two checkpoints.
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
        limits = replace(base, **self.limits.model_dump(exclude_none=True))
        if limits.lease_ttl_s < 3 * limits.checkpoint_s:
            place = "in a directory" if is_local else "on a bucket"
            raise SettingsError(
                "limits: lease_ttl_s must be at least three times checkpoint_s, or leases expire while in use; "
                f"{place} they are {limits.lease_ttl_s:g} and {limits.checkpoint_s:g}: set both"
            )
        return limits

    @property
    def service_grace_s(self) -> float:
        """How long a runner of a service waits for its requests in flight when it stops, in any kind of store."""
        return self.limits.grace_s or Limits().grace_s


def _key_of(names: tuple[str, ...], text: str) -> dict[str, str]:
    return {name: value for name, value in zip(names, text.split(":", len(names) - 1), strict=False) if value}


def _read_schema(stage: str, path: Path) -> dict[str, Any]:
    """Raises: ValueError where the file cannot be used. A relative path is relative to the settings file."""
    try:
        schema = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"schemas.{stage}: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"schemas.{stage}: {path} is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"schemas.{stage}: {path} must contain a JSON object")
    problem = schema_problem(schema)
    if problem is not None:
        raise ValueError(f"schemas.{stage}: {path} is not a valid JSON schema: {problem}")
    return schema


def _foreign(file: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    pools = file.get("pools", DEFAULT_POOLS)
    if not isinstance(pools, Mapping):
        return {}  # the model reports what is wrong with it
    is_http = {name: isinstance(pool, Mapping) and pool.get("engine") == "http" for name, pool in pools.items()}
    return env_aliases.foreign_values(is_http, os.environ)


def _foreign_tree(file: Mapping[str, Any]) -> dict[str, Any]:
    return env_aliases.nested(_foreign(file), file.get("pools", DEFAULT_POOLS))


def config_path() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)


def load_settings() -> Settings:
    """Raises: SettingsError with the value, where it was set and what is accepted."""
    _refuse_misspelt_variables(os.environ)
    path = config_path()
    if os.environ.get(CONFIG_VARIABLE) and not path.is_file():
        raise SettingsError(f"{CONFIG_VARIABLE}: {path}: no such file")
    try:
        return Settings()  # type: ignore[call-arg]  # the two tables come from a source
    except ValidationError as error:
        raise SettingsError("; ".join(_problems(error))) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: a value is nested too deeply; use fewer levels") from error
    except ValueError as error:  # raised by pydantic-settings for a variable in place of a table
        raise SettingsError(_no_json(error.__cause__)) from error


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from: `default`, the file's path or a variable's name."""

    name: str
    value: object
    origin: str


def explain_settings(settings: Settings) -> list[Setting]:
    """Every value of `settings`, in order, with its origin."""
    table = _read_file()
    file, foreign = dict(_leaves(table)), _foreign(table)
    variables = {name.upper(): name for name in os.environ}
    found = []
    for name, value in _leaves(settings.model_dump(mode="json")):
        found.append(Setting(name, value, _origin(name, variables, foreign, file)))
    return found


def _read_file() -> dict[str, Any]:
    return TomlConfigSettingsSource(Settings, config_path())()


def _origin(
    name: str,
    variables: Mapping[str, str],
    foreign: Mapping[str, tuple[str, str]],
    file: Mapping[str, object],
) -> str:
    if name in foreign:
        by_us = variables.get(PREFIX + name.replace(".", NESTED).upper())
        return by_us or foreign[name][0]
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        variable = PREFIX + NESTED.join(parts[:size]).upper()
        if variable in variables:
            return variables[variable]
    return str(config_path()) if name in file else "default"


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _problems(error: ValidationError) -> Iterator[str]:
    """Each problem: the setting's name, where it was set, and what is accepted."""
    variables = {name.upper(): name for name in os.environ}
    foreign = _foreign(_read_file())
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        origin = _origin(name, variables, foreign, {name: None})
        if item["type"] == "extra_forbidden":
            yield f"{name} (from {origin}) is not a setting{_nearest(item['loc'])}"
            continue
        is_shown = (
            isinstance(item["input"], str | int | float | bool)
            and not name.endswith(SECRETS)
            and item["type"] not in NO_TABLE
        )
        shown = f" = {item['input']!r}" if is_shown else ""
        words = expected(item["type"], item.get("ctx", {}))
        yield f"{name}{shown} (from {origin}): {words[:1].lower()}{words[1:]}"


def _no_json(cause: BaseException | None) -> str:
    """The message for a variable that must be JSON and is not. `cause`: what its decoder raised."""
    if isinstance(cause, json.JSONDecodeError):
        for name, value in os.environ.items():
            if not name.upper().startswith(PREFIX) or value != cause.doc:
                continue
            said = f"{name} is not valid JSON; give a JSON object or list"
            if NESTED in name.upper().removeprefix(PREFIX):
                return said
            return f"{said}, or set single values in variables such as {name.upper()}{NESTED}NAME"
    return f"a {PREFIX}* variable cannot be read; `env | grep {PREFIX}` lists them"


def _nearest(location: tuple[int | str, ...]) -> str:
    owners: dict[str, type[BaseModel]] = {
        "pools": PoolSettings,
        "run": LocalRun,
        "limits": Times,
        "api": Api,
        "api_keys": ApiKey,
        "webhooks": Webhook,
        "media": MediaAccess,
        "inbox": InboxFiles,
    }
    first = str(location[0])
    model = owners.get(first, Settings) if len(location) > 1 else Settings
    near = get_close_matches(str(location[-1]), model.model_fields, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; use one of {', '.join(model.model_fields)}"


def _refuse_misspelt_variables(environ: Mapping[str, str]) -> None:
    """Reject misspelled variables, which would be ignored silently. Others of this prefix may belong to other tools."""
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
