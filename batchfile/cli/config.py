"""`batchfile config show`: every setting, where it came from, and what holds where it has no value."""

import json
from collections.abc import Iterable

import click

from batchfile.cli.in_force import as_words, in_force
from batchfile.settings import Setting, Settings, explain_settings, load_settings

WIDTH_MAX = 48  # of the column of values; longer ones reach into the next
OF_POOLS = ("pools", "stages")


@click.group("config")
def command() -> None:
    """Show the settings and where they came from."""


@command.command("show")
@click.option("--all", "is_all", is_flag=True, help="The built-in pools and stages too, where you have set none.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object instead of a table, of everything.")
def show(is_all: bool, is_json: bool) -> None:
    """Print each value and its origin: default, the file, or a variable of the environment.

    In parentheses: what holds where nothing is set. Times are in seconds.
    """
    settings = load_settings()
    found = explain_settings(settings)
    if is_json:
        click.echo(json.dumps({item.name: _as_json(settings, item) for item in found}, indent=2))
        return
    hidden = [] if is_all or has_own_pools(found) else [item for item in found if _is_of_pools(item)]
    rows = [(item.name, _shown(settings, item), item.origin) for item in found if item not in hidden]
    names, values = (max(min(WIDTH_MAX, len(row[column])) for row in rows) for column in (0, 1))
    for name, value, origin in rows:
        click.echo(f"{name:<{names}}  {value:<{values}}  {origin}")
    if hidden:
        click.echo("Not shown: the built-in pools and stages, which only a service uses; --all shows them.", err=True)


def has_own_pools(found: Iterable[Setting]) -> bool:
    """Is anything set of the pools or stages, which `batchfile run` does without?"""
    return any(_is_of_pools(item) and item.origin != "default" for item in found)


def _is_of_pools(item: Setting) -> bool:
    return item.name.partition(".")[0] in OF_POOLS


def _as_json(settings: Settings, item: Setting) -> dict[str, object]:
    shown: dict[str, object] = {"value": item.value, "origin": item.origin}
    holds = in_force(settings, item.name) if item.value is None else None
    return shown if holds is None else shown | {"in_force": holds}


def _shown(settings: Settings, item: Setting) -> str:
    if item.value is not None:
        return json.dumps(item.value, ensure_ascii=False)
    holds = in_force(settings, item.name)
    return "-" if holds is None else f"({as_words(holds)})"
