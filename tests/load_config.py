"""What tests/load_test.py sends, and the targets that it holds the answers against: a YAML file, checked before use."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

Tokens = Annotated[int, Field(ge=0)]


class Unusable(Exception):
    """Of a config; the message says where and why."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sizes(Table):
    output_tokens: PositiveInt
    target_s: PositiveFloat | None = None


class Targets(Table):
    latency_p50_s: PositiveFloat | None = None
    latency_p95_s: PositiveFloat | None = None
    requests_per_s: PositiveFloat | None = None


class Config(Table):
    """The keys of test_config.yaml, which says what they mean."""

    leads: PositiveInt
    polish_share: Annotated[float, Field(ge=0, le=1)]
    batch_requests_max: PositiveInt
    concurrency: PositiveInt
    prompt_tokens: Tokens
    shared_tokens: Tokens
    ignore_eos: bool
    stages: Annotated[dict[str, Sizes], Field(min_length=1)]
    pools: dict[str, Targets]

    @model_validator(mode="after")
    def _has_what_is_polished(self) -> Self:
        stages = [stage for stage in self.stages if stage in {"email", "polish"}]
        if stages and stages[0] == "polish":
            raise ValueError("polish takes what email wrote: name email before it")
        return self


def read_config(path: Path, leads: int | None) -> Config:
    """`leads`: instead of the file's. Raises: Unusable."""
    try:
        found = yaml.safe_load(path.read_bytes())
        if not isinstance(found, dict):
            raise Unusable(f"{path}: is no table of keys; begin with a copy of test_config.yaml")
        return Config.model_validate(found if leads is None else found | {"leads": leads})
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise Unusable(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(str(part) for part in wrong["loc"])
        raise Unusable(f"{path}: {place + ': ' if place else ''}{wrong['msg'].removeprefix('Value error, ')}") from None
