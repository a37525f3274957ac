"""`make bench`: speed and memory as ratios of things measured in the same run, written to outputs/bench.json.

A row is a figure of one measurement, and a measurement is a process of its own that compares two ways of doing the same
work and checks that it was the same. Rounds go through all of them in turn; the median over rounds counts.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from onebox.files import read_json, write_json


class Row(NamedTuple):
    measurement: str  # module of benchmarks and its arguments
    figure: str  # of those that the measurement prints
    sense: str  # how the figure must stand to the target
    target: float
    unit: str = "ratio"

    def is_met(self, value: float) -> bool:
        return value >= self.target if self.sense == ">=" else value <= self.target


ROWS = {
    "feed_none": Row("training none", "feed", ">=", 0.97),
    "feed_flip_jitter": Row("training flip_jitter", "feed", ">=", 0.95),
    "feed_affine": Row("training affine", "feed", ">=", 0.9),
    "feed_resnet18": Row("training resnet18 --epochs 2", "feed", ">=", 0.99),
    "framework_64": Row("training framework_64", "framework", "<=", 1.01),
    "framework_32": Row("training framework_32", "framework", "<=", 1.02),
    "lightning_floor": Row("training lightning_64", "framework", "<=", 1.05),
    "seed_loop_w0": Row("training seed", "w0", ">=", 3),
    "seed_loop_best": Row("training seed", "best", ">=", 2),
    "loader_w0": Row("loading flip_jitter", "w0", ">=", 25),
    "loader_best": Row("loading flip_jitter", "best", ">=", 12),
    "loader_none_w0": Row("loading none", "w0", ">=", 25),
    "loader_none_best": Row("loading none", "best", ">=", 12),
    "loader_affine_w0": Row("loading affine", "w0", ">=", 25),
    "loader_affine_best": Row("loading affine", "best", ">=", 12),
    "cache_build": Row("loading none", "cache", ">=", 2.0),
    "reopen_ms": Row("loading none", "reopen_ms", "<=", 50, "ms"),
    "memory_ratio": Row("memory", "ratio", "<=", 1.3),
    "memory_growth": Row("memory", "growth", "<=", 1, "% in 20 epochs"),
    "memory_growth_in_use": Row("memory", "growth_in_use", "<=", 1, "% in 20 epochs"),
    "index_files_per_s": Row("index", "files_per_s", ">=", 5000, "files/s"),
    "index_ratio": Row("index", "ratio", ">=", 0.5),
    "index_reopen_s": Row("index", "reopen_s", "<=", 1, "s"),
    "index_bytes": Row("index", "bytes", "<=", 1000, "bytes a file"),
    "diff_s": Row("runs", "diff", "<=", 2),
    "runs_2000_s": Row("runs", "runs_2000_s", "<=", 1, "s"),
    "runs_2000_where_s": Row("runs", "runs_2000_where_s", "<=", 1, "s"),
    "sweep_table_1000_s": Row("runs", "sweep_table_1000_s", "<=", 3, "s"),
    "sweep_page_1000_s": Row("runs", "sweep_page_1000_s", "<=", 10, "s"),
    "plan_1000_s": Row("planning", "cpu_s", "<=", 20, "s of CPU"),
    "plan_1000_mb": Row("planning", "mb", "<=", 400, "MB"),
    "first_job_s": Row("planning", "first_job_s", "<=", 3, "s"),
    "sweep_serial": Row("sweep", "serial", "<=", 1.06),
    "sweep_parallel": Row("sweep", "parallel", ">=", 1.1),
    "sweep_isolation": Row("sweep", "isolation", ">=", 10),
    "sweep_extra_s": Row("sweep", "extra_s", "<=", 0.15, "s a job"),
    "features_first": Row("features", "first_epochs", "<=", 1.15, "epochs on images"),
    "features_again": Row("features", "again", "<=", 0.1),
    "see_overhead": Row("see", "overhead", "<=", 1.02),
    "events_mb": Row("see", "events_mb", "<=", 3, "MB"),
    "run_dir_mb": Row("see", "run_dir_mb", "<=", 8, "MB"),
    "startup_help": Row("startup --help", "ratio", "<=", 1.3),
    "startup_cfg": Row("startup --cfg job", "ratio", "<=", 1.25),
    "start_first_step": Row("startup first_step", "ratio", "<=", 1.35),
    "onnx_tiny_cnn_1": Row("use speed tiny_cnn", "batch_1", ">=", 3),
    "onnx_tiny_cnn_64": Row("use speed tiny_cnn", "batch_64", ">=", 1.5),
    "onnx_mobilenet_1": Row("use speed mobilenet_v3_small", "batch_1", ">=", 3),
    "onnx_mobilenet_64": Row("use speed mobilenet_v3_small", "batch_64", ">=", 1.5),
    "onnx_resnet18_1": Row("use speed resnet18", "batch_1", ">=", 1.4),
    "onnx_resnet18_64": Row("use speed resnet18", "batch_64", ">=", 1.4),
    "onnx_efficientnet_1": Row("use speed efficientnet_lite0", "batch_1", ">=", 2),
    "predict_1000": Row("use predict experiment=frozen", "whole", ">=", 0.9),
    "predict_1000_work": Row("use predict experiment=frozen", "work", ">=", 0.9),
    "predict_1000_small": Row("use predict model/backbone=mobilenet_v3_small", "whole", ">=", 0.9),
    "predict_1000_small_work": Row("use predict model/backbone=mobilenet_v3_small", "work", ">=", 0.9),
    "predict_memory": Row("use peak", "ratio", "<=", 1.05),
}
ONCE = (
    "features",
    "index",
    "memory",
    "planning",
    "runs",
    "see",
    "sweep",
    "use peak",
)  # slow, or with rounds of their own
NEEDS_VOC = ("seed", "loading", "features", "predict", "peak")


def measure(measurement: str) -> dict[str, list[float]]:
    """Run one measurement in a new process; returns what it printed."""
    module, *arguments = measurement.split()
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--index-files", type=int, default=20_000, help="100000 is the size that the target names")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    rows = {name: ROWS[name] for name in arguments.only}
    if "ONEBOX_VOC_ROOT" not in os.environ:
        console.print(
            "without ONEBOX_VOC_ROOT: the embedded data set, and no comparison with loading VOC the usual way"
        )
        rows = {name: row for name, row in rows.items() if not set(NEEDS_VOC) & set(row.measurement.split())}

    figures: dict[str, dict[str, list[float]]] = {}
    failed: list[str] = []
    for number in range(arguments.rounds):
        for measurement in dict.fromkeys(row.measurement for row in rows.values()):
            if number > 0 and measurement in ONCE:
                continue
            start, load = time.perf_counter(), os.getloadavg()[0]
            command = f"index {arguments.index_files}" if measurement == "index" else measurement
            try:
                measured = measure(command)
            except subprocess.CalledProcessError as error:  # hours of the others are not lost with it
                failed.append(measurement)
                console.print(f"[red]round {number + 1}: {error}")
                continue
            for figure, values in measured.items():
                figures.setdefault(measurement, {}).setdefault(figure, []).extend(values)
            middle = {name: f"{median(values):.3g}" for name, values in figures[measurement].items()}
            seconds = time.perf_counter() - start
            console.print(f"round {number + 1}: {command:30} {seconds:4.0f} s, load before {load:.1f}, so far {middle}")

    table = Table("", "median", "min", "max", "target", "", title=f"{arguments.rounds} rounds, {os.cpu_count()} cores")
    written = []
    for name, row in rows.items():
        if row.measurement in failed:
            table.add_row(name, *["failed"] * 3, f"{row.sense} {row.target:g}", "[red]missed")
            continue
        values = figures[row.measurement][row.figure]
        three = {"median": median(values), "min": min(values), "max": max(values)}
        is_met = row.is_met(three["median"])
        written.append(
            {"name": name, **three, "sense": row.sense, "target": row.target, "unit": row.unit, "met": is_met}
        )
        verdict = "[green]met" if is_met else "[red]missed"
        table.add_row(name, *(f"{value:.4g}" for value in three.values()), f"{row.sense} {row.target:g}", verdict)
    file = Path("outputs/bench.json")
    before = read_json(file) if file.exists() else []
    write_json(file, [row for row in before if row["name"] not in rows] + written)  # --only keeps the others
    console.print(table, "written to outputs/bench.json")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
