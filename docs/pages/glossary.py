"""docs/glossary.md, made from docs/glossary.toml."""

import tomllib
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "glossary.toml"

HEAD = """# Glossary

For readers of the docs, the logs and the code: what each term means. One term has one meaning everywhere. This page is
made from [glossary.toml](glossary.toml) by `python -m docs.pages`; a second list there names what we avoid.

| term | meaning |
|---|---|
"""


def glossary() -> str:
    terms = tomllib.loads(SOURCE.read_text())["terms"]
    rows = sorted(terms.items(), key=lambda item: item[0].lower())
    return HEAD + "".join(f"| {term} | {meaning} |\n" for term, meaning in rows)
