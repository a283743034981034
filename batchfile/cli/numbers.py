"""The types of numeric options, with plain error messages."""

import re
import time
from datetime import datetime
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


_AGE = re.compile(r"(\d{1,9})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Since(click.ParamType):  # type: ignore[type-arg]  # generic only in some versions
    """A time in the past, in epoch seconds: an age such as `2h`, or a local date with or without a time."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        age = _AGE.fullmatch(str(value))
        if age is not None:
            return time.time() - int(age[1]) * _UNIT_S[age[2]]
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{str(value)[:80]!r} is not a time; use an age such as 90m, 2h or 7d, or a date.", param, ctx)
