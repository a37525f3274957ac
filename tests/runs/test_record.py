import json

import pytest

from onebox.errors import Preempted
from onebox.runs.record import RunRecord


def read(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_record_says_running_until_it_says_completed(tmp_path):
    with RunRecord(tmp_path, name="x") as record:
        assert read(tmp_path)["status"] == "running"
        record.add(parameters=3)
    facts = read(tmp_path)
    assert (facts["status"], facts["name"], facts["parameters"]) == ("completed", "x", 3)
    assert facts["ended"] >= facts["started"]


def test_a_run_that_goes_on_keeps_what_is_known_of_its_earlier_attempts(tmp_path):
    for status in ("interrupted", "running", "completed"):
        earlier = read(tmp_path) if (tmp_path / "run.json").exists() else None
        if status == "interrupted":
            with pytest.raises(Preempted), RunRecord(tmp_path, earlier, name="x"):
                raise Preempted("stopped by SIGTERM")
        elif status == "running":
            RunRecord(tmp_path, earlier, name="x").__enter__()  # and killed
        else:
            with RunRecord(tmp_path, earlier, name="x"):
                pass
        assert read(tmp_path)["status"] == status
    first, second = read(tmp_path)["attempts"]
    assert (first["status"], first["error"]["message"]) == ("interrupted", "stopped by SIGTERM")
    assert (second["status"], second["ended"]) == ("running", None)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("broken"), "failed"), (KeyboardInterrupt(), "interrupted"), (Preempted(), "interrupted")],
)
def test_an_error_is_recorded_and_goes_on_its_way(tmp_path, error, status):
    with pytest.raises(type(error)), RunRecord(tmp_path):
        raise error
    facts = read(tmp_path)
    assert facts["status"] == status
    assert facts["error"]["type"] == type(error).__name__
    if status == "failed":
        assert facts["error"]["message"] == "broken"
        assert "test_record.py" in facts["error"]["traceback"]
