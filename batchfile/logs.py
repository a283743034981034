"""Logs of the service, of the commands and of the library: structlog to stderr. Never prompts or outputs."""

import logging
import os
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SAID = frozenset({"input.changed"})  # in words, by the command itself


def for_library() -> None:
    """Warnings and worse on stderr, unless the program has set structlog up itself."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )


def configure(**keys: Any) -> None:
    """Of a service: a line each, JSON unless a person looks. Once per process, before anything logs.

    `keys` are on every line, whichever thread writes it."""
    is_person = sys.stderr.isatty()
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
        if is_person
        else structlog.processors.JSONRenderer()
    )

    def add_keys(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
        return {**event, **keys}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            add_keys,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def for_command(*, is_verbose: bool = False) -> None:
    """Of a command: warnings and worse unless asked for more. Once per process, before anything logs."""
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
