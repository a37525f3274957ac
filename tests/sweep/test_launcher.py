"""The hermetic launcher, with real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus, setup_globals
from hydra.types import HydraContext, RunMode
from tests.nursery import left

import onebox
from onebox.errors import BadInput, JobFailed, Preempted, Stopped
from onebox.hydra_setup import register_plugins
from onebox.sweep.compose import Composer
from onebox.sweep.slots import device_slots

sys.path.insert(0, str(Path(__file__).parent))
import chaos

COMMAND = Path(sys.executable).parent / "onebox-train"
OPTIONS = {"grace_s": 1, "n_jobs": 2}


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Launches jobs as a sweeper does; returns their JobReturns."""
    from hydra.core.plugins import Plugins

    monkeypatch.chdir(tmp_path)
    register_plugins()

    def run(*jobs: list[str], task=chaos.task, coming=None, **options):
        setup_globals()
        GlobalHydra.instance().clear()
        hydra = Hydra.create_main_hydra2("train", create_config_search_path("pkg://onebox.conf"))
        launcher = [f"hydra.launcher.{key}={value}" for key, value in {**OPTIONS, **options}.items()]
        config = hydra.config_loader.load_configuration(
            "train", [*launcher, "hydra.sweep.dir=sweep", "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN
        )
        GlobalHydra.instance().clear()
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        combined = [("hydra.sweep.dir=sweep", *job) for job in jobs]
        if coming is None:
            return launcher.launch(combined, 0)
        compose = Composer(hydra.config_loader, config)
        return launcher.launch_composed(combined, jobs=coming(map(compose, combined)), compose=compose)

    return run


def deed(name: str, seed: int = 0) -> list[str]:
    return [f"+deed={name}", f"seed={seed}"]


def facts(name: str) -> dict:
    """run.json of the job that did this."""
    (path,) = [
        path for path in Path("sweep").glob("*/run.json") if json.loads(path.read_text())["config"]["deed"] == name
    ]
    return json.loads(path.read_text())


def log(name: str) -> str:
    (text,) = [path.read_text() for path in Path("sweep").glob("*/job.log") if f"deed {name}\n" in path.read_text()]
    return text


def test_a_failure_is_one_row_and_the_others_go_on(launch):
    expected = {
        "fault": (ValueError, "a fault of its own"),
        "unpicklable": (JobFailed, "Unpicklable: this and that"),
        "exit": (JobFailed, "exit code 3"),
        "vanish": (JobFailed, "exit code 4"),
        "kill": (JobFailed, "killed by SIGKILL"),
        "deaf": (JobFailed, "took longer than timeout_s=2"),
    }
    results = launch(*map(deed, expected), deed("fine"), timeout_s=2)
    assert [result.status for result in results] == [JobStatus.FAILED] * len(expected) + [JobStatus.COMPLETED]
    assert results[-1].return_value == 0.5
    for result, (name, (kind, text)) in zip(results[:-1], expected.items(), strict=True):
        assert isinstance(result._return_value, kind) and text in str(result._return_value), name
        record = facts(name)
        assert record["status"] == "failed" and text in record["error"]["message"], name
        assert record["fingerprint"] == next(Path("sweep").glob(f"{record['fingerprint']}")).name
    assert "ValueError: a fault of its own" in log("fault")
    assert "in deaf" in log("deaf")  # what it was doing
    assert "Traceback" not in log("fine")


def test_a_job_needs_no_process_that_waited_for_it(launch):
    results = launch(deed("kill_the_next"), deed("fine"), n_jobs=1)
    assert [result.status for result in results] == [JobStatus.COMPLETED] * 2
    assert log("fine").count("--- attempt") == 1


def test_a_job_runs_while_others_are_still_to_come(launch):
    def coming(jobs):
        for number, job in enumerate(jobs):
            while len(list(Path("sweep").glob("*/run.json"))) < number:
                yield None
            yield job

    results = launch(deed("fault"), deed("vanish"), deed("fine"), coming=coming)
    assert [result.status for result in results] == [JobStatus.FAILED] * 2 + [JobStatus.COMPLETED]
    assert "deed fine" in log("fine")


def test_no_state_passes_from_job_to_job(launch):
    dirty, clean = (result.return_value for result in launch(deed("dirty"), deed("settings"), n_jobs=1))
    assert dirty == (True, "medium", "4711", ":4096:8", True)
    # Tests before this one may have trained in this very process, which leaves variables that jobs then begin with.
    seed, workspace = (os.environ.get(name) for name in ("PL_GLOBAL_SEED", "CUBLAS_WORKSPACE_CONFIG"))
    assert clean == (False, "highest", seed, workspace, False)


def test_a_job_that_failed_is_tried_again_but_bad_input_is_not(launch):
    flaky, bad = launch(deed("flaky"), deed("bad_input"), max_retries=2)
    assert flaky.status is JobStatus.COMPLETED
    assert log("flaky").count("--- attempt") == 2
    assert isinstance(bad._return_value, BadInput) and Path("bad").read_text() == "x"


def test_on_error_stop_ends_what_runs_and_starts_nothing_else(launch):
    fault, patient, pending = launch(deed("fault_beside_patient"), deed("patient"), deed("fine"), on_error="stop")
    assert isinstance(fault._return_value, ValueError)
    assert isinstance(patient._return_value, Stopped) and isinstance(pending._return_value, Stopped)
    assert "stopped by SIGTERM" in log("patient") and len(list(Path("sweep").glob("*/job.log"))) == 2


def test_a_job_uses_its_share_of_the_threads(launch, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
    for options, share in (({}, 3), ({"threads_per_job": 2}, 2)):
        (result,) = launch(deed("threads", seed=share), **options)
        assert result.return_value == (share, share, share, str(share))


def test_jobs_that_run_at_once_share_no_device(launch):
    results = launch(*(deed("device", seed) for seed in range(6)), n_jobs=3, gpus_per_job=2, devices="[4,5,6,7,8]")
    values = [result.return_value for result in results]
    assert {device for device, _, _ in values} == {"4,5", "6,7"}
    for device in ("4,5", "6,7"):
        spans = sorted((begin, end) for seen, begin, end in values if seen == device)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("n_jobs", "gpus", "devices", "slots"),
    [
        (3, None, [0], [None] * 3),
        (2, 0, [0], ["", ""]),
        (4, 1, [0, 1], ["0", "1"]),
        (2, 2, ["GPU-a", "GPU-b", "GPU-c"], ["GPU-a,GPU-b"]),
        (4, 0.5, [0, 1], ["0", "1", "0", "1"]),
        (3, 0.5, [0, 1], ["0", "1", "0"]),
    ],
)
def test_slots_of_devices(n_jobs, gpus, devices, slots):
    assert device_slots(n_jobs, gpus, devices) == slots


def test_devices_are_those_that_the_sweep_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert device_slots(2, 1, None) == ["2", "5"]
    with pytest.raises(BadInput, match=r"gpus_per_job=3 but the devices are \[2, 5\]"):
        device_slots(2, 3, None)


def test_a_job_that_another_sweep_is_running_is_left_for_later(launch):
    first, second = deed("clock"), deed("clock", seed=1)
    launch(first, second)  # to know their directories
    held, free = (
        next(path for path in Path("sweep").glob("*/job.log") if f"seed={n}" in path.read_text()) for n in (0, 1)
    )
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(held.parent / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()

        def release():
            until = time.monotonic() + 60
            while free.read_text().count("--- attempt") < 2 and time.monotonic() < until:
                time.sleep(0.05)
            other.communicate(b"\n")

        releaser = threading.Thread(target=release)
        releaser.start()
        results = launch(first, second, n_jobs=1)
        releaser.join()
    late, early = (result.return_value for result in results)
    assert early < late


@pytest.mark.parametrize(
    ("job", "signals", "kind"),
    [("patient", [signal.SIGTERM], Preempted), ("deaf", [signal.SIGINT, signal.SIGINT], KeyboardInterrupt)],
)
def test_the_first_signal_asks_the_jobs_to_stop_the_second_kills_them(launch, job, signals, kind):
    def send():
        while not Path(job).exists():
            time.sleep(0.05)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    sender = threading.Thread(target=send)
    sender.start()
    begin = time.monotonic()
    with pytest.raises(kind, match="0 of 2 jobs done"):
        launch(deed(job), deed("fine"), n_jobs=1, grace_s=100)
    sender.join()
    assert time.monotonic() - begin < 60
    assert len(list(Path("sweep").glob("*/job.log"))) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def sweep(tmp_path, shapes_root):
    """A sweep of two long trainings, started as a user does, when the first of them trains."""
    process = subprocess.Popen(
        [
            str(COMMAND),
            "--multirun",
            "seed=0,1",
            f"data.root={shapes_root}",
            "data.source=null",
            "image_size=24",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=100000",
            "callbacks/progress=lines",
            "callbacks.checkpoint_last.epoch_seconds=0",
            "hydra.launcher.grace_s=20",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal goes to a group, as a terminal sends it
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/sweeps/default/*/metrics.csv")):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.1)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("how", ["Ctrl-C", "hang-up", "SIGKILL"])
def test_a_sweep_that_is_stopped_leaves_a_checkpoint_and_no_process(sweep, tmp_path, how):
    if how == "Ctrl-C":
        os.killpg(sweep.pid, signal.SIGINT)
    elif how == "hang-up":
        for _ in range(2):  # a shell and the system each send one
            os.killpg(sweep.pid, signal.SIGHUP)
    else:
        sweep.kill()
    out, err = sweep.communicate(timeout=60)
    until = time.monotonic() + 30
    while left(tmp_path):
        assert time.monotonic() < until, left(tmp_path)
        time.sleep(0.1)
    (record,) = tmp_path.glob("outputs/sweeps/default/*/run.json")
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert (record.parent / "checkpoints" / "last.ckpt").exists()
    assert sweep.returncode == {"Ctrl-C": 130, "hang-up": 75, "SIGKILL": -signal.SIGKILL}[how]
    if how == "SIGKILL":
        assert not err
    else:
        assert "1 running job stops at a checkpoint, 1 will not be started" in out
        assert err.strip().startswith("sweep stopped by") and len(err.strip().splitlines()) == 1


def test_the_server_imports_every_module_that_a_job_can_need():
    """By walking the package: a list would silently miss a module that was renamed."""
    code = "import onebox.sweep.preload as p, sys; print(*sys.modules); print(*p.LEFT_OUT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, left_out = (line.split() for line in done.stdout.splitlines()[-2:])
    source = Path(onebox.__file__).parent
    names = [".".join(("onebox", *path.relative_to(source).with_suffix("").parts)) for path in source.rglob("*.py")]
    wanted = {name.removesuffix(".__init__") for name in names if not name.startswith(tuple(left_out))}
    assert wanted <= set(loaded), wanted - set(loaded)
