"""Killed at any moment, a run that is resumed ends with the same bits as one that was never stopped.

The trainings are processes of their own, started by the installed code and really killed.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onebox.data.shapes import write_shapes

COMMAND = Path(sys.executable).parent / "onebox-train"

# What there is to lose: averaged weights, a schedule, dropout, early stopping, an epoch's sums, workers ahead of the step.
COMMON = shlex.split("""
    data.source=null data.batch_size=8 image_size=24 model.backbone.dropout=0.3
    optimizer.lr=0.003 scheduler=one_cycle monitor=val/iou
    callbacks/ema=default callbacks.ema.decay=0.8 callbacks/early_stopping=default callbacks/progress=lines
    callbacks.pictures.num_images=2 callbacks.pictures.every_n_epochs=1 callbacks.checkpoint_last.epoch_seconds=0
    trainer.accelerator=cpu trainer.max_epochs=4 trainer.log_every_n_steps=2
""")
EACH_STEP = "callbacks.checkpoint_last.every_minutes=0"
KINDS = {
    "per sample, in the process, each step saved": f"augment=flip data.num_workers=0 {EACH_STEP}",
    "per sample, workers, each epoch saved, stopped early": "augment=strong data.num_workers=2 "
    "callbacks.early_stopping.patience=1 callbacks.early_stopping.min_delta=1.0",
    "batched, in the process, each epoch saved, no validation in every second": "augment=batched_strong "
    "data.num_workers=0 trainer.check_val_every_n_epoch=2 callbacks.early_stopping.check_on_train_epoch_end=false",
    "batched, workers, each step saved, gradients of two steps": "augment=batched_flip data.num_workers=2 "
    f"+trainer.accumulate_grad_batches=2 {EACH_STEP}",
    "stored features, workers, nothing cached before": "augment=batched_flip data.num_workers=1 data.views=2 "
    "callbacks/freeze=backbone callbacks.pictures=null",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, nursery):
    """Arguments that all trainings here have; what is read once is read."""
    root = tmp_path_factory.mktemp("resume")
    sizes = {"num_train": 40, "num_val": 12, "num_test": 8}
    write_shapes(root / "shapes", **sizes, multi_object_fraction=0.0, min_side=32, max_side=40, seed=0)
    arguments = [f"data.root={root / 'shapes'}", f"data.cache_dir={root / 'cache'}", *COMMON]
    log = root / "log"
    assert nursery.run(*arguments, f"hydra.run.dir={root / 'first'}", log=log) == 0, log.read_text()
    return arguments


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def scalars(folder):
    """What TensorBoard shows: (step, value) of each tag, and the steps of the pictures."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    shown = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return shown | {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}


def callbacks(checkpoint, folder):
    """The state of all callbacks, as text."""
    for state in checkpoint["callbacks"].values():
        state.pop("current_score", None)  # Lightning stores it, but neither restores nor uses it
    return str(checkpoint["callbacks"]).replace(str(folder), "")


def assert_same(folder, straight):
    assert facts(folder)["status"] == "completed"
    for name in ("metrics.json", "metrics.csv", "trace.csv"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name
    for name in ("best", "last"):
        mine, theirs = (
            torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (folder, straight)
        )
        for part in ("state_dict", "current_model_state"):
            for key, value in theirs[part].items():
                assert torch.equal(mine[part][key], value), (name, part, key)
        for key in ("epoch", "global_step", "lr_schedulers", "averaging_state"):
            assert mine[key] == theirs[key], (name, key)
        assert str(mine["optimizer_states"]) == str(theirs["optimizer_states"]), name
        assert callbacks(mine, folder) == callbacks(theirs, straight), name
    assert scalars(folder) == scalars(straight)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_kills", [1, pytest.param(50, marks=pytest.mark.long(minutes=5))])
def test_a_killed_run_resumes_and_ends_with_the_same_bits(nursery, data, tmp_path, kind, num_kills):
    draw = random.Random(kind)

    def start(name, **options):
        arguments = [*data, *KINDS[kind].split(), f"hydra.run.dir={tmp_path / name}"]
        if "nothing cached" in kind:
            arguments.append(f"data.cache_dir={tmp_path / name}.cache")
        return nursery.start(*arguments, log=tmp_path / f"{name}.log", **options)

    def run(name, **options):
        return nursery.wait(start(name, **options))

    def kill(name):
        """The exit code, and when it was hit."""
        if draw.random() < 0.5:  # within a write, or between two
            moment = draw.randrange(len(moments))
            return run(name, hit_at=moment + 1), f"at write {moment} ({moments[moment]})"
        delay = draw.uniform(0, seconds)
        process = start(name)
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)  # does nothing to a process that has ended
        return nursery.wait(process), f"after {delay:.2f} s"

    started = time.monotonic()
    assert run("straight") == 0, (tmp_path / "straight.log").read_text()
    seconds = time.monotonic() - started
    moments = (tmp_path / "straight.log.moments").read_text().splitlines()
    kills = 0
    while kills < num_kills:
        name, story, code = f"killed{kills}", [], -signal.SIGKILL
        while code == -signal.SIGKILL and (not story or draw.random() < 0.3):  # what resumes is killed as well
            code, when = kill(name)
            story.append(when)
            kills += code == -signal.SIGKILL  # or it was too quick
        try:
            if code == -signal.SIGKILL:
                code = run(name)
            log = (tmp_path / f"{name}.log").read_text()
            # A kill may come when all is written, and nothing is left to resume.
            assert code == 0 or (code == 2 and "already holds a run (completed)" in log), log
            assert_same(tmp_path / name, tmp_path / "straight")
        except AssertionError as error:
            raise AssertionError(f"killed {', then '.join(story)}: {error}") from error
        shutil.rmtree(tmp_path / name)


