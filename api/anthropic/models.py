"""`/v1/models`: the pools as models, in Anthropic's shape and in OpenAI's. One pool, one model, by the pool's name."""

from typing import Annotated

from litestar.params import FromPath, QueryParameter

from batchfile.errors import InvalidRequest
from batchfile.routing import route

from ..http.errors import Refusal
from ..http.routes import FormatDep, Routes, ServiceDep
from ..native import schemas as native_schemas
from ..service import PAGE_MAX
from . import schemas as anthropic_schemas

models = Routes("/v1/models", tag="models", problem=native_schemas.OpenAIProblem | anthropic_schemas.ErrorBody)


@models.get("", 400, summary="What `model` may name")
async def list_models(
    service: ServiceDep,
    negotiated: FormatDep,
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX, description="Anthropic's dialect.")] = 20,
    after_id: Annotated[str | None, QueryParameter(description="Anthropic's dialect.")] = None,
    before_id: Annotated[str | None, QueryParameter(description="Anthropic's dialect.")] = None,
) -> anthropic_schemas.ModelPage | native_schemas.ModelList:
    """The pools, by name."""
    names = sorted(service.settings.pools)
    if negotiated.api_format != "anthropic":
        return native_schemas.ModelList(data=[native_schemas.Model(id=name) for name in names])
    if before_id:
        names = [name for name in names if name < before_id]
        shown = names[-limit:]
    else:
        names = [name for name in names if name > (after_id or "")]
        shown = names[:limit]
    found = [anthropic_schemas.model_of(name, service.settings.pools[name]) for name in shown]
    return anthropic_schemas.model_page(found, has_more=len(shown) < len(names))


@models.get("/{model_id:path}", summary="One of them")
async def one_model(
    model_id: FromPath[str], service: ServiceDep, negotiated: FormatDep
) -> anthropic_schemas.ModelInfo | native_schemas.Model:
    """By the name of a pool, of its model or by an alias."""
    try:
        name = route(service.settings.routing(), stage=None, hint=None, model=model_id.removeprefix("/"))
    except InvalidRequest as error:
        raise Refusal(404, str(error)) from None
    if negotiated.api_format != "anthropic":
        return native_schemas.Model(id=name)
    return anthropic_schemas.model_of(name, service.settings.pools[name])
