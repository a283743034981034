"""`batchfile config show`: every setting and where it came from."""

import json

import click

from batchfile.settings import explain_settings, load_settings


@click.group("config")
def command() -> None:
    """Show the settings and where they came from."""


@command.command("show")
@click.option("--json", "is_json", is_flag=True, help="One JSON object instead of a table.")
def show(is_json: bool) -> None:
    """Print each value and its origin: default, the file, or a variable of the environment."""
    found = explain_settings(load_settings())
    if is_json:
        click.echo(json.dumps({item.name: {"value": item.value, "origin": item.origin} for item in found}, indent=2))
        return
    rows = [(item.name, _shown(item.value), item.origin) for item in found]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


def _shown(value: object) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False)