def test_four_runs_at_once_fill_one_cold_cache_once_and_have_the_same_bits(nursery, data, tmp_path):
    def start(name):
        arguments = [*data, "trainer.max_epochs=1", "callbacks.pictures=null", f"data.cache_dir={tmp_path / 'cache'}"]
        return nursery.start(*arguments, f"hydra.run.dir={tmp_path / name}", log=tmp_path / f"{name}.log")

    names = [f"run{number}" for number in range(4)]
    assert [nursery.wait(process) for process in [start(name) for name in names]] == [0] * 4
    for name in names[1:]:
        assert_same(tmp_path / name, tmp_path / names[0])
    entered = [
        moment
        for name in names
        for moment in (tmp_path / f"{name}.log.moments").read_text().splitlines()
        if moment.startswith("after") and moment.endswith(".rows")
    ]
    assert len(entered) == 3  # the images of each split, by one of the four


def test_sigterm_stores_what_there_is_and_the_same_command_resumes(nursery, data, tmp_path):
    """Wherever it strikes: exit code 75, status interrupted, and in the end the same bits."""

    def run(name, **options):
        return nursery.run(*data, f"hydra.run.dir={tmp_path / name}", log=tmp_path / f"{name}.log", **options)

    assert run("straight") == 0
    moments = (tmp_path / "straight.log.moments").read_text().splitlines()
    strikes = {  # the moment that it comes after, how often that is passed before -> whether a checkpoint is there
        ("after config.yaml", 0): False,
        ("before best.ckpt", 0): True,  # at the end of the first epoch
        ("before last.ckpt", 1): True,  # while another one is written
        ("before predictions.csv", 0): True,  # in the test
        ("before metrics.json", 0): True,
        ("sync", -2): True,  # report.html
    }
    for number, ((what, which), is_stored) in enumerate(strikes.items()):
        name = f"stopped{number}"
        hit_at = [moment for moment, passed in enumerate(moments, 1) if passed == what][which]
        assert run(name, hit_at=hit_at, hit_by=signal.SIGTERM) == 75, what
        record = facts(tmp_path / name)
        assert (record["status"], record["error"]["message"]) == ("interrupted", "stopped by SIGTERM")
        log = (tmp_path / f"{name}.log").read_text()
        assert "Traceback" not in log
        then = "resumes it" if is_stored else "starts it again, as nothing was stored yet"
        assert log.splitlines()[-1].endswith(f"onebox-train resume={os.path.relpath(tmp_path / name)} {then}"), what
        assert (tmp_path / name / "checkpoints" / "last.ckpt").exists() == is_stored, what
        assert run(name) == 0, (tmp_path / f"{name}.log").read_text()
        assert_same(tmp_path / name, tmp_path / "straight")
        assert [attempt["status"] for attempt in facts(tmp_path / name)["attempts"]] == ["interrupted"]


def test_sigterm_within_an_epoch_loses_no_step(nursery, data, tmp_path):
    long = [*data, "data.batch_size=1", "trainer.max_epochs=2", "data.num_workers=2", "callbacks.pictures=null"]

    def start(name):
        return nursery.start(*long, f"hydra.run.dir={tmp_path / name}", log=tmp_path / f"{name}.log")

    assert nursery.wait(start("straight")) == 0
    process = start("stopped")
    checkpoints = tmp_path / "stopped" / "checkpoints"
    while not (checkpoints / "last.ckpt").exists():  # the second epoch begins
        time.sleep(0.001)
    time.sleep(0.05)
    os.kill(process, signal.SIGTERM)
    assert nursery.wait(process) == 75
    stored = torch.load(checkpoints / "last.ckpt", weights_only=True)
    before = torch.load(checkpoints / "previous.ckpt", weights_only=True)
    assert before["global_step"] == 40 < stored["global_step"] < 80
    assert nursery.wait(start("stopped")) == 0
    assert_same(tmp_path / "stopped", tmp_path / "straight")


