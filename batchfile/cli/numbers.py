"""Numbers as options: NaN and infinity pass click's own ranges and mean nothing here."""

from math import isfinite
from typing import Any

import click


class Finite(click.FloatRange):
    """A range of floats without NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number
