"""The recipe that runs the tests with real vLLM names where they are, since to collect all others takes long."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_with_real_vllm_is_where_the_recipes_look() -> None:
    found = re.search(r'^engines := "(.+)"$', (ROOT / "justfile").read_text(), re.MULTILINE)
    assert found is not None
    places = tuple(found[1].split())
    marked = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/test_*.py")]
    marked = [name for name in marked if re.search(r"\bmark\.vllm\b", (ROOT / name).read_text())]
    assert [name for name in marked if not name.startswith(places)] == []
