import math

import pytest

from onebox.runs.results import best_row

ROWS = {0: {"val/a": 0.1}, 1: {"val/a": 0.5}, 2: {"val/a": 0.5}, 3: {"val/a": math.nan}, 4: {"train/a": 9.0}}


@pytest.mark.parametrize(("mode", "epoch"), [("max", 1), ("min", 0)])
def test_best_row_is_the_first_of_the_best(mode, epoch):
    assert best_row(ROWS, "val/a", mode) == {"epoch": epoch, **ROWS[epoch]}


def test_without_a_number_there_is_no_best_row():
    assert best_row({0: {"val/a": math.nan}}, "val/a", "max") == {}
    assert best_row({}, "val/a", "max") == {}
