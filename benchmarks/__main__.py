"""`make bench`: speed as ratios of things measured in the same run, written to outputs/bench.json.

Every measurement is a process of its own with the same number of threads. Rounds go through all of them in turn, so
that a slow minute of the machine hits all alike; a ratio is taken within a round, and the median over rounds counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from onebox.files import read_json, write_json

# name: (numerator, denominators of which the fastest counts, target); images per second
RATIOS: dict[str, tuple[str, list[str], float | None]] = {
    "feed_none": ("onebox none", ["bare none"], None),
    "seed_loop_w0": ("onebox seed", ["notebook 0"], None),
    "seed_loop_best": ("onebox seed", ["notebook 0", "notebook 1", "notebook 2"], None),
}
# Seconds of the command over those of a Hydra app that does nothing, asked the same.
STARTUPS = {"startup_help": (["--help"], 1.3), "startup_cfg": (["--cfg", "job"], 1.3)}
BARE_APP = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg): pass
main()
"""


def measure(what: str, *, epochs: int) -> dict[str, float]:
    """Run one measurement in a new process; returns what it printed, with `images_per_s`."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.training", *what.split(), "--epochs", str(epochs), "--folder", folder],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def startup(arguments: list[str]) -> float:
    """Seconds of `onebox-train ARGUMENTS` over seconds of a bare Hydra app with the same arguments."""
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app.py"
        app.write_text(BARE_APP)
        seconds = []
        for command in ([str(Path(sys.executable).parent / "onebox-train")], [sys.executable, str(app)]):
            start = time.perf_counter()
            subprocess.run([*command, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
    return seconds[0] / seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6, help="of each measurement; the first one is not counted")
    parser.add_argument("--only", nargs="*", choices=[*RATIOS, *STARTUPS], default=[*RATIOS, *STARTUPS])
    arguments = parser.parse_args()
    console = Console()
    if "ONEBOX_VOC_ROOT" not in os.environ:
        console.print("without ONEBOX_VOC_ROOT: the embedded data set, and no comparison with the notebook's VOC loop")
        arguments.only = [name for name in arguments.only if not name.startswith("seed_loop")]
    wanted = {name: RATIOS[name] for name in arguments.only if name in RATIOS}
    needed = list(dict.fromkeys(part for above, below, _ in wanted.values() for part in (above, *below)))

    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(arguments.rounds if needed else 0):
        rounds.append({})
        for what in needed:
            rounds[-1][what] = measure(what, epochs=arguments.epochs)
            console.print(
                f"round {number + 1}: {what:12} {rounds[-1][what]['images_per_s']:7.0f} images/s", highlight=False
            )
    for results in rounds:
        check_same_work(results)

    measured: dict[str, tuple[list[float], float | None]] = {}
    for name, (above, below, target) in wanted.items():
        speed = [{what: result["images_per_s"] for what, result in results.items()} for results in rounds]
        measured[name] = [row[above] / max(row[other] for other in below) for row in speed], target
    for name, (command, target) in STARTUPS.items():
        if name in arguments.only:
            startup(command)  # the first one reads files from the disk
            measured[name] = [startup(command) for _ in range(3 * arguments.rounds)], target

    rows = []
    table = Table(
        "", "median", "min", "max", "target", title=f"ratios over {arguments.rounds} rounds, {os.cpu_count()} cores"
    )
    for name, (ratios, target) in measured.items():
        values = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
        rows.append({"name": name, "target": target, **values, "unit": "ratio"})
        table.add_row(name, *(f"{value:.3f}" for value in values.values()), str(target or "-"))
    file = Path("outputs/bench.json")
    before = read_json(file) if file.exists() else []
    names = {row["name"] for row in rows}
    write_json(file, [row for row in before if row["name"] not in names] + rows)  # --only keeps the others
    console.print(table, "written to outputs/bench.json")


def check_same_work(results: dict[str, dict[str, float]]) -> None:
    """The same number of images, and for the same batches the same loss."""
    images = {result["images"] for result in results.values()}
    assert len(images) == 1, f"different numbers of images: {results}"
    threads = {result["threads"] for result in results.values()}
    assert len(threads) == 1, f"different numbers of threads: {results}"
    for what, result in results.items():
        assert result["loss"] < result["first_loss"], f"{what} did not learn: {result}"
    if {"onebox none", "bare none"} <= set(results):
        one, bare = (results[what]["loss"] for what in ("onebox none", "bare none"))
        assert abs(one - bare) < 1e-4, f"fit and bare step trained differently: {one} and {bare}"


if __name__ == "__main__":
    main()
