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
    SecretStr,
    field_validator,
    model_validator,
)

from batchfile.engine_settings import EngineSettings, ParallelSize
from batchfile.ledger.keys import is_pool_name
from batchfile.media.rules import DEFAULT_LIMITS, PIXELS_MAX, MediaLimits
from batchfile.types import NAME_RULE, EngineKind, Task

TOMBSTONE_S_MIN = 2 * 3600.0  # twice the time after which a create is abandoned
Positive = Annotated[float, Field(gt=0)]


def _without_user(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError("must not contain credentials, which would appear in logs; set api_key instead")
    return url


BaseUrl = Annotated[str, AfterValidator(_without_user)]

WEBHOOK_URL = r"^https?://[^\s/?#@]+(/[^\s#]*)?$"
KEY_NAME_RULE = "letters, digits, _, . and -, at most 40"
KEY_NAME = r"^[\w.-]{1,40}$"
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
    KEY_NAME: KEY_NAME_RULE,
    PUBLIC_URL: "an http:// or https:// URL without ?, #, { or }",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _ModelSettings(BaseModel):
    """A model and what runs it: of a pool, or of `batchfile run`."""

    model_config = _STRICT

    model: str | None = Field(
        default=None,
        description="The model's name on the hub or its folder; with an endpoint, the name that the endpoint serves.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="The branch, tag or commit of the model on its hub. By default its main branch.",
    )
    engine: EngineKind = Field(
        default="vllm",
        description="What generates: `vllm` here, `http` for an OpenAI-compatible endpoint, `echo` for tests.",
    )
    base_url: BaseUrl | None = Field(
        default=None, description="The address of the endpoint, such as `https://llm.example/v1`. Required with `http`."
    )
    max_num_seqs: int | None = Field(default=None, ge=1, description="Requests that one engine works on at a time.")


class PoolSettings(EngineSettings, _ModelSettings):
    """The runners that serve one model."""

    model: str = Field(
        min_length=1,
        description="The model's name on the hub or its folder; with an endpoint, the name that the endpoint serves.",
    )
    aliases: tuple[str, ...] = Field(default=(), description="Further model names that mean this pool.")
    task: Task = Field(
        default="generate",
        description=(
            "What the model is for: `generate` for text, `embed` for embeddings, `classify` for classes and the scores "
            "of a cross-encoder. An endpoint does not need it."
        ),
    )
    api_key: SecretStr | None = Field(default=None, description="The key of the endpoint. Better set as a variable.")
    max_model_len: int = Field(default=8192, ge=16, description="Tokens of a prompt and its answer together.")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="The share of a GPU's memory that vLLM uses."
    )
    tensor_parallel_size: ParallelSize = Field(
        default=1, description="GPUs that share the model; `auto`: the fewest in which it fits."
    )
    tool_parser: str | None = Field(default=None, description="vLLM's parser for tool calls, such as `hermes`.")
    reasoning_parser: str | None = Field(default=None, description="vLLM's parser for thinking, such as `qwen3`.")
    lora: dict[str, str] = Field(
        default={},
        description=(
            "LoRA adapters: their names, and their folders or repositories on the hub, such as `owner/name` or "
            "`owner/name@revision`. A request whose model is such a name uses that adapter."
        ),
    )
    parse_control_tokens: bool = Field(
        default=False,
        description=(
            "Give control tokens in the texts of requests, such as `<|im_end|>`, their meaning in vLLM. By default, "
            "they are ordinary text."
        ),
    )

    @model_validator(mode="after")
    def _has_address(self) -> "PoolSettings":
        if self.engine == "http" and not self.base_url:
            raise ValueError("a pool with engine = 'http' needs a base_url")
        if self.engine == "http" and self.lora:
            raise ValueError(
                "lora is for models that are loaded here; serve the endpoint's adapters as pools of their own"
            )
        if in_use := self.lora.keys() & {self.model, *self.aliases}:
            raise ValueError(
                f"lora: {min(in_use)!r} is the name of the model or an alias; give the adapter another name"
            )
        if self.engine == "http" and self.revision:
            raise ValueError("revision is for models that are loaded here; its endpoint chooses that of an http pool")
        return self


class LocalRun(EngineSettings, _ModelSettings):
    """Defaults of `batchfile run`; its options override them."""

    max_model_len: int | None = Field(default=None, ge=16, description="Tokens of a prompt and its answer together.")
    max_tokens: int = Field(default=2048, ge=1, description="Tokens of an answer, for requests that do not say.")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="Sampling temperature, for requests that do not say."
    )
    gpu_hour: float | None = Field(
        default=None, ge=0, description="The price of a GPU per hour in US dollars, to show what a run costs."
    )
    grace_s: float | None = Field(
        default=None,
        ge=0,
        description="How long a run that is stopped waits for the requests in its engine. Overrides `limits.grace_s`.",
    )


