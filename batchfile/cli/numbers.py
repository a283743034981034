"""The types of numeric options, with plain error messages."""

from math import isfinite
from typing import Any

import click


def _between(min: float | None, max: float | None) -> str:
    if min is not None and max is not None:
        return f" from {min:g} to {max:g}"
    if min is not None:
        return f" of at least {min:g}"
    return "" if max is None else f" of at most {max:g}"


class Whole(click.IntRange):
    """A range of whole numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{str(value)[:80]!r} is not a whole number{_between(self.min, self.max)}.", param, ctx)


class Finite(click.FloatRange):
    """A range of floats without NaN and infinity, which click's own ranges accept."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = super().convert(value, param, ctx)
        except click.BadParameter:
            number = None
        if number is None or not isfinite(number):
            self.fail(f"{str(value)[:80]!r} is not a finite number{_between(self.min, self.max)}.", param, ctx)
        return number
