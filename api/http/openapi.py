"""The OpenAPI document: what of it no single route says."""

from typing import Any

from litestar import MediaType
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, Schema, SecurityScheme
from litestar.plugins.pydantic import PydanticSchemaPlugin
from litestar.typing import FieldDefinition

from batchfile import __version__
from batchfile.settings import Settings

DESCRIPTION = "Batches of LLM requests: one file in, one file of results out, in the same order."


class StrictSchemas(PydanticSchemaPlugin):
    """Says of a body that takes no unknown keys that it takes none."""

    @classmethod
    def for_pydantic_model(cls, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        schema = super().for_pydantic_model(field_definition, schema_creator)
        if field_definition.annotation.model_config.get("extra") == "forbid":
            schema.additional_properties = False
        return schema


def document_config(settings: Settings) -> OpenAPIConfig:
    scheme = SecurityScheme(type="http", scheme="bearer", description="`x-api-key: KEY` will do as well.")
    return OpenAPIConfig(
        title="batchfile",
        version=__version__,
        description=DESCRIPTION,
        components=Components(security_schemes={"key": scheme}),
        security=[{"key": []}] if settings.api_keys else [],
        path="/docs/schema",
        render_plugins=[JsonRenderPlugin(path="/openapi.json", media_type=MediaType.JSON)],
        use_handler_docstrings=True,
    )
