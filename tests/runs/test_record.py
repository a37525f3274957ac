"""A run directory belongs to one process and one config; run.json says how its run ended."""

import json
import subprocess
import sys

import pytest

from onebox.errors import BadInput, Preempted
from onebox.runs.record import RunRecord, claim, is_held, record_failure, release


def read(folder):
    return json.loads((folder / "run.json").read_text())


def write(folder, **facts):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def elsewhere(folder):
    """Claims in another process, says so and waits to be killed or for its input to end."""
    code = (
        "import sys; from pathlib import Path; from onebox.runs.record import claim\n"
        "claim(Path(sys.argv[1]), fingerprint='abc', resume='auto'); print('claimed', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline()


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_did_not_complete_may_be_resumed(tmp_path, status):
    write(tmp_path, status=status, fingerprint="abc")
    assert claim(tmp_path, fingerprint="abc", resume="auto")["status"] == status
    release(tmp_path)


@pytest.mark.parametrize(
    ("facts", "resume", "told"),
    [
        ({"status": "completed", "fingerprint": "abc"}, "auto", "already holds a run (completed)"),
        ({"status": "interrupted", "fingerprint": "abc"}, "never", "already holds a run (interrupted)"),
        ({"status": "interrupted", "fingerprint": "xyz"}, "auto", "fingerprint xyz, not abc"),
    ],
)
def test_a_directory_that_is_taken_is_refused_and_not_touched(tmp_path, facts, resume, told):
    folder = write(tmp_path / "run", **facts)
    with pytest.raises(BadInput) as refusal:
        claim(folder, fingerprint="abc", resume=resume)
    assert told in str(refusal.value)
    assert [path.name for path in folder.iterdir()] == ["run.json"]


KILLED = {"type": "JobFailed", "message": "killed by SIGKILL"}


def test_two_processes_never_have_the_same_directory(tmp_path):
    write(tmp_path, status="running", fingerprint="abc")
    process, answer = elsewhere(tmp_path)
    assert answer == "claimed\n"
    with pytest.raises(BadInput, match="another process is running it"):
        claim(tmp_path, fingerprint="abc", resume="auto")
    record_failure(tmp_path, KILLED, fingerprint="abc")
    assert read(tmp_path)["status"] == "running"
    process.kill()
    process.communicate()
    claim(tmp_path, fingerprint="abc", resume="auto")  # a killed process holds nothing
    process, answer = elsewhere(tmp_path)
    assert answer == ""
    assert "another process is running it" in process.communicate()[1]
    release(tmp_path)
    process, answer = elsewhere(tmp_path)
    process.communicate("")
    assert answer == "claimed\n"


def test_a_record_says_running_until_it_says_completed(tmp_path):
    with RunRecord(tmp_path, name="x") as record:
        assert read(tmp_path)["status"] == "running"
        record.add(parameters=3)
    facts = read(tmp_path)
    assert (facts["status"], facts["name"], facts["parameters"]) == ("completed", "x", 3)
    assert facts["ended"] >= facts["started"]


def test_a_resumed_run_keeps_what_is_known_of_its_earlier_attempts(tmp_path):
    with pytest.raises(Preempted), RunRecord(tmp_path, name="x"):
        raise Preempted("stopped by SIGTERM")
    RunRecord(tmp_path, read(tmp_path), name="x").__enter__()  # and killed
    assert read(tmp_path)["status"] == "running"
    with RunRecord(tmp_path, read(tmp_path), name="x"):
        pass
    assert read(tmp_path)["status"] == "completed"
    first, second = read(tmp_path)["attempts"]
    assert (first["status"], first["error"]["message"]) == ("interrupted", "stopped by SIGTERM")
    assert (second["status"], second["ended"]) == ("running", None)


@pytest.mark.parametrize(
    ("kind", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted"), (Preempted, "interrupted")]
)
@pytest.mark.parametrize("is_stored", [False, True])
def test_an_error_is_recorded_and_raised_on_and_the_directory_is_free_again(tmp_path, kind, status, is_stored):
    assert claim(tmp_path, fingerprint="f", resume="auto") is None
    assert is_held(tmp_path, unknown=False)
    if is_stored:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(kind) as raised, RunRecord(tmp_path):
        raise kind("broken")
    assert not is_held(tmp_path, unknown=False)
    facts = read(tmp_path)
    assert (facts["status"], facts["error"]["type"]) == (status, kind.__name__)
    assert facts["error"]["message"] == "broken"
    if status == "failed":
        assert "test_record.py" in facts["error"]["traceback"]
    else:
        then = "resumes it" if is_stored else "starts it again, as nothing was stored yet"
        assert str(raised.value).endswith(f"broken; onebox-train resume={tmp_path} {then}")


@pytest.mark.parametrize("status", [None, "running", "interrupted", "failed", "completed"])
def test_who_outlives_a_run_says_why_it_failed_unless_the_run_said_it(tmp_path, status):
    before = {"status": status, "started": "2026-01-01T00:00:00+00:00", "fingerprint": "f", "error": {"message": "own"}}
    if status is not None:
        write(tmp_path, **before)
    record_failure(tmp_path, KILLED, fingerprint="f", seed=3)
    if status in ("failed", "completed"):
        assert read(tmp_path) == before
    else:
        assert read(tmp_path)["status"] == "failed" and read(tmp_path)["error"] == KILLED
        assert read(tmp_path)["fingerprint"] == "f"


def test_only_what_a_killed_run_left_is_removed(tmp_path):
    """`hydra.run.dir=.` makes the folder of a user a run directory."""
    theirs = [tmp_path / name for name in (".notes.tmp", "deep/.notes.1.tmp", "checkpoints/.mine.tmp")]
    ours = [tmp_path / name for name in (".run.json.17.tmp", ".trace.csv.17.tmp", "checkpoints/.last.ckpt.17.tmp")]
    for path in theirs + ours:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    claim(tmp_path, fingerprint="abc", resume="auto")
    assert [path.exists() for path in theirs + ours] == [True] * 3 + [False, True, True]
    write(tmp_path, status="interrupted", fingerprint="abc")
    claim(tmp_path, fingerprint="abc", resume="auto")
    assert [path.exists() for path in theirs + ours] == [True] * 3 + [False] * 3
    release(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "report.html", "checkpoints/last.ckpt", "metrics.csv"])
def test_a_folder_of_the_user_in_which_a_run_would_overwrite_something_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInput, match=f"holds {name} of no run; choose another hydra.run.dir"):
        claim(tmp_path, fingerprint="x", resume="auto")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
