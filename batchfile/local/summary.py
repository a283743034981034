"""Says how a run ended: for each file, or for the rows of a table. Knows no terminal."""

import os
from collections.abc import Iterator

from batchfile.lines.failures import example_of, reason_of
from batchfile.local.display import counted, dollars, duration, failure_lines, from_here, outcomes
from batchfile.local.receipt import Receipt
from batchfile.types import Usage

REASONS_MAX = 5


def summary(receipt: Receipt, path: str | None, error_column: str | None = None) -> str:
    """`error_column`: of rows, in their output."""
    num_left = receipt.input.requests - receipt.counts.succeeded
    total = counted(receipt.input.requests, "request")
    text = f"{receipt.counts.succeeded:,} of {total} succeeded in {duration(receipt.seconds)}"
    if receipt.cost_usd is not None:
        text += f", for {dollars(receipt.cost_usd)}"
    if receipt.reason == "input_changed":
        text += f"; the rest did not run, because {_what_became_of(receipt.input.path)}"
    elif receipt.reason != "completed":
        text += f"; the batch ended early ({receipt.reason})"
    if path is not None:
        text += f": {from_here(path)}"
        if num_left:
            advice = f"the column {error_column} says why" if error_column else _what_to_do(receipt, num_left)
            text += f"; {', '.join(outcomes(receipt.counts))}: {advice}"
    return text


def _what_became_of(path: str) -> str:
    became = "was changed while it ran" if os.path.exists(path) else "was removed while it ran"
    return f"{from_here(path)} {became}"


def _what_to_do(receipt: Receipt, num_left: int) -> str:
    """Lines that were too long are missing from the errors file, and so are those that no longer exist."""
    errors = receipt.errors
    if receipt.reason == "input_changed":
        named = "" if errors is None else f"{from_here(errors.path)} lists them; "
        if not os.path.exists(receipt.input.path):
            return f"{named}restore the file and run the same command again to finish the rest"
        return f"{named}the same command runs the changed file and keeps what has finished"
    why = "the results say why" if receipt.reasons is None else f"{from_here(receipt.reasons.path)} says why"
    if errors is None:
        return why
    few = f" ({errors.lines:,} of them)" if errors.lines < num_left else ""
    lines = f"{from_here(errors.path)} has the lines{few}"
    return f"{why} and {lines}; fix them in the input, and the same command runs only those"


def reasons(receipt: Receipt) -> Iterator[str]:
    """The most frequent reasons why requests did not succeed, and what to do."""
    for line in failure_lines(receipt.failures, receipt.counts, num_max=REASONS_MAX):
        yield f"  {line}"


def full_summary(receipt: Receipt, error_column: str | None) -> Iterator[str]:
    """For one file, with its tokens and the reasons."""
    yield summary(receipt, receipt.output.path, error_column)
    reused = f", {counted(receipt.reused, 'result')} reused" if receipt.reused else ""
    yield f"{_tokens(receipt.usage)}{reused}"
    yield from reasons(receipt)


def rows_summary(errors: list[str | None], usage: Usage, seconds: float | None, column: str) -> Iterator[str]:
    """Of the rows of a table. `errors`: why a row has no answer, for each row; `seconds` None: nothing had to run;
    `column`: the one that has the errors.
    """
    failed = [(number, error) for number, error in enumerate(errors, 1) if error is not None]
    parts = [f"{len(errors) - len(failed):,} answered"]
    if failed:
        parts.append(f"{len(failed):,} failed")
    how = "kept from an earlier call" if seconds is None else duration(seconds)
    advice = f"; the column {column} says why" if failed else ""
    yield f"{counted(len(errors), 'row')}: {', '.join(parts)}; {_tokens(usage)}; {how}{advice}"
    yield from _row_reasons(failed)


def _row_reasons(failed: list[tuple[int, str]]) -> Iterator[str]:
    """The most frequent reasons, each with its first row."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for row in failed:
        groups.setdefault(reason_of("", row[1]), []).append(row)
    for reason, rows in sorted(groups.items(), key=lambda group: -len(group[1]))[:REASONS_MAX]:
        number, error = rows[0]
        if len(rows) == 1:
            yield f"row {number:,} failed: {error}"
        else:
            example = example_of(error)
            own = "" if example == reason else f": {example}"
            yield f"{len(rows):,} rows failed: {reason}; for example row {number:,}{own}"


def _tokens(usage: Usage) -> str:
    unknown = f", usage unknown for {counted(usage.unknown, 'result')}" if usage.unknown else ""
    return f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} tokens out{unknown}"
