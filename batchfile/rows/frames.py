"""Tables of other Python libraries as rows, and back with further columns: the same kind of table, in the same order.

pandas, polars, Hugging Face datasets and anything else with the Arrow PyCapsule interface; lists of dicts need no
Arrow. Knows no prompt and no engine.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from batchfile.errors import InvalidFile, check_installed

NAME = "the table"
_ACCEPTED = "pass a pandas or polars DataFrame, an Arrow table, a list of dicts, or the path of a file"
_MISSING = {"NAType", "NaTType"}  # of pandas
_METHODS = ("isoformat", "tolist", "item")  # of times, of arrays, and of the scalars of NumPy


class ArrowStream(Protocol):
    """The Arrow PyCapsule interface: https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html"""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class Frame(Protocol):
    """A table in memory. `rows`: with these columns only, of which there is at least one."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]: ...

    def answered(self, added: Sequence[dict[str, Any]]) -> Any:
        """The table with further columns; `added`: their values, for each row. The table itself is unchanged."""


def open_frame(data: object) -> Frame:
    """Raises: InvalidFile for what is not a table; SettingsError where pyarrow is needed and is not installed."""
    if isinstance(data, list):
        return _Dicts(data)
    kind = type(data).__name__
    if isinstance(data, Iterator) and not hasattr(data, "__arrow_c_stream__"):
        raise InvalidFile(f"{kind} can be read only once; pass a list of its rows: list(...)")
    if kind in {"Series", "ChunkedArray"}:
        raise InvalidFile(f"{kind} is one column, not a table; give the column a name, such as with to_frame()")
    owner = _owner(data)
    if owner is None and not hasattr(data, "__arrow_c_stream__"):
        hint = {"LazyFrame": "collect() it first", "DatasetDict": "choose one of its splits"}.get(kind, _ACCEPTED)
        raise InvalidFile(f"{kind} is not a table; {hint}")
    check_installed("pyarrow", extra="parquet", what=f"batchfile.map of a {kind}")
    from batchfile.rows import arrow

    return arrow.open_arrow(data, owner)


def _owner(data: object) -> str | None:
    """The library whose table this is, also of a subclass; None for any other."""
    for base in type(data).__mro__:
        library = base.__module__.partition(".")[0]
        if (library, base.__name__) in {("pandas", "DataFrame"), ("polars", "DataFrame"), ("datasets", "Dataset")}:
            return library
    return None


def check_names(names: Iterable[object]) -> tuple[str, ...]:
    """Raises: InvalidFile for a name that is not text, and for one that two columns have."""
    seen: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str):
            raise InvalidFile(f"{NAME}: the name of column {name!r} is not text; rename it to {str(name)!r}")
        if name in seen:
            raise InvalidFile(f"{NAME}: has 2 columns named {name!r}; give each its own name")
        seen[name] = None
    return tuple(seen)


@dataclass(frozen=True, slots=True)
class _Dicts:
    data: list[Any]

    @property
    def columns(self) -> tuple[str, ...]:
        if not self.data:
            raise InvalidFile(f"{NAME}: has no rows")
        names: dict[object, None] = {}
        for number, row in enumerate(self.data, 1):
            if not isinstance(row, Mapping):
                raise InvalidFile(f"{NAME}: row {number} must be a dict, got {type(row).__name__}")
            if row.keys() != names.keys():
                names |= dict.fromkeys(row)
        return check_names(names)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        return ({name: row[name] for name in columns if name in row} for row in self.data)

    def answered(self, added: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, **more} for row, more in zip(self.data, added, strict=True)]


def json_rows(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Each row as a line of JSON: times as ISO 8601, NaN as null, bytes as base64. Raises: InvalidFile."""
    for number, row in enumerate(rows, 1):
        try:
            yield _encoder.encode(row) + b"\n"
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            wrong = next((name for name, value in row.items() if not _has_json(value)), "")
            where = f"{NAME}: row {number}: column {wrong!r}"
            raise InvalidFile(f"{where} has a value without a JSON form: {error}; convert it to text") from None


def _plain(value: object) -> object:
    if type(value).__name__ in _MISSING:
        return None
    for name in _METHODS:
        if callable(method := getattr(value, name, None)):
            return method()
    raise TypeError(f"type {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number")


def _has_json(value: object) -> bool:
    try:
        _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True
