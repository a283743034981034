"""docs/cli.md: the commands' help."""

from collections.abc import Iterator

import click

from batchfile.cli.group import root

WIDTH = 100

_HEAD = """# The `batchfile` command

Every command with its options and examples, for users of the command line. Start with
`batchfile run requests.jsonl -o results.jsonl`, or read [quickstart.md](quickstart.md).

Generated from `--help` by `python -m docs.pages`; a test checks that it is current.
"""


def reference() -> str:
    return "\n".join([_HEAD, *_sections(root, "batchfile")])


def _sections(command: click.Command, path: str) -> Iterator[str]:
    names = root.context_settings["help_option_names"]
    with click.Context(
        command, info_name=path, max_content_width=WIDTH, terminal_width=WIDTH, help_option_names=names
    ) as context:
        yield f"## `{path}`\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from _sections(found, f"{path} {name}")
