import json
import subprocess
import sys

import pytest

from onebox.errors import Preempted
from onebox.runs.record import RunRecord, claim, is_held, record_failure


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
def test_an_error_is_recorded_and_raised_on_and_the_directory_is_free_again(tmp_path, error, status):
    assert claim(tmp_path, fingerprint="f", resume="auto") is None
    assert is_held(tmp_path, unknown=False)
    with pytest.raises(type(error)), RunRecord(tmp_path):
        raise error
    assert not is_held(tmp_path, unknown=False)
    facts = read(tmp_path)
    assert facts["status"] == status
    assert facts["error"]["type"] == type(error).__name__
    if status == "failed":
        assert facts["error"]["message"] == "broken"
        assert "test_record.py" in facts["error"]["traceback"]
    else:
        assert str(error).endswith("starts it again, as nothing was stored yet")


KILLED = {"type": "JobFailed", "message": "killed by SIGKILL"}


@pytest.mark.parametrize("status", [None, "running", "interrupted", "failed", "completed"])
def test_who_outlives_a_run_says_why_it_failed_unless_the_run_said_it(tmp_path, status):
    before = {"status": status, "started": "2026-01-01T00:00:00+00:00", "fingerprint": "f", "error": {"message": "own"}}
    if status is not None:
        (tmp_path / "run.json").write_text(json.dumps(before))
    record_failure(tmp_path, KILLED, fingerprint="f", seed=3)
    if status in ("failed", "completed"):
        assert read(tmp_path) == before
    else:
        assert read(tmp_path)["status"] == "failed" and read(tmp_path)["error"] == KILLED
        assert read(tmp_path)["fingerprint"] == "f"


def test_a_run_that_another_process_has_is_not_said_to_have_failed(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "running", "fingerprint": "f"}')
    code = (
        "import sys, pathlib; from onebox.runs.record import claim\n"
        "claim(pathlib.Path(sys.argv[1]), fingerprint='f', resume='auto'); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        record_failure(tmp_path, KILLED, fingerprint="f")
        assert read(tmp_path)["status"] == "running"
        other.stdin.write(b"\n")
        other.stdin.close()
