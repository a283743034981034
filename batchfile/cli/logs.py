"""Logs of a command: structlog to stderr, warnings and worse unless asked for more. Never prompts or outputs."""

import logging
import os
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

_SAID = frozenset({"input.changed"})  # in words, by the command itself


def configure(*, is_verbose: bool = False) -> None:
    """Once per process, before anything logs."""
    level = logging.INFO if is_verbose else logging.WARNING
    colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    structlog.configure(
        processors=[
            *([] if is_verbose else [_drop_said]),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=colors),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Looked up each time: a live display puts itself in its place, and writes each message above itself.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def _drop_said(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if event.get("event") in _SAID:
        raise structlog.DropEvent
    return event
