"""The golden net: the same commands give the same bits as when `golden.json` was recorded.

It is thrown over refactorings: weights and metrics of short runs of the shipped experiments, of stored features, of two
ranks, of a run that was killed and resumed, and of a sweep that was killed and started again. A change that alters
numbers on purpose records them again, in a commit of its own that says so:

    ONEBOX_GOLDEN=record pytest tests/test_golden.py

Processors differ in their last bits. The runs use the instruction sets that all x86-64 processors share, and a short
calibration tells whether this processor computes the bits of the recorded one; if it does not, the values must agree to
a few parts in a thousand instead.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("golden.json")
RECORD = os.environ.get("ONEBOX_GOLDEN") == "record"
COMMAND = [str(Path(sys.executable).parent / "onebox-train")]
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
CALIBRATION = """
import hashlib
import torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 14 * 14, 20))
loss = net(torch.randn(8, 3, 16, 16)).softmax(1).log().sum()
loss.backward()
print(hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in net.parameters())).hexdigest()[:16])
"""
SMALL = [
    "data.source.num_train=48",
    "data.source.num_val=12",
    "data.source.num_test=12",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "callbacks/progress=lines",
    "threads=1",
]
SWEEP = (
    "sweep.jobs=[{experiment: seed}, {experiment: baseline}, {experiment: overfit_one_seed},"
    " {experiment: transfer_lite0, name: frozen, callbacks.freeze.unfreeze: [], param_groups.lr_factors.backbone: 0.2,"
    " model.loc_head.dropout: 0.0, model.cls_head.dropout: 0.3, data: shapes, image_size: 64, data.views: 2}]"
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts `onebox-train` with more arguments, on a small embedded data set, in a folder of this module's own."""
    folder = tmp_path_factory.mktemp("golden")

    def run(*arguments: str, wait: bool = True) -> subprocess.Popen:
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments, *SMALL],
                cwd=folder,
                env=os.environ | PORTABLE | {"ONEBOX_DATA_DIR": str(folder / "data")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if wait:
            assert process.wait() == 0, (folder / "log").read_text()[-3000:]
        return process

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def swept(start):
    """The runs of the sweep by experiment; it is killed after its first job and started again."""
    process = start("-m", SWEEP, "hydra.sweep.dir=swept", wait=False)
    folder = start.folder / "swept"
    while not any(json.loads(path.read_text())["status"] == "completed" for path in folder.glob("*/run.json")):
        assert process.poll() is None, (start.folder / "log").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    start("-m", SWEEP, "hydra.sweep.dir=swept")
    return {json.loads(path.read_text())["name"]: path.parent for path in folder.glob("*/run.json")}


def numbers(folder: Path) -> dict:
    """What a run ended with: the hash of its weights and its metrics."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "final_weights": json.loads((folder / "run.json").read_text())["final_weights"],
        "metrics": {part: metrics[part] for part in ("best", "test", "floor")},
    }


def assert_golden(name: str, folder: Path, stored: str | None = None) -> None:
    """Compare a run with the stored numbers of `stored`, by default of its own name."""
    found = numbers(folder)
    golden = json.loads(FILE.read_text()) if FILE.exists() else {"runs": {}}
    if RECORD and stored is None:
        golden["runs"][name] = found
        golden["calibration"] = calibration()
        FILE.write_text(json.dumps(golden, indent=1) + "\n")
    expected = golden["runs"][stored or name]
    if golden["calibration"] == calibration():
        assert found == expected
    else:
        for part, values in expected["metrics"].items():
            assert found["metrics"][part] == pytest.approx(values, abs=0.1), part


@functools.cache
def calibration() -> str:
    """A short name for the bits that this processor computes."""
    out = subprocess.run(
        [sys.executable, "-c", CALIBRATION], env=os.environ | PORTABLE, capture_output=True, check=True
    )
    return out.stdout.decode().strip()


@pytest.mark.parametrize("experiment", ["seed", "baseline", "overfit_one_seed", "frozen"])
def test_experiment_of_a_killed_sweep_has_the_golden_bits(swept, experiment):
    assert_golden(experiment, swept[experiment])


@pytest.mark.long
def test_killed_and_resumed_run_has_the_golden_bits(start):
    arguments = ["experiment=baseline", "callbacks.checkpoint_last.every_minutes=0", "hydra.run.dir=killed"]
    process = start(*arguments, wait=False)
    while not (start.folder / "killed/checkpoints/last.ckpt").exists():
        assert process.poll() is None, (start.folder / "log").read_text()[-3000:]
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert json.loads((start.folder / "killed/run.json").read_text())["status"] == "running"
    start("resume=killed")
    assert_golden("killed", start.folder / "killed", "baseline")


@pytest.mark.long
def test_two_ranks_have_the_golden_bits(start):
    start("experiment=baseline", "trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=ranks")
    assert_golden("two_ranks", start.folder / "ranks")
