"""`batchfile completion`: click's own completion scripts."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  eval "$(batchfile completion bash)"   in ~/.bashrc
    zsh:   eval "$(batchfile completion zsh)"    in ~/.zshrc
    fish:  batchfile completion fish > ~/.config/fish/completions/batchfile.fish
    """
    from batchfile.cli.group import root

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"click knows no completion for {shell}")
    click.echo(kind(root, {}, "batchfile", "_BATCHFILE_COMPLETE").source())
