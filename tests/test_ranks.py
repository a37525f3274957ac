"""Several devices: two real ranks (gloo on the processor) give one result, and neither is left alone when one fails.

Ranks that the test itself starts, as torchrun would, are forks of the nursery; those that onebox starts are new
interpreters.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as L
import pytest

from onebox.build import build_data, build_module, build_trainer
from onebox.data.loading import EvalBatches
from onebox.data.shapes import write_shapes
from onebox.runs.checkpoint import load_weights
from onebox.runs.predictions import read_predictions

COMMAND = Path(sys.executable).parent / "onebox-train"
COMMON = shlex.split("""
    data.source=null data.batch_size=4 data.eval_batch_size=3 image_size=24 augment=flip model.backbone.dropout=0.3
    optimizer.lr=0.003 monitor=val/iou callbacks/ema=default callbacks/progress=lines callbacks.pictures.num_images=2
    callbacks.checkpoint_last.epoch_seconds=0
    trainer.accelerator=cpu trainer.devices=2 trainer.strategy=ddp trainer.max_epochs=3
""")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Arguments that all trainings here have; no split has a number of images that two ranks can share evenly."""
    root = tmp_path_factory.mktemp("ranks")
    sizes = {"num_train": 31, "num_val": 13, "num_test": 11}
    write_shapes(root / "shapes", **sizes, multi_object_fraction=0.0, min_side=32, max_side=40, seed=0)
    return [f"data.root={root / 'shapes'}", f"data.cache_dir={root / 'cache'}", *COMMON]


