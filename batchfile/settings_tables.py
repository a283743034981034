"""The tables of the settings with their rules, and the messages for wrong values.

Knows no file and no variable.
"""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    field_validator,
    model_validator,
)

from batchfile.ledger.keys import is_pool_name
from batchfile.types import EngineKind, Task

TOMBSTONE_S_MIN = 2 * 3600.0  # twice the time after which a create is abandoned
NAME_RULE = "use lower-case letters, digits, dots and dashes, at most 63"  # of pools and tenants
Positive = Annotated[float, Field(gt=0)]


def _without_user(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError("must not contain credentials, which would appear in logs; set api_key instead")
    return url


BaseUrl = Annotated[str, AfterValidator(_without_user)]

WEBHOOK_URL = r"^https?://[^\s/?#@]+(/[^\s#]*)?$"
PUBLIC_URL = r"^https?://[^\s{}?#]+$"

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "path_type": "the path of a file",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "none_required": "nothing",
}
_PATTERNS = {
    WEBHOOK_URL: "an http:// or https:// URL without user name and #, with a / before any ?",
    PUBLIC_URL: "an http:// or https:// URL without ?, #, { or }",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Pool(BaseModel):
    """Runners that serve one model. `aliases`: further model names that mean this pool.

    `task`: what the model is loaded for; with "embed" it makes embeddings and no text (not needed for an endpoint).
    `tool_parser`, `reasoning_parser`: vLLM's names of the parsers for tool calls and for thinking.
    `chat_template`: a file to use instead of the model's own. `engine_args`: more of vLLM's engine arguments, by their
    names in Python; they override ours.
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
    chat_template: str | None = None
    engine_args: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _has_address(self) -> "Pool":
        if self.engine == "http" and not self.base_url:
            raise ValueError("a pool with engine = 'http' needs a base_url")
        return self


class LocalRun(BaseModel):
    """The defaults of `batchfile run`. `model` None: the demo model, if it is cached.

    `grace_s`: how long a run that is stopped waits for its requests in flight; None: `limits.grace_s`, else 30.
    """

    model_config = _STRICT

    engine: EngineKind = "vllm"
    model: str | None = None
    base_url: BaseUrl | None = None
    max_model_len: int | None = Field(default=None, ge=16)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=2048, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    grace_s: float | None = Field(default=None, ge=0)


class Times(BaseModel):
    """The protocol's times, in seconds (docs/protocol.md). None: the default of the kind of store.

    `lease_ttl_s`, `checkpoint_s`: 90 and 15 on a bucket, 30 and 1 in a directory; the first is at least three times
    the second. `engine_stall_s`: an engine that makes no progress for this long, with requests in it, counts as dead;
    600, and three times that before its first answer. The objects of a deleted batch are removed after
    `download_grace_s` and its record after `tombstone_s`, which must be longer than any create takes.
    """

    model_config = _STRICT

    lease_ttl_s: Positive | None = None
    checkpoint_s: Positive | None = None
    grace_s: Positive | None = None
    engine_stall_s: Positive | None = None
    completion_window_s: Positive | None = None
    retention_s: Positive | None = None
    download_grace_s: Annotated[float, Field(ge=0)] | None = None
    tombstone_s: Annotated[float, Field(ge=TOMBSTONE_S_MIN)] | None = None

    @model_validator(mode="after")
    def _lease_outlives_checkpoints(self) -> "Times":
        ttl_s, checkpoint_s = self.lease_ttl_s, self.checkpoint_s
        if ttl_s is not None and checkpoint_s is not None and ttl_s < 3 * checkpoint_s:
            raise ValueError("lease_ttl_s must be at least three times checkpoint_s, or leases expire while in use")
        return self


class ApiKey(BaseModel):
    """An API key of a tenant. `sha256`: of the key, in hex; the key is not stored. The last field: its API format."""

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
            raise ValueError(f"{tenant!r} is not a valid tenant name; {NAME_RULE}")
        return tenant


class Webhook(BaseModel):
    """Where a tenant's ended batches are reported. `allow_private`: allow addresses outside the public internet."""

    model_config = _STRICT

    url: str = Field(pattern=WEBHOOK_URL)
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
            raise ValueError("must be whsec_ followed by 16 to 64 bytes in base64")
        return secret


class Api(BaseModel):
    """The HTTP service's limits. `spool_dir` None: the system's directory for temporary files.

    `public_url`: the URL of the service for callers, for links in answers; None: the one they sent their request to.
    `trust_forwarded`: trust X-Forwarded-Proto and X-Forwarded-Host; only for a proxy in front that overwrites what
    callers send in them.
    """

    model_config = _STRICT

    body_bytes_max: int = Field(default=256 * 1024 * 1024, ge=1024)  # after unpacking
    requests_max: int = Field(default=1_000_000, ge=1)  # of one batch
    file_bytes_max: int = Field(default=512 * 1024 * 1024, ge=1024)
    in_flight_max: int = Field(default=64, ge=1)  # HTTP requests of one key at a time, in one process
    open_batches_max: int = Field(default=1_000, ge=1)  # of one tenant
    body_wait_s: Positive = 60.0  # a body of which nothing arrives for this long is abandoned
    spool_dir: Path | None = None
    public_url: str | None = Field(default=None, pattern=PUBLIC_URL)
    trust_forwarded: bool = False


class InboxFiles(BaseModel):
    """The defaults for files in the inbox. `move_done`: move them to done/ once they have run."""

    model_config = _STRICT

    move_done: bool = False


def expected(kind: str, context: Mapping[str, Any]) -> str:
    """What is wrong, by the type of pydantic's error: `must be at least 1`. For our validators: what they raised."""
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "is missing; add it"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"must be {_PATTERNS[context['pattern']]}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"must be {words} {bound:g}" if isinstance(bound, float) else f"must be {words} {bound}"
    return f"must be {_KINDS[kind]}" if kind in _KINDS else f"is not valid ({kind})"
