"""The tree keeps its limits, or comes nearer to them; ``python -m tests.house`` prints all of them."""

from pathlib import Path

import house


def test_no_limit_is_passed():
    over = [row for row in house.measure(Path(__file__).parents[1]) if house.worse(row)]
    assert not over, "\n" + house.table(over, most=8)
