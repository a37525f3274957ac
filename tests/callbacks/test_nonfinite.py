"""A loss that is no finite number is said, and stops the fit unless it is to go on."""

import json

import pytest

from onebox.errors import BadInput
from onebox.runs.reading.diff import diff
from onebox.runs.reading.diff_view import markdown
from onebox.runs.reading.find import find_runs
from onebox.runs.reading.table import nonfinite_notes
from onebox.train import train

SHORT = ["debug=fast", "callbacks/progress=lines", "callbacks.pictures=null", "optimizer.lr=1e30"]


def test_a_fit_stops_where_its_loss_is_no_number(composed, tmp_path):
    with pytest.raises(BadInput, match=r"the loss is nan in epoch 0, batch 1 .*lower optimizer\.lr"):
        train(composed(*SHORT))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "the loss is nan" in record["error"]["message"]
    assert record["nonfinite"] == {"epoch": 0, "batch": 1, "loss": "nan"}


def test_a_fit_that_is_to_continue_says_it_once_and_in_run_json(composed, tmp_path, caplog):
    train(composed(*SHORT, "callbacks.nonfinite.action=continue"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["nonfinite"] == {"epoch": 0, "batch": 1, "loss": "nan"}
    assert "The loss was nan" in (tmp_path / "run" / "report.html").read_text()
    (found,) = find_runs(tmp_path / "run")
    with pytest.raises(BadInput, match=r"predicted_x1 of its row 1 is 'nan'.*whose loss was no number"):
        _ = found.predictions
    ((_, (line, _)),) = nonfinite_notes([found])
    assert "loss nan from epoch 0, batch 1 on" in line
    assert "loss nan from epoch 0, batch 1 on" in markdown(
        diff([found, found], tmp_path, everything=False), everything=False
    )
    assert sum("the loss is nan" in entry.message for entry in caplog.records) == 1