@pytest.fixture
def by_hand(nursery, data, tmp_path):
    """Starts two ranks as torchrun does, and waits for them: their exit codes, and what each has printed."""

    def run(name, *arguments, only_rank_1=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
        logs = [tmp_path / f"{name}.{rank}" for rank in (0, 1)]
        pids = []
        for rank in (0, 1):
            command = [*data, f"hydra.run.dir={tmp_path / name}", *arguments, *(only_rank_1 if rank else ())]
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "by hand", **common}
            pids.append(nursery.start(*command, log=logs[rank], **environment))
        return [nursery.wait(pid) for pid in pids], [log.read_text() for log in logs]

    return run


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def assert_same(folder, other):
    assert facts(folder)["status"] == "completed"
    assert facts(folder)["final_weights"] == facts(other)["final_weights"]
    for name in ("metrics.json", "metrics.csv", "trace.csv", "predictions.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_two_ranks_give_the_same_bits_each_time_and_the_metrics_of_one(by_hand, data, composed, tmp_path):
    for name in ("first", "second"):
        codes, texts = by_hand(name)
        assert codes == [0, 0], texts
        assert "Epoch 3/3" in texts[0]
        assert not texts[1]  # it is in rank1.log
    assert_same(tmp_path / "first", tmp_path / "second")
    stored = json.loads((tmp_path / "first/metrics.json").read_text())
    assert sum(row["images"] for row in stored["per_class"].values()) == 11  # each image once
    predictions = read_predictions(tmp_path / "first")
    assert predictions["iou"].mean() == pytest.approx(stored["test"]["iou"], abs=1e-6)

    one = ["trainer.devices=1", "trainer.strategy=auto"]
    cfg = composed(*data, *one, "callbacks.checkpoint_best=null", "callbacks.checkpoint_last=null")
    L.seed_everything(0, verbose=False)
    images = build_data(cfg)
    images.setup()
    assert predictions["id"].tolist() == list(images.indexes["test"].ids)
    cfg.model.num_classes = images.num_classes
    module, trainer = build_module(cfg, images), build_trainer(cfg)
    load_weights(module, tmp_path / "first/checkpoints/best.ckpt")
    alone = trainer.validate(module, datamodule=images, verbose=False)[0]
    assert {tag: stored["best"][tag] for tag in alone} == pytest.approx(alone, abs=1e-6)
    alone = trainer.test(module, datamodule=images, verbose=False)[0]
    assert {f"test/{tag}": value for tag, value in stored["test"].items()} == pytest.approx(alone, abs=1e-6)


def test_ranks_that_were_started_differently_stop_before_the_fit(by_hand, tmp_path):
    codes, texts = by_hand("run", only_rank_1=["optimizer.lr=0.1"])
    assert codes == [2, 2]
    (line,) = [line for line in texts[0].splitlines() if line.startswith("onebox-train:")]
    assert re.search(r"rank 1 was started with another config.*fingerprint \w+, not \w+", line)
    assert facts(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("is_killed_first", [False, pytest.param(True, marks=pytest.mark.long)])
def test_whatever_ends_a_rank_ends_the_run_which_resumes_with_the_same_bits(
    nursery, by_hand, data, tmp_path, is_killed_first
):
    epochs = "trainer.max_epochs=12"
    codes, texts = by_hand("straight", epochs)
    assert codes == [0, 0], texts
    folder, log = tmp_path / "run", tmp_path / "log"

    def start(until):
        """The process that was started, and its ranks."""
        process = nursery.start(*data, epochs, f"hydra.run.dir={folder}", log=log, OMP_NUM_THREADS="1")
        children = Path(f"/proc/{process}/task/{process}/children")
        while len(children.read_text().split()) < 2 or not until():
            time.sleep(0.01)
        return process, [int(pid) for pid in children.read_text().split()]

    def wait(process, ranks):
        started = time.monotonic()
        code = nursery.wait(process)
        while any(Path(f"/proc/{pid}").exists() for pid in ranks):
            assert time.monotonic() - started < 20
            time.sleep(0.01)
        return code

    if is_killed_first:
        process, ranks = start(until=lambda: True)
        os.kill(ranks[1], signal.SIGKILL)
        assert wait(process, ranks) == 1
        record = facts(folder)
        assert (record["status"], record["error"]["type"]) == ("failed", "RankFailed")
        assert record["error"]["message"].startswith("rank 1 was killed by SIGKILL (see ")
        assert log.read_text().splitlines()[-1].startswith("onebox-train: rank 1 was killed by SIGKILL (see ")

        process, ranks = start(until=lambda: True)
        os.kill(process, signal.SIGKILL)  # nobody is left to end them but themselves
        assert wait(process, ranks) == -signal.SIGKILL

    process, ranks = start(until=(folder / "checkpoints/last.ckpt").exists)
    for pid, number in ((ranks[1], signal.SIGTERM), (ranks[1], signal.SIGUSR2), (ranks[0], signal.SIGUSR2)):
        os.kill(pid, number)  # as Slurm does with all processes of a job; only the first one counts
    os.kill(process, signal.SIGTERM)
    assert wait(process, ranks) == 75
    record = facts(folder)
    assert (record["status"], record["error"]["message"]) == ("interrupted", "stopped by SIGTERM")
    assert record["hardware"]["threads"] == 1  # what rank 0 has found is kept
    assert log.read_text().splitlines()[-1].endswith("resumes it")

    codes, texts = by_hand("run", epochs)
    assert codes == [0, 0], texts
    assert_same(folder, tmp_path / "straight")
    before = ["failed", "running"] if is_killed_first else []
    assert [attempt["status"] for attempt in facts(folder)["attempts"]] == [*before, "interrupted"]


@pytest.mark.long
def test_a_sweep_of_such_runs_gives_what_the_single_runs_give(by_hand, data, tmp_path):
    """No rank starts a sweep of its own."""
    for lr in ("0.003", "0.001"):
        codes, texts = by_hand(lr, f"optimizer.lr={lr}")
        assert codes == [0, 0], texts
    swept = subprocess.run(
        [str(COMMAND), "-m", *data, "optimizer.lr=0.003,0.001", "name=ranks"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    for lr in ("0.003", "0.001"):
        fingerprint = facts(tmp_path / lr)["fingerprint"]
        assert_same(tmp_path / "outputs/sweeps/ranks" / fingerprint, tmp_path / lr)
    assert len([*(tmp_path / "outputs/sweeps/ranks").glob("[!.]*/")]) == 2
    assert not list((tmp_path / "outputs").glob("[!s]*"))  # and no run elsewhere


@pytest.mark.parametrize(
    "unread", [["loss.weights.cls=0"], ["model/loc_head=edges", "image_size=64", "loss.weights.loc=0"]]
)
def test_ranks_do_not_wait_for_gradients_that_never_come(by_hand, tmp_path, unread):
    codes, texts = by_hand("run", *unread, "trainer.max_epochs=1")
    assert codes == [0, 0], texts
    assert facts(tmp_path / "run")["status"] == "completed"


@pytest.mark.parametrize("num_rows", [2, 3, 5, 11, 12])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_evaluation_shares_each_image_once_in_the_same_number_of_batches(num_rows, batch_size):
    shares = [list(EvalBatches(num_rows, batch_size, rank=rank, num_replicas=2)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    assert all(shares[0] + shares[1])
    assert sorted(row for share in shares for batch in share for _, row in batch) == list(range(num_rows))
    assert all(len(batch) <= max(batch_size, 2) for share in shares for batch in share)
