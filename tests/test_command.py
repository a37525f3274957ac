"""The installed command, as a user starts it."""

import json
import os
import pty
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from tests.nursery import left

COMMAND = Path(sys.executable).parent / "onebox-train"


def start(folder: Path, *arguments: str, output=subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(COMMAND), *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def fast(shapes_root: Path) -> list[str]:
    return ["debug=fast", f"data.root={shapes_root}", "data.source=null", "callbacks/progress=lines"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (
            ["--help"],
            ["onebox-train experiment=baseline", "model/box_coder: bins, cells, cxcywh_sigmoid, ltrb, xywh, xyxy"],
        ),
        (["--cfg", "job"], ["max_epochs: "]),
        (["experiment=baseline", "--cfg", "job", "--resolve"], ["max_epochs: "]),
        (["-sc", "query=bash"], ["model/box_coder=cxcywh_sigmoid"]),  # what a shell asks, with the line typed so far
    ],
)
def test_help_config_and_completion_never_import_torch(tmp_path, arguments, shown):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, atexit; from onebox.train import main\n"
        "heavy = {'torch', 'lightning', 'torchvision', 'albumentations'}\n"
        "atexit.register(lambda: print('HEAVY', heavy & {*sys.modules}))\n"
        f"sys.argv = ['onebox-train', *{arguments!r}]; main()"
    )
    environment = {**os.environ, "COMP_LINE": "onebox-train model/box_coder=", "COMP_POINT": "29"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY set()"
    for text in shown:
        assert text in done.stdout


def test_bad_data_leaves_a_run_that_says_failed_and_why_and_debug_shows_the_traceback(tmp_path):
    done = run(tmp_path, "data=voc2007", "voc_root=nowhere", ONEBOX_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    (record,) = tmp_path.glob("outputs/default/*/run.json")
    facts = json.loads(record.read_text())
    assert facts["status"] == "failed"
    assert "nowhere" in facts["error"]["message"]


def test_a_run_ends_with_its_table_and_where_to_look(tmp_path, shapes_root):
    done = run(tmp_path, *fast(shapes_root))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs/default").iterdir()
    relative = folder.relative_to(tmp_path)
    for text in ("joint_acc", "floor", f"{relative}/report.html", f"tensorboard --logdir {relative}"):
        assert text in done.stdout
    assert re.search(r"^train \d+ of 60 images, \d+ dropped \(several objects\)", done.stdout, re.M)
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "overrides.yaml", "hydra.yaml"}
    assert not done.stderr.strip(), done.stderr


def test_a_sweep_gives_each_job_a_directory_and_a_new_key_at_its_neutral_value_orphans_none(tmp_path, shapes_root):
    sweep = ["sweep=loss_weights", "hydra.sweeper.params={loss.weights.loc:'1,10'}", *fast(shapes_root)]
    done = run(tmp_path, *sweep)
    assert done.returncode == 0, done.stderr
    records = [*tmp_path.glob("outputs/sweeps/loss_weights/*/run.json")]
    before = {path: path.read_text() for path in records}
    found = {path.parent.name: json.loads(text) for path, text in before.items()}
    assert [record["status"] for record in found.values()] == ["completed"] * 2
    assert {record["fingerprint"] for record in found.values()} == set(found)

    own = tmp_path / "own/extra"
    own.mkdir(parents=True)
    (own / "later.yaml").write_text("# @package _global_\nlater: 0\nfingerprint_neutral: {later: 0}\n")
    again = run(tmp_path, "--config-dir", str(own.parent), *sweep, "+extra=later")
    assert again.returncode == 0, again.stderr
    assert "2 jobs: 2 done" in again.stdout
    assert {path: path.read_text() for path in tmp_path.glob("outputs/sweeps/loss_weights/*/run.json")} == before


@pytest.mark.parametrize(("how", "code", "told"), [("Ctrl-C", 130, "Ctrl-C"), ("closed terminal", 75, "SIGHUP")])
def test_stopped_by_hand_a_run_says_interrupted_and_leaves_no_worker(tmp_path, shapes_root, how, code, told):
    data = [
        f"data.root={shapes_root}",
        "data.source=null",
        "callbacks/progress=lines",
        "data.num_workers=1",
        "image_size=32",
    ]
    endless = ["trainer.max_epochs=100000", "callbacks.checkpoint_last.epoch_seconds=0"]
    master, slave = pty.openpty()
    # setsid makes the terminal that of the command and of all that it starts.
    command = ["setsid", "--ctty", "--wait", str(COMMAND), *data, *endless]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    with open(master, closefd=False) as terminal:
        next(line for line in terminal if line.startswith("Epoch 2/"))
        if how == "Ctrl-C":
            os.write(master, b"\x03")
            with suppress(OSError):  # EIO, when nobody has the other end any longer
                terminal.read()
    os.close(master)
    assert process.wait(timeout=60) == code
    (record,) = tmp_path.glob("outputs/default/*/run.json")
    facts = json.loads(record.read_text())
    assert (facts["status"], facts["error"]["message"]) == ("interrupted", f"stopped by {told}")
    assert (record.parent / "checkpoints" / "last.ckpt").exists()
    assert not list(record.parent.rglob("*.tmp"))
    assert not left(tmp_path)


def test_a_directory_whose_name_looks_like_markup_is_printed_as_it_is(tmp_path, shapes_root):
    done = run(tmp_path, "hydra.run.dir='mine/o[/x]'", *fast(shapes_root))
    assert done.returncode == 0, done.stderr
    assert "report   mine/o[/x]/report.html" in done.stdout


def test_two_runs_in_one_second_share_no_directory_and_complete_though_they_cannot_print(tmp_path, shapes_root):
    first = start(tmp_path, *fast(shapes_root), LC_ALL="C", PYTHONIOENCODING="ascii", TERM="dumb", HOME="/nowhere")
    with open("/dev/full", "w") as full:
        second = start(tmp_path, *fast(shapes_root), output=full)
    with first, second:
        first.stdout.readline()
        first.stdout.close()  # as `head -1` does
        assert first.stderr.read() == ""
        assert second.stderr.read() == "onebox-train: what it prints cannot be written: No space left on device\n"
    assert [first.returncode, second.returncode] == [0, 1]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/default/*/run.json")]
    assert [record["status"] for record in records] == ["completed"] * 2


def test_a_run_directory_that_is_taken_is_refused(tmp_path, shapes_root):
    (tmp_path / "mine/.hydra").mkdir(parents=True)
    (tmp_path / "mine/run.json").write_text("{}")
    (tmp_path / "mine/.hydra/overrides.yaml").write_text("- seed=7")
    done = run(tmp_path, "hydra.run.dir=mine", *fast(shapes_root))
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (tmp_path / "mine/run.json").read_text() == "{}"
    assert (tmp_path / "mine/.hydra/overrides.yaml").read_text() == "- seed=7"


def facts_of(folder: Path):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of some bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("only root mounts, and not everywhere")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_run_that_fills_the_disk_says_so_and_resumes(nursery, disk, shapes_root, tmp_path):
    folder = disk("size=550k") / "run"
    arguments = [*fast(shapes_root), "trainer.max_epochs=3", f"data.cache_dir={tmp_path / 'cache'}"]
    arguments += ["callbacks.checkpoint_last.epoch_seconds=0", "callbacks.pictures=null"]
    there = set(Path(tempfile.gettempdir()).glob("tmp*"))
    assert nursery.run(*arguments, f"hydra.run.dir={folder}", log=tmp_path / "log") == 1
    assert "Traceback" not in (tmp_path / "log").read_text()
    line = (tmp_path / "log").read_text().splitlines()[-1]
    assert line.startswith("onebox-train: ") and "No space left on device; make room; a run then resumes" in line
    assert (facts_of(folder)["status"], facts_of(folder)["error"]["type"]) == ("failed", "OSError")
    assert not list(folder.rglob("*.tmp"))
    assert not {path for path in Path(tempfile.gettempdir()).glob("tmp*") if path.is_file()} - there
    disk("remount,size=50m")
    for name in (folder, tmp_path / "straight"):
        assert nursery.run(*arguments, f"hydra.run.dir={name}", log=tmp_path / "log") == 0
    assert facts_of(folder)["final_weights"] == facts_of(tmp_path / "straight")["final_weights"]
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "straight/metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("limit", "arguments", "told"),
    [
        ("-f 300", ["callbacks.pictures=null"], "File too large; raise the limit of a file's size"),
        ("-f 300", ["data.num_workers=2"], "a loader process ended: .* or could not hand over a batch"),
        ("-n 20", [], "Too many open files; raise the limit of open files"),
        ("-n 70", ["data.num_workers=2"], "Too many open files; raise the limit of open files"),
        ("-v 3000000", [], "Cannot allocate memory; lower data.batch_size"),
    ],
)
def test_a_limit_of_the_system_is_one_line(shapes_root, tmp_path, limit, arguments, told):
    command = ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", str(COMMAND), *fast(shapes_root), *arguments]
    done = subprocess.run([*command, "hydra.run.dir=run"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(f"onebox-train: .*{told}", line)
    assert not (tmp_path / "run").exists() or facts_of(tmp_path / "run")["status"] == "failed"


def test_a_folder_that_cannot_be_written_is_one_line_where_results_go_and_a_warning_where_the_cache_is(
    nursery, disk, shapes_root, tmp_path
):
    folder = disk("ro")
    arguments = [*fast(shapes_root), f"data.cache_dir={folder / 'cache'}"]
    assert nursery.run(*arguments, f"hydra.run.dir={folder / 'run'}", log=tmp_path / "log") == 2
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("onebox-train: ") and "Read-only file system; permit it, or choose another hydra" in line
    assert nursery.run(*arguments, f"hydra.run.dir={tmp_path / 'run'}", log=tmp_path / "log") == 0
    assert "Read-only file system" in (tmp_path / "log").read_text()
