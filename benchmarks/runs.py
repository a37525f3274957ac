"""How long the commands take that read runs. Both are processes of their own, made-up runs, rounds in turn.

`diff_s`: `onebox diff` of two runs over `python -c "import omegaconf, rich"`. `runs_2000_s`: seconds that `onebox runs`
over 2,000 run directories takes beyond `onebox --help`, without and with an expression that reads all metrics.
`sweep_table_1000_s`: the same of `onebox sweep`, whose 1,000 jobs differ in a learning rate,
`sweep_page_1000_s` that of its page.

Prints one line of JSON: lists of figures.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

COMMAND = str(Path(sys.executable).parent / "onebox")
NUM_RUNS, NUM_JOBS = 2000, 1000
WHERE = "best/joint_acc > .5 and model.backbone == tiny_cnn"
TAGS = ("loss", "loss_loc", "loss_cls", "acc", "iou", "loc_acc", "loc_acc70", "joint_acc", "joint_acc_top5", "loc_l1")


def make_runs(folder: Path, count: int) -> None:
    """Run directories with records as large as real ones: 16 kB of run.json, 12 kB of metrics.json."""
    from onebox.cli.reproduce import composed  # a real config
    from onebox.runs.fingerprint import run_facts
    from onebox.runs.provenance import provenance

    cfg = composed("run_dir=x", "name=bench")
    choices = {
        "data": "shapes",
        "model": "default",
        "model/backbone": "tiny_cnn",
        "loss/loc": "l1",
        "experiment": None,
    }
    hydra = SimpleNamespace(runtime=SimpleNamespace(choices=choices), overrides=SimpleNamespace(task=[]))
    record: dict[str, Any] = {
        "schema": 1,
        "status": "completed",
        "data_fingerprint": dict.fromkeys(("classes", "pixels", "train", "val", "test"), "0" * 16),
        **run_facts(cfg, hydra),
        **provenance(folder),
    }
    metrics = {f"{split}/{tag}{kind}": 0.5 for split in ("train", "val") for tag in TAGS for kind in ("", "_macro")}
    for number in range(count):
        run = folder / "sweep" / str(number)
        for name in (".hydra", "checkpoints", "tensorboard"):
            (run / name).mkdir(parents=True)
        one = copy.deepcopy(record)
        one["config"]["optimizer"]["lr"] = lr = 1e-3 * (1 + number)
        one["overrides"] = [f"optimizer.lr={lr}"]
        one["seed"], one["fingerprint"], one["fingerprint_seedless"] = 0, f"{number:012x}", f"{number:012x}"
        one["started"] = f"2026-11-23T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000+00:00"
        best = {**metrics, "val/joint_acc": number / count, "epoch": 3}
        test = {tag: 0.5 + number / count / 10 for tag in TAGS}
        classes = {f"class{c}": {"images": 9, **test} for c in range(20)}
        content = {"schema": 1, "final": metrics, "best": best, "test": test, "floor": test, "per_class": classes}
        (run / "run.json").write_text(json.dumps(one, indent=2))
        (run / "metrics.json").write_text(json.dumps(content, indent=2))


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a command, which may answer 1 (`onebox diff` found something)."""
    # Without compiled files it would be the compiler that is measured.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    assert done.returncode in (0, 1), command
    return time.perf_counter() - start


def diff_s(rounds: int) -> list[float]:
    """Ratio of each round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_runs(folder / "outputs", 2)
        theirs = [sys.executable, "-c", "import omegaconf, rich"]
        ours = [COMMAND, "diff", "latest~1", "latest"]
        seconds(theirs, folder), seconds(ours, folder)  # the first ones read files from the disk
        return [seconds(ours, folder) / seconds(theirs, folder) for _ in range(rounds)]


def beyond_help(rounds: int, count: int, *arguments: str) -> list[float]:
    """Seconds beyond start-up that a command takes with so many run directories, of each round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_runs(folder / "outputs" / "sweeps", count)
        ours = [COMMAND, *arguments]
        seconds(ours, folder), seconds([COMMAND, "--help"], folder)
        return [seconds(ours, folder) - seconds([COMMAND, "--help"], folder) for _ in range(rounds)]


def main() -> None:
    rounds = 5
    figures = {
        "diff": diff_s(rounds),
        "runs_2000_s": beyond_help(rounds, NUM_RUNS, "runs"),
        "runs_2000_where_s": beyond_help(rounds, NUM_RUNS, "runs", "--where", WHERE),
        "sweep_table_1000_s": beyond_help(rounds, NUM_JOBS, "sweep", "--markdown"),
        "sweep_page_1000_s": beyond_help(rounds, NUM_JOBS, "sweep", "--html"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
