"""The expressions of `--where`."""

import pytest

from onebox.errors import BadInput
from onebox.runs.reading.find import find_runs
from onebox.runs.reading.where import select


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("val/joint_acc > .5", ["0", "second"]),
        ("val/joint_acc > .5 and loss.loc == giou", ["0"]),
        ("loss/loc == giou and status == failed", ["1"]),
        ("not (loss.loc == giou or seed == 1)", ["first"]),
        ("loss.loc==giou or seed==1 and test/joint_acc>=6e-1", ["1", "0", "second"]),
        ("optimizer.lr in [1e-2, 5]", ["second"]),
        ("status not in [completed, running]", ["1"]),
        ("loss.loc._target_ ~ Box*", ["1", "0"]),
        ("data.limit == null", ["0", "second", "first"]),
        ("data.limit != null", ["1"]),
        ("val/joint_acc == null", ["1"]),
        ("val/joint_acc != 3", ["0", "second", "first"]),
        ("error.type = 'ValueError'", ["1"]),
        ("started < 2026-11-23T10:00:03", ["second", "first"]),
        ("image_size == 100.0 and hardware.cores == 2", ["1", "0", "second", "first"]),
        ("seed < x or optimizer.lr == true", []),
        ("seed > -1 and name != in-house", ["1", "0", "second", "first"]),
    ],
)
def test_an_expression_finds_runs(outputs, text, expected):
    found, keys = select(find_runs(outputs), text)
    assert [run.path.name for run in found] == expected
    assert keys[0] in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("seed ==", "cannot be read"),
        ("seed == 1 2", "cannot be read"),
        ("(seed == 1", "cannot be read"),
        ("0 < seed < 2", "cannot be read"),
        ("seed in 1", "'in' takes a list in brackets"),
        ("seed == [1]", "'in' takes a list in brackets"),
        ("seed", "a key without an operator and a value"),
        ("name == 'x", "' stands alone"),
        ("and == 3", "cannot be read"),
        ("__import__('os').system('true') == 0", "cannot be read"),
        ("seed == (lambda: 0)()", "cannot be read"),
        ("val/joint_ac > 1", "no run has a key val/joint_ac, did you mean val/joint_acc"),
        ("seed == 1 or sed == 1", "no run has a key sed, did you mean seed"),
        ("lr == 1", "did you mean optimizer.lr"),
    ],
)
def test_a_wrong_expression_is_one_line_that_says_why(outputs, text, message):
    with pytest.raises(BadInput, match=message) as error:
        select(find_runs(outputs), text)
    assert "\n" not in str(error.value)
