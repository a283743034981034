"""`/v1/models`: the pools as models, in Anthropic's shape and in OpenAI's. One pool, one model, by the pool's name."""

from typing import Annotated

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from batchfile.errors import InvalidRequest
from batchfile.routing import route

from ..http.errors import Refusal
from ..http.negotiation import NegotiatedFormat
from ..http.openapi import READ, problems
from ..native import schemas as native_schemas
from ..service import PAGE_MAX, Service
from . import schemas as anthropic_schemas
from . import serializers

MODELS = "/v1/models"
PROBLEM = native_schemas.OpenAIProblem | anthropic_schemas.ErrorBody


@get(
    MODELS,
    responses=problems(READ, 400, shape=PROBLEM),
    tags=["models"],
    summary="What `model` may name",
    sync_to_thread=False,
)
def list_models(
    service: NamedDependency[Service],
    negotiated: NamedDependency[NegotiatedFormat],
    limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX, description="Anthropic's dialect.")] = 20,
    after_id: Annotated[str | None, QueryParameter(description="Anthropic's dialect.")] = None,
    before_id: Annotated[str | None, QueryParameter(description="Anthropic's dialect.")] = None,
) -> anthropic_schemas.ModelPage | native_schemas.ModelList:
    """The pools, by name."""
    names = sorted(service.settings.pools)
    if negotiated.dialect != "anthropic":
        return native_schemas.ModelList(data=[native_schemas.Model(id=name) for name in names])
    if before_id:
        names = [name for name in names if name < before_id]
        shown = names[-limit:]
    else:
        names = [name for name in names if name > (after_id or "")]
        shown = names[:limit]
    models = [serializers.model(name, service.settings.pools[name]) for name in shown]
    return serializers.model_page(models, has_more=len(shown) < len(names))


@get(
    MODELS + "/{model_id:path}",
    responses=problems(READ, shape=PROBLEM),
    tags=["models"],
    summary="One of them",
    sync_to_thread=False,
)
def one_model(
    model_id: FromPath[str], service: NamedDependency[Service], negotiated: NamedDependency[NegotiatedFormat]
) -> anthropic_schemas.ModelInfo | native_schemas.Model:
    """By the name of a pool, of its model or by an alias."""
    try:
        name = route(service.settings.routing(), stage=None, hint=None, model=model_id.removeprefix("/"))
    except InvalidRequest as error:
        raise Refusal(404, str(error)) from None
    if negotiated.dialect != "anthropic":
        return native_schemas.Model(id=name)
    return serializers.model(name, service.settings.pools[name])
