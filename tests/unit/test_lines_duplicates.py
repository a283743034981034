"""Ids that were used twice are suspects; those used once are not."""

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.lines import DuplicateFinder


@given(st.lists(st.text(max_size=3)))
def test_suspects_are_the_ids_used_twice(custom_ids: list[str]) -> None:
    finder = DuplicateFinder()
    for custom_id in custom_ids:
        finder.add(custom_id)
    suspects = finder.suspects()
    twice = {custom_id for custom_id in custom_ids if custom_ids.count(custom_id) > 1}
    assert {custom_id for custom_id in custom_ids if finder.is_suspect(custom_id, suspects)} == twice