class Times(BaseModel):
    """Times in seconds, of a service, its runners and `batchfile run`."""

    model_config = _STRICT

    lease_ttl_s: Positive | None = Field(
        default=None,
        description=(
            "Another runner may claim a shard whose lease was not renewed for this long. At least three times "
            "`checkpoint_s`."
        ),
    )
    checkpoint_s: Positive | None = Field(
        default=None, description="How often a runner commits the finished requests of a shard."
    )
    grace_s: Positive | None = Field(
        default=None, description="How long a runner that is stopped waits for the requests in its engine."
    )
    engine_stall_s: Positive | None = Field(
        default=None,
        description=(
            "An engine that has requests and does nothing for this long counts as dead; three times as long before "
            "its first answer."
        ),
    )
    completion_window_s: Positive | None = Field(
        default=None,
        description="A batch that has not ended this long after its creation expires, unless it has its own deadline.",
    )
    retention_s: Positive | None = Field(
        default=None, description="A batch is deleted this long after it has ended, with its results."
    )
    download_grace_s: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="The data of a deleted batch is kept this long, so that running downloads can finish."
    )
    tombstone_s: Annotated[float, Field(ge=TOMBSTONE_S_MIN)] | None = Field(
        default=None,
        description="The record of a deleted batch is kept this long, so that no slow create brings the batch back.",
    )

    @model_validator(mode="after")
    def _lease_outlives_checkpoints(self) -> "Times":
        ttl_s, checkpoint_s = self.lease_ttl_s, self.checkpoint_s
        if ttl_s is not None and checkpoint_s is not None and ttl_s < 3 * checkpoint_s:
            raise ValueError("lease_ttl_s must be at least three times checkpoint_s, or leases expire while in use")
        return self


class ApiKey(BaseModel):
    """A key that the service accepts: its owner and its hash. The key itself is stored nowhere."""

    model_config = _STRICT

    tenant: str = Field(description="The owner of the key, and of the batches that are created with it.")
    sha256: str = Field(description="The SHA-256 of the key, in 64 hex digits.")
    dialect: Literal["stage", "anthropic"] | None = Field(
        default=None, description="The API format of responses to this key. Without it, the request decides."
    )
    name: str | None = Field(default=None, pattern=KEY_NAME, description="What the log calls the key.")

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
    """Where a tenant is notified when its batches end."""

    model_config = _STRICT

    url: str = Field(pattern=WEBHOOK_URL, description="The http(s) address that receives the events.")
    secret: SecretStr = Field(
        description="What the events are signed with: `whsec_` and 16 to 64 bytes in base64. Better set as a variable."
    )
    allow_private: bool = Field(
        default=False, description="Send events also to an address that is not reachable from the internet."
    )

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


class MediaAccess(BaseModel):
    """What the requests of a tenant may read in addition to themselves: images, audio and documents by URL."""

    model_config = _STRICT

    allow: tuple[str, ...] = Field(
        default=(),
        description=(
            "Hosts, with a port unless it is the usual one, and buckets or folders in them: `images.example`, "
            "`images.example:8443`, `s3://photos/public/`. The service's own bucket only below `inbox/TENANT/`."
        ),
    )
    allow_private: bool = Field(
        default=False, description="Read also from an address that is not reachable from the internet."
    )
    object_bytes_max: int = Field(default=DEFAULT_LIMITS.object_bytes, ge=1, description="Bytes of an object.")
    pixels_max: int = Field(
        default=DEFAULT_LIMITS.pixels,
        ge=1,
        le=PIXELS_MAX,
        description="Pixels of an image, for engines that decode it. A side has at most four times their square root.",
    )
    objects_max: int = Field(
        default=DEFAULT_LIMITS.objects, ge=1, description="Images, recordings and documents of a request."
    )
    request_bytes_max: int = Field(
        default=DEFAULT_LIMITS.request_bytes,
        ge=1,
        description=(
            "Bytes in memory of the media of a request: as read, four for each pixel, and four for each sample, as "
            "read and at 16,000 per second."
        ),
    )

    @field_validator("allow")
    @classmethod
    def _are_places(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        for place in allow:
            if not re.fullmatch(r"s3://[^/\s?#@*]+(/[^\s?#]*)?|[^/\s?#@:*]+(:\d+)?", place):
                raise ValueError(f"{place!r} must be a host, such as images.example, or s3://BUCKET/FOLDER/")
        return allow

    @property
    def limits(self) -> MediaLimits:
        return MediaLimits(
            object_bytes=self.object_bytes_max,
            pixels=self.pixels_max,
            request_bytes=self.request_bytes_max,
            objects=self.objects_max,
        )


class Api(BaseModel):
    """Limits and addresses of the HTTP service."""

    model_config = _STRICT

    body_bytes_max: int = Field(
        default=256 * 1024 * 1024, ge=1024, description="Bytes of a request body, after decompression."
    )
    requests_max: int = Field(default=1_000_000, ge=1, description="Requests of one batch.")
    file_bytes_max: int = Field(
        default=512 * 1024 * 1024, ge=1024, description="Bytes of a file that is uploaded through the OpenAI API."
    )
    in_flight_max: int = Field(
        default=64, ge=1, description="HTTP requests of one key that a process answers at a time."
    )
    open_batches_max: int = Field(default=1_000, ge=1, description="Batches of one tenant that have not ended.")
    body_wait_s: Positive = Field(
        default=60.0, description="Seconds without a byte after which a request body is abandoned."
    )
    spool_dir: Path | None = Field(default=None, description="The folder for request bodies while they arrive.")
    public_url: str | None = Field(
        default=None,
        pattern=PUBLIC_URL,
        description="The address at which clients reach the service, for links in responses.",
    )
    trust_forwarded: bool = Field(
        default=False,
        description=(
            "Use `X-Forwarded-Proto` and `X-Forwarded-Host` for links in responses. Only behind a proxy that "
            "overwrites both."
        ),
    )


class InboxFiles(BaseModel):
    """Defaults for files in the inbox."""

    model_config = _STRICT

    move_done: bool = Field(
        default=False, description="Move a file to `done/` when all of it has run, unless its options say otherwise."
    )


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
