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


def test_git_state_is_recorded_with_uncommitted_changes(tmp_path, monkeypatch):
    import subprocess

    from onebox.runs import provenance

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q", "-b", "trunk")
    (tmp_path / "model.py").write_text("width = 8\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance.onebox, "__file__", str(tmp_path / "__init__.py"))
    state = provenance.git_state()
    assert state["branch"] == "trunk"
    assert len(state["sha"]) == 40
    assert not state["dirty"]
    (tmp_path / "model.py").write_text("width = 16\n")
    state = provenance.git_state()
    assert state["dirty"]
    assert "-width = 8\n+width = 16" in state["diff"]


def test_outside_git_the_state_is_none(tmp_path, monkeypatch):
    from onebox.runs import provenance

    monkeypatch.setattr(provenance.onebox, "__file__", str(tmp_path / "__init__.py"))
    assert provenance.git_state() is None
