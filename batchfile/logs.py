"""Logs of the service, of the commands and of the library: structlog to stderr. Never prompts or outputs."""

import logging
import os
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LEVEL_VARIABLE = "BATCHFILE_LOG_LEVEL"

_SAID = frozenset({"input.changed"})  # events that the command itself prints


def for_library() -> None:
    """Warnings and errors on stderr, unless the program has configured structlog itself."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )


def configure(**keys: Any) -> None:
    """Set up the logs of a service: one line per event, JSON unless stderr is a terminal. The level is that of
    BATCHFILE_LOG_LEVEL, until `set_level`.

    Call it once per process, before anything logs. `keys` are on every line, of every thread."""
    is_person = sys.stderr.isatty()
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
        if is_person
        else structlog.processors.JSONRenderer()
    )

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            lambda logger, name, event: {**event, **keys},
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    set_level(os.environ.get(LEVEL_VARIABLE, "info"))


def set_level(level: str) -> None:
    """Of the service's logs. An unknown level is `info`; reading the settings reports it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS.get(level, logging.INFO)))


def for_command(*, is_verbose: bool = False) -> None:
    """Set up the logs of a command: warnings and errors unless verbose. Once per process, before anything logs."""
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
        # Looked up each time: a live display replaces sys.stderr, and writes each message above itself.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def _drop_said(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if event.get("event") in _SAID:
        raise structlog.DropEvent
    return event
