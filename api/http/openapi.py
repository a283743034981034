"""Builds the OpenAPI document: its shared parts, responses that are files, and an HTML page of it.

The page is built once and loads no external script, style or font.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

from jinja2 import Environment
from litestar import MediaType
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, OpenAPIMediaType, OpenAPIResponse, Operation, Schema, SecurityScheme
from litestar.openapi.spec.enums import OpenAPIType
from litestar.plugins.pydantic import PydanticSchemaPlugin
from litestar.typing import FieldDefinition

from batchfile import __version__
from batchfile.settings import Settings

DESCRIPTION = "Batch processing of LLM requests: send one file, get one results file in the same order."


class StrictSchemas(PydanticSchemaPlugin):
    """Sets `additionalProperties: false` for bodies that reject unknown fields."""

    @classmethod
    def for_pydantic_model(cls, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        schema = super().for_pydantic_model(field_definition, schema_creator)
        if field_definition.annotation.model_config.get("extra") == "forbid":
            schema.additional_properties = False
        return schema


def document_config(settings: Settings) -> OpenAPIConfig:
    scheme = SecurityScheme(type="http", scheme="bearer", description="Or send the header `x-api-key: KEY`.")
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


JSON_LINES = "application/x-ndjson"


def plain(answer: type | None, description: str, media_type: str = "application/json") -> ResponseSpec:
    """A documented response without generated examples."""
    return ResponseSpec(answer, generate_examples=False, description=description, media_type=media_type)


FILE = {
    200: plain(str, "The file.", JSON_LINES),
    206: plain(str, "The requested range.", JSON_LINES),
    304: plain(None, "The file matches `If-None-Match`."),
}


@dataclass
class OR_LINES(Operation):
    """Documents a response that can also be JSON Lines."""

    def __post_init__(self) -> None:
        success = (self.responses or {})["200"]
        if isinstance(success, OpenAPIResponse) and success.content is not None:
            success.content[JSON_LINES] = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))


_STYLE = """
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
  h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
  summary { cursor: pointer; padding: .35rem 0; }
  code, pre { font: 13px/1.45 ui-monospace, monospace; }
  pre { background: #f6f6f4; padding: .75rem; overflow: auto; border-radius: 4px; }
  td { padding: .1rem .8rem .1rem 0; vertical-align: top; }
  .method { display: inline-block; width: 4.2rem; font-weight: 600; text-transform: uppercase; }
  .quiet { color: #666; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'"

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ info.title }}</title>
<style>{{ style | safe }}</style>
<h1>{{ info.title }} <span class="quiet">{{ info.version }}</span></h1>
<p>{{ info.description }}</p>
<p><a href="/openapi.json">openapi.json</a> · <a href="/healthz">healthz</a> · <a href="/metrics">metrics</a></p>
{% for tag, operations in groups.items() %}
<h2>{{ tag }}</h2>
{% for item in operations %}
<details id="{{ item.id }}">
  <summary><span class="method">{{ item.method }}</span> <code>{{ item.path }}</code>
    <span class="quiet">{{ item.summary }}</span></summary>
  <p>{{ item.description }}</p>
  {% if item.parameters %}
  <table>
  {% for parameter in item.parameters %}
    <tr><td><code>{{ parameter.name }}</code></td><td class="quiet">{{ parameter.in }}</td>
      <td>{{ parameter.description or "" }}</td></tr>
  {% endfor %}
  </table>
  {% endif %}
  {% for kind, body in item.bodies.items() %}
  <p class="quiet">{{ kind }}</p>
  <pre>{{ body }}</pre>
  {% endfor %}
  <table>
  {% for status, text in item.answers.items() %}
    <tr><td><code>{{ status }}</code></td><td>{{ text }}</td></tr>
  {% endfor %}
  </table>
</details>
{% endfor %}
{% endfor %}
<h2>Schemas</h2>
{% for name, schema in schemas.items() %}
<details id="{{ name }}"><summary><code>{{ name }}</code></summary><pre>{{ schema }}</pre></details>
{% endfor %}
</html>
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPage:
    """A document that never changes while the process runs. `etag`: with its quotes."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> Self:
        return cls(body=body, media_type=media_type, etag=f'"{hashlib.sha256(body).hexdigest()[:32]}"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Pages without authentication, so they are cached as bytes."""

    docs: RenderedPage
    openapi: RenderedPage

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        return cls(
            docs=RenderedPage.of(_render(document).encode(), "text/html; charset=utf-8"),
            openapi=RenderedPage.of(json.dumps(document, separators=(",", ":")).encode(), "application/json"),
        )


def _render(document: dict[str, Any]) -> str:
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation.get("tags", ["other"])[0], []).append(_shown(path, method, operation))
    schemas = document.get("components", {}).get("schemas", {})
    shown = {name: json.dumps(schema, indent=2) for name, schema in sorted(schemas.items())}
    return _PAGE.render(style=_STYLE, info=document["info"], groups=groups, schemas=shown)


def _shown(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    bodies = operation.get("requestBody", {}).get("content", {})
    return {
        "id": operation["operationId"],
        "method": method,
        "path": path,
        "summary": operation.get("summary", ""),
        "description": operation.get("description", ""),
        "parameters": operation.get("parameters", []),
        "bodies": {kind: json.dumps(body.get("schema", {}), indent=2) for kind, body in bodies.items()},
        "answers": {status: answer.get("description", "") for status, answer in operation["responses"].items()},
    }
