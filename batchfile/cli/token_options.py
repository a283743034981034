"""`--tokens` of `estimate`, `stats` and `validate`: whose tokenizer counts, and what else decides the tokens."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchfile.errors import SettingsError
from batchfile.local.options import flag_of

if TYPE_CHECKING:
    from batchfile.engine.fit import TokenCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """The model, and the options of its prompts, as in a pool's settings."""

    model: str
    revision: str | None = None
    chat_template: str | None = None
    parse_control_tokens: bool = False

    def counter(self) -> "TokenCounter":
        """Raises: SettingsError if the model or the template cannot be loaded."""
        from batchfile.engine.fit import token_counter

        return token_counter(
            self.model,
            revision=self.revision,
            chat_template=None if self.chat_template is None else _read(self.chat_template),
            parses_control_tokens=self.parse_control_tokens,
        )


def token_options(help: str, *, also_of: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options; the command gets `tokenizer`, None without --tokens. `help`: of --tokens.

    `also_of`: options that the command uses without --tokens too, and gets itself.
    """
    options = [
        click.option("--tokens", "tokens", metavar="MODEL", help=help),
        click.option("--revision", help="The branch, tag or commit of the model on its hub.  [default: main]"),
        click.option(
            "--chat-template",
            metavar="FILE",
            help="With --tokens: a chat template instead of the model's own, as in a pool's settings.",
        ),
        click.option(
            "--parse-control-tokens",
            is_flag=True,
            help="With --tokens: count control tokens in texts as what they mean, instead of as text.",
        ),
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_tokenizer(tokens: str | None, **given: Any) -> None:
            names = ("revision", "chat_template", "parse_control_tokens")
            asked = {name: given[name] if name in also_of else given.pop(name) for name in names}
            if tokens is None:
                for name, value in asked.items():
                    if value and name not in also_of:
                        raise SettingsError(f"{flag_of(name)} needs --tokens MODEL, whose tokens it changes")
            command(tokenizer=None if tokens is None else Tokenizer(model=tokens, **asked), **given)

        made: Callable[..., None] = with_tokenizer
        for option in reversed(options):
            made = option(made)
        return made

    return add


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"--chat-template {path!r} cannot be read: {reason}. Name a file.") from error