@pytest.mark.long
def test_the_installed_command_ends_with_75_and_resumes_the_run(nursery, data, tmp_path):
    """As a scheduler and a user would do it: no hydra.run.dir, and `resume=FOLDER`."""
    arguments = [*data, "callbacks.pictures=null", "callbacks.early_stopping=null", "trainer.max_epochs=30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}  # one thread, as in the nursery
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    process = subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, env=environment, **output)
    next(line for line in process.stdout if line.startswith("Epoch 2/"))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    (folder,) = (tmp_path / "outputs/default").iterdir()
    assert (process.returncode, facts(folder)["status"]) == (75, "interrupted")
    assert f"onebox-train resume={folder.relative_to(tmp_path)} resumes it" in out

    resume = [COMMAND, f"resume={folder}", data[0], data[1]]
    subprocess.run(resume, cwd=tmp_path, env=environment, check=True, capture_output=True)
    log = tmp_path / "log"
    assert nursery.run(*arguments, f"hydra.run.dir={tmp_path / 'straight'}", log=log) == 0
    assert_same(folder, tmp_path / "straight")


@pytest.mark.long
def test_two_hundred_epochs_need_no_more_memory_files_and_threads_than_twenty(nursery, data, tmp_path):
    run = tmp_path / "run"
    off = ["callbacks.early_stopping=null", "callbacks.pictures=null"]
    arguments = [*data, *off, "trainer.max_epochs=200", "data.num_workers=1", f"hydra.run.dir={run}"]
    process = nursery.start(*arguments, log=tmp_path / "log")

    def use_after(epochs):
        while not (run / "metrics.csv").exists() or len((run / "metrics.csv").read_text().splitlines()) <= epochs:
            time.sleep(0.01)
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        files = len(list(Path(f"/proc/{process}/fd").iterdir()))
        return int(status["VmRSS"].split()[0]), files, int(status["Threads"])

    early, late = use_after(20), use_after(198)
    assert nursery.wait(process) == 0
    assert late[0] < early[0] + 20_000  # kB
    assert late[1] <= early[1] + 3  # one more may be open while a file is written
    assert late[2] == early[2]


def test_one_run_directory_belongs_to_one_process_and_one_config(nursery, data, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [*data, "trainer.max_epochs=10000", "callbacks.early_stopping=null", f"hydra.run.dir={run}"]

    def refusal(*more):
        log.unlink(missing_ok=True)
        assert nursery.run(*more, log=log) == 2
        (line,) = log.read_text().splitlines()
        return line

    process = nursery.start(*arguments, log=tmp_path / "first.log")
    while not (run / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    assert "another process is running it" in refusal(*arguments)
    os.kill(process, signal.SIGKILL)
    nursery.wait(process)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for change in ("seed=1", "resume=never"):
        assert "already holds a run" in refusal(*arguments, change)
    assert "name the directory of a run" in refusal("resume=nowhere")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_whose_data_changed_is_refused(nursery, data, tmp_path):
    shutil.copytree(data[0].partition("=")[2], tmp_path / "shapes")
    common = [f"data.root={tmp_path / 'shapes'}", *data[1:]]
    warm = [f"hydra.run.dir={tmp_path / 'warm'}", "trainer.max_epochs=1"]  # the two that follow find all images decoded
    assert nursery.run(*common, *warm, log=tmp_path / "warm.log") == 0
    assert nursery.run(*common, f"hydra.run.dir={tmp_path / 'straight'}", log=tmp_path / "straight.log") == 0
    in_test = (tmp_path / "straight.log.moments").read_text().splitlines().index("before predictions.csv") + 1
    arguments = [*common, f"hydra.run.dir={tmp_path / 'run'}"]
    assert nursery.run(*arguments, log=tmp_path / "log", hit_at=in_test) == -signal.SIGKILL
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    annotation = sorted((tmp_path / "shapes" / "Annotations").iterdir())[0]
    text = annotation.read_text()
    xmax = int(text.split("<xmax>")[1].split("<")[0])
    annotation.write_text(text.replace(f"<xmax>{xmax}<", f"<xmax>{xmax - 1}<"))
    assert nursery.run(*arguments, log=tmp_path / "refusal") == 2
    assert "the data have changed since the run began (train)" in (tmp_path / "refusal").read_text()
    annotation.write_text(text)
    assert nursery.run(*arguments, log=tmp_path / "log") == 0  # with its own data it still resumes
