"""Which checkpoints `onebox prune` removes, and what then says so."""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onebox.cli import app
from onebox.errors import BadInput
from onebox.runs.checkpoint import checkpoint_to_resume
from onebox.runs.reading.load import load_run
from onebox.runs.record import RunRecord, claim, read_record, release

FILES = ("best.ckpt", "last.ckpt")


@pytest.fixture
def stored(make_run, tmp_path):
    """Four completed runs in two folders, one that was interrupted, one that runs; 2 MB of checkpoints in each."""
    for number, (name, value) in enumerate([("a/0", 0.1), ("a/1", 0.3), ("a/2", 0.2), ("b/0", 0.05)]):
        ended = datetime.now(UTC) - timedelta(days=number)
        make_run(name, metrics={"joint_acc": value}, last={"joint_acc": -value}, ended=ended.isoformat())
    make_run("a/interrupted", status="interrupted")
    make_run("a/running", status="running")
    outputs = tmp_path / "outputs"
    for run in outputs.glob("*/*"):
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "best.ckpt").write_bytes(bytes(2_000_000))
        os.link(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")
    claim(outputs / "a/running", fingerprint=read_record(outputs / "a/running")["fingerprint"], resume="auto")
    yield outputs
    release(outputs / "a/running")


def command(outputs, *arguments, fails=0):
    done = CliRunner().invoke(app, ["prune", *map(str, arguments), "--outputs", str(outputs)])
    if isinstance(done.exception, BadInput):
        raise done.exception
    assert done.exit_code == fails, done.output
    return done.stdout


def left(outputs):
    return sorted(str(path.parents[1].relative_to(outputs)) for path in outputs.glob("*/*/checkpoints/best.ckpt"))


@pytest.mark.parametrize(
    ("rules", "pruned"),
    [
        (["--keep", "best:1"], ["a/0", "a/2"]),  # the best of each folder; what did not complete could be resumed
        (["--keep", "best:0"], ["a/0", "a/1", "a/2", "b/0"]),
        (["--older", "36h"], ["a/2", "b/0"]),  # what was interrupted is as old as its checkpoint
        (["--older", "0h"], ["a/0", "a/1", "a/2", "a/interrupted", "b/0"]),
        (["--keep", "best:1", "--older", "1d"], ["a/2"]),
    ],
)
def test_rules_choose_the_runs(stored, rules, pruned):
    before = left(stored)
    said = command(stored, *rules, "--dry-run")
    assert left(stored) == before
    assert f"{2 * len(pruned)}.0 MB of checkpoints of {len(pruned)} runs" in said
    assert "1 running keeps theirs" in said
    said = command(stored, *rules, "--yes")
    assert said.endswith(f"{2 * len(pruned)}.0 MB freed\n")
    assert sorted(set(before) - set(left(stored))) == pruned
    for run in pruned:
        assert os.listdir(stored / run / "checkpoints") == []
        assert (stored / run / "run.json").exists() and not {*FILES} & {*os.listdir(stored / run)}
    assert command(stored, *rules).startswith("0.0 MB of checkpoints of 0 runs")


def test_only_what_a_run_wrote_itself_is_removed(stored, tmp_path):
    """Not through links, whatever is linked, nor what a person has put there."""
    precious = tmp_path / "precious"
    (precious / "checkpoints").mkdir(parents=True)
    for path in (precious / "best.ckpt", precious / "checkpoints" / "best.ckpt", stored / "a/2/checkpoints/mine.ckpt"):
        path.write_bytes(b"x")
    (stored / "a/0/checkpoints/best.ckpt").unlink()
    (stored / "a/0/checkpoints/best.ckpt").symlink_to(precious / "best.ckpt")
    for name in FILES:
        (stored / "a/1/checkpoints" / name).unlink()
    (stored / "a/1/checkpoints").rmdir()
    (stored / "a/1/checkpoints").symlink_to(precious / "checkpoints")
    (stored / "b/0/run.json").rename(precious / "run.json")
    (stored / "c").symlink_to(precious)
    before = (stored / "a/0/run.json").read_text()
    assert "4.0 MB freed" in command(stored, "a", "--keep", "best:0", "--yes")
    assert all((precious / name).read_bytes() == b"x" for name in ("best.ckpt", "checkpoints/best.ckpt"))
    assert os.listdir(stored / "a/2/checkpoints") == ["mine.ckpt"]
    assert left(stored) == ["a/0", "a/1", "a/interrupted", "a/running", "b/0"]
    now = json.loads((stored / "a/0/run.json").read_text())
    assert now.pop("checkpoints_removed")[:2] == "20" and now == json.loads(before)


def test_a_run_that_another_process_has_begun_meanwhile_keeps_them(stored, monkeypatch):
    code = "import sys; from pathlib import Path; from onebox.runs.record import take_directory as take; take(Path(sys.argv[1]), wait=True); print(1, flush=True); sys.stdin.read()"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code, stored / "a/0"], stdin=-1, stdout=-1) as holder:
        holder.stdout.readline()
        assert "2.0 MB freed" in command(stored, "a", "--keep", "best:1", "--yes", fails=1)
        holder.stdin.close()
    assert "a/0" in left(stored) and "a/2" not in left(stored)


@pytest.mark.parametrize(("answer", "is_removed"), [("y", True), ("", False)])
def test_a_terminal_is_asked_first(stored, answer, is_removed):
    person, terminal = pty.openpty()
    os.write(person, f"{answer}\n".encode())
    onebox = Path(sys.executable).parent / "onebox"
    arguments = [onebox, "prune", "a", "--keep", "best:1", "--outputs", stored]
    done = subprocess.run(arguments, stdin=terminal, capture_output=True, text=True)
    assert done.returncode == 0 and "Remove them? [y/N]" in done.stdout, done.stderr
    assert ("a/0" not in left(stored)) == is_removed
    os.close(person), os.close(terminal)


def test_a_run_says_that_its_checkpoints_were_removed(stored, caplog):
    command(stored, "--older", "0d", "--yes")
    told = r"its checkpoints were removed by onebox prune on 20\d\d-\d\d-\d\d"
    with pytest.raises(BadInput, match=told):
        load_run(stored / "a/0")
    assert "no checkpoints, as onebox prune removed them: #1-5" in CliRunner().invoke(app, ["runs", "--markdown", "--outputs", str(stored)]).output  # fmt: skip
    folder = stored / "a/interrupted"
    caplog.set_level("INFO")
    earlier = claim(folder, fingerprint=read_record(folder)["fingerprint"], resume="auto")
    with RunRecord(folder, earlier, fingerprint=earlier["fingerprint"]):
        assert checkpoint_to_resume(folder, {}) is None
    assert caplog.messages[-1].startswith("starts again: its checkpoints were removed by onebox prune on 20")
    assert "checkpoints_removed" not in read_record(folder)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a rule"),
        (["--keep", "5"], "--keep 5: takes best:N"),
        (["--older", "30"], "--older 30: takes hours"),
        (["nowhere", "--older", "30d"], "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(stored, arguments, told):
    with pytest.raises(BadInput, match=told):
        command(stored, *arguments)
