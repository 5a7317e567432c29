"""What a reaper has to end when the process that told it is gone."""

import pytest

from scripts.local.reaper import left


@pytest.mark.parametrize(
    ("told", "remaining"),
    [
        ([], []),
        (["+1\n", "+2\n"], [1, 2]),
        (["+1\n", "+2\n", "-1\n", "+3\n"], [2, 3]),
        (["+1\n", "-1\n"], []),
    ],
)
def test_what_has_begun_and_not_ended_is_left(told: list[str], remaining: list[int]) -> None:
    assert left(told) == remaining
