"""`python -m benchmarks.folds FOLDER...`: what runs of all folds say together, beside the floor, with intervals.

FOLDER holds the run directories of one experiment, each with its `data.fold`, or what `onebox evaluate` made of them.
Several seeds, or several `data.views_seed`, are repeats. A repeat has each image once, tested by the run that was not
trained on it. Two intervals of 95 % are given: over the repeats, as elsewhere in onebox; and over draws of the images
and of the repeats at once, a bootstrap, which also holds that other photographs might have been tested.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from onebox.files import read_json
from onebox.runs.predictions import per_image, read_predictions
from onebox.runs.reading.noise import interval

METRICS = ("acc", "iou", "loc_acc", "joint_acc", "loc_l1")
RESAMPLES = 2000


def read_repeats(folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, dict[str, float]]]:
    """The metrics of each image of each repeat, and those of its floor, mean over its folds."""
    parts: dict[str, list[pd.DataFrame]] = {}
    floors: dict[str, list[dict[str, float]]] = {}
    for path in sorted(folder.glob("*/predictions.csv")):
        metrics = read_json(path.parent / "metrics.json")
        config = OmegaConf.load(Path(metrics.get("run", path.parent)) / "config.yaml")  # `run`: of `onebox evaluate`
        if config.data.fold is None:
            continue
        views = config.data.get("views_seed")
        repeat = f"seed {config.seed}" + (f", views {views}" if views else "")
        predictions = read_predictions(path.parent)
        parts.setdefault(repeat, []).append(per_image(predictions)[list(METRICS)].set_index(predictions["id"]))
        floors.setdefault(repeat, []).append(metrics["floor"])
    repeats = {name: pd.concat(parts[name], verify_integrity=True).sort_index() for name in sorted(parts)}
    return repeats, {name: pd.DataFrame(floors[name]).mean().to_dict() for name in repeats}


def bootstrap(values: np.ndarray) -> np.ndarray:
    """[M, 2] the 95 % intervals of the means of [R, N, M] values over draws of the R repeats and of the N images."""
    random = np.random.default_rng(0)
    repeats, images, _ = values.shape
    means = []
    for _ in range(RESAMPLES):
        drawn = values[random.integers(repeats, size=repeats)].mean(0)
        means.append(np.bincount(random.integers(images, size=images), minlength=images) @ drawn / images)
    return np.percentile(means, (2.5, 97.5), axis=0).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for folder in parser.parse_args().folders:
        repeats, floors = read_repeats(folder)
        if not repeats:
            parser.error(f"{folder}: holds no tested run with a data.fold")
        whole = {name: table for name, table in repeats.items() if len(table) == max(map(len, repeats.values()))}
        values = np.stack([table[list(METRICS)].to_numpy() for table in whole.values()])
        table = Table(title=f"{folder.name}: {values.shape[1]:,} images")
        for column in ("", "floor", *whole, "mean", "± over repeats", "95 % over images and repeats"):
            table.add_column(column, justify="right" if column else "left")
        for number, (name, (low, high)) in enumerate(zip(METRICS, bootstrap(values), strict=True)):
            means = values[:, :, number].mean(1).tolist()
            half = interval(means)
            spread = "" if half is None else f"{half:.3f}"
            floor = np.mean([floors[repeat][name] for repeat in whole])
            cells = [f"{floor:.3f}", *(f"{mean:.3f}" for mean in means), f"{np.mean(means):.3f}"]
            table.add_row(name, *cells, spread, f"{low:.3f} to {high:.3f}")
        Console().print(table)
        for name in sorted(repeats.keys() - whole.keys()):
            print(f"left out: {name}, which has {len(repeats[name])} images")


if __name__ == "__main__":
    main()
