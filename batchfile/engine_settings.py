"""The settings of engines that pools and local runs share: their devices, and arguments of vLLM."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue


def _size(value: object) -> object:
    number = int(str(value)) if str(value).isdecimal() else 0
    if value != "auto" and number < 1:
        raise ValueError("must be a whole number of at least 1, or auto")
    return number or value


def _gpus(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise ValueError("must be all, their number, or a list in quotes such as '0,2' or '4-7'")
    return value


# Before pydantic, which would report each of the types that a value does not have.
ParallelSize = Annotated[int | str, BeforeValidator(_size)]
Gpus = Annotated[int | str | None, BeforeValidator(_gpus)]


class EngineSettings(BaseModel):
    """The devices of a machine that engines get, and the arguments of vLLM that pools and runs share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    gpus: Gpus = Field(
        default=None, description="The GPUs to use: `all`, their number, or a list such as `0,2` or `4-7`."
    )
    tensor_parallel_size: ParallelSize = Field(
        default="auto", description="GPUs that share the model; `auto`: the fewest in which it fits."
    )
    pipeline_parallel_size: int = Field(
        default=1, ge=1, description="Parts of the model, one after another, each on `tensor_parallel_size` GPUs."
    )
    replicas: int | None = Field(
        default=None,
        ge=1,
        description="Engines on one machine, each in its own process. By default as many as its GPUs hold.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = Field(
        default=None, description="The data type of vLLM. By default the model's own, if the device computes with it."
    )
    quantization: str | None = Field(default=None, description="vLLM's name of a quantization, such as `fp8`.")
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The share of a GPU's memory that vLLM uses. By default 0.95, less on a GPU with a display.",
    )
    kv_cache_dtype: str | None = Field(default=None, description="The data type of the KV cache, such as `fp8`.")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, description="Tokens that vLLM computes in one step at most."
    )
    chat_template: str | None = Field(
        default=None, description="A file with a chat template to use instead of the model's own."
    )
    engine_args: dict[str, JsonValue] = Field(
        default={},
        description="Further engine arguments of vLLM, by their Python names. They override the other settings.",
    )

    @property
    def vllm_arguments(self) -> dict[str, Any]:
        """Those that vLLM has under the same names, and the further ones."""
        names = ("dtype", "quantization", "kv_cache_dtype", "max_num_batched_tokens")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.pipeline_parallel_size > 1:
            found["pipeline_parallel_size"] = self.pipeline_parallel_size
        return found | self.engine_args
