"""The fields of `RunOptions` as options of a command."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields
from typing import Any, get_type_hints

import click

from batchfile.cli.numbers import Finite, Whole
from batchfile.local.options import RunOptions, choices_of, flag_of

Command = Callable[..., None]


def run_options(only: Collection[str] = ()) -> Callable[[Command], Command]:
    """Adds the options that `RunOptions` declares, or `only` these of them."""
    kinds = get_type_hints(RunOptions)

    def add(command: Command) -> Command:
        for field in reversed(fields(RunOptions)):
            if "help" in field.metadata and (not only or field.name in only):
                command = _option(field, kinds[field.name])(command)
        return command

    return add


def _option(field: Field[Any], kind: object) -> Callable[[Command], Command]:
    has, choices = field.metadata, choices_of(field.name)
    is_mapping = kind in {Mapping[str, str] | None, Mapping[str, Any] | None}
    return click.option(
        flag_of(field.name.removesuffix("_s")),
        field.name,
        type=click.Choice(choices) if choices else _number(kind, has["least"], has["most"]),
        is_flag=kind is bool,
        multiple=is_mapping,
        callback=(_pairs if kind == Mapping[str, str] | None else _values) if is_mapping else None,
        default=field.default,
        metavar=has["metavar"],
        help=has["help"],
    )


def _pairs(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str] | None:
    """The values NAME=VALUE of an option that can be repeated."""
    pairs: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise click.BadParameter(f"{text!r} must be {option.metavar}")
        if name in pairs:
            raise click.BadParameter(f"{name!r} is given twice")
        pairs[name] = value
    return pairs or None


def _values(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any] | None:
    """The same with values that are JSON, or else text."""
    pairs = _pairs(context, option, given)
    return None if pairs is None else {name: _value(text) for name, text in pairs.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _number(kind: object, least: Any, most: Any) -> Whole | Finite | None:
    """None: not a numeric option."""
    if kind == int | None:
        return Whole(least, most)
    return Finite(least, most) if kind == float | None else None
