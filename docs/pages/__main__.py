"""Updates the generated pages of the docs: `python -m docs.pages`."""

from collections.abc import Callable
from pathlib import Path

from docs.pages import commands, glossary, requests, settings

DOCS = Path(__file__).parents[1]
# By page: its text from what it was.
PAGES: dict[str, Callable[[str], str]] = {
    "cli.md": lambda _: commands.reference(),
    "glossary.md": lambda _: glossary.glossary(),
    "requests.md": requests.with_tables,
    "settings.md": settings.with_tables,
}


def main() -> None:
    for name, updated in PAGES.items():
        page = DOCS / name
        page.write_text(updated(page.read_text()))


if __name__ == "__main__":
    main()
