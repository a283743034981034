"""`/v1/models`: lists each pool as a model with the pool's name, and each LoRA adapter, in Anthropic's and OpenAI's
API formats.
"""

from collections.abc import Mapping
from typing import Annotated

from litestar.params import FromPath, QueryParameter

from batchfile.errors import InvalidRequest
from batchfile.routing import route
from batchfile.settings_tables import PoolSettings

from ..http.errors import Refusal
from ..http.negotiation import OpenAIProblem
from ..http.routes import FormatDep, Routes
from ..native import schemas as native_schemas
from ..service import PAGE_MAX, ServiceDep
from . import schemas as anthropic_schemas

models = Routes("/v1/models", tag="models", problem=OpenAIProblem | anthropic_schemas.ErrorBody)


@models.get("", 400, summary="List models")
async def list_models(
    service: ServiceDep,
    negotiated: FormatDep,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX, description="Anthropic's API format only.")] = 20,
    after_id: Annotated[str | None, QueryParameter(description="Anthropic's API format only.")] = None,
    before_id: Annotated[str | None, QueryParameter(description="Anthropic's API format only.")] = None,
) -> anthropic_schemas.ModelPage | native_schemas.ModelList:
    """List the pools and their LoRA adapters, sorted by name. Use these ids as `model`."""
    pools = _pools_by_name(service.settings.pools)
    names = sorted(pools)
    if negotiated.api_format != "anthropic":
        return native_schemas.ModelList(data=[native_schemas.Model(id=name) for name in names])
    if before_id:
        names = [name for name in names if name < before_id]
        shown = names[-limit:]
    else:
        names = [name for name in names if name > (after_id or "")]
        shown = names[:limit]
    found = [anthropic_schemas.model_of(name, pools[name]) for name in shown]
    return anthropic_schemas.model_page(found, has_more=len(shown) < len(names))


@models.get("/{model_id:path}", summary="Get a model")
async def one_model(
    model_id: FromPath[str], service: ServiceDep, negotiated: FormatDep
) -> anthropic_schemas.ModelInfo | native_schemas.Model:
    """Find a model by the name of its pool, its own name, an alias or a LoRA adapter."""
    name, pools = model_id.removeprefix("/"), _pools_by_name(service.settings.pools)
    try:
        name = name if name in pools else route(service.settings.routing(), stage=None, hint=None, model=name)
    except InvalidRequest as error:
        raise Refusal(404, str(error)) from None
    if negotiated.api_format != "anthropic":
        return native_schemas.Model(id=name)
    return anthropic_schemas.model_of(name, pools[name])


def _pools_by_name(pools: Mapping[str, PoolSettings]) -> dict[str, PoolSettings]:
    """By their names and those of their adapters."""
    return {name: pool for own, pool in pools.items() for name in (*pool.lora, own)}
