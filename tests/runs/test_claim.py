import json
import subprocess
import sys

import pytest

from onebox.errors import BadInput
from onebox.runs.record import claim, release


def write(folder, **facts):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def elsewhere(folder):
    """Claims in another process, says so and waits to be killed."""
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
def test_a_run_that_did_not_complete_goes_on(tmp_path, status):
    write(tmp_path, status=status, fingerprint="abc")
    assert claim(tmp_path, fingerprint="abc", resume="auto")["status"] == status
    release(tmp_path)


@pytest.mark.parametrize(
    ("facts", "resume", "told"),
    [
        ({"status": "completed", "fingerprint": "abc"}, "auto", "holds a run already (completed)"),
        ({"status": "interrupted", "fingerprint": "abc"}, "never", "holds a run already (interrupted)"),
        ({"status": "interrupted", "fingerprint": "xyz"}, "auto", "fingerprint xyz, not abc"),
    ],
)
def test_a_directory_that_is_taken_is_refused_and_not_touched(tmp_path, facts, resume, told):
    folder = write(tmp_path / "run", **facts)
    with pytest.raises(BadInput) as refusal:
        claim(folder, fingerprint="abc", resume=resume)
    assert told in str(refusal.value)
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_two_processes_never_have_the_same_directory(tmp_path):
    process, answer = elsewhere(tmp_path)
    assert answer == "claimed\n"
    with pytest.raises(BadInput, match="another process is running it"):
        claim(tmp_path, fingerprint="abc", resume="auto")
    process.kill()
    process.communicate()
    assert claim(tmp_path, fingerprint="abc", resume="auto") is None  # a killed process holds nothing
    process, answer = elsewhere(tmp_path)
    assert answer == ""
    assert "another process is running it" in process.communicate()[1]
    release(tmp_path)
    process, answer = elsewhere(tmp_path)
    process.communicate("")
    assert answer == "claimed\n"
