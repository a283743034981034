"""Formats the end of a command's help: its exit codes and its examples."""


def epilog(*examples: str, exits: str = "") -> str:
    """`exits`: the exit codes of the command, as a paragraph. `\\b` keeps click from wrapping the lines."""
    lines = "\n".join(f"  {example}" for example in examples)
    return "\n\n".join(filter(None, (exits, f"\b\nExamples:\n{lines}")))
