"""Run directories: found below a folder, and named by path, time or fingerprint."""

import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebox.errors import BadInput, check, is_finite, printable
from onebox.files import read_json
from onebox.runs.fingerprint import flatten
from onebox.runs.predictions import read_predictions
from onebox.runs.record import is_held, read_record, why_no_checkpoint
from onebox.trust import stored_file

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from onebox.runs.reading.load import Given
    from onebox.runs.reading.predict import Detection

log = logging.getLogger(__name__)

MISSING = object()
MAX_CANDIDATES = 5
BEGAN = {"init": "began with the weights of", "extend": "extends", "like": "has the config of"}  # parent_how, in words
REPRODUCED = "reproduced"  # folder of the runs that `onebox reproduce` makes; only found when it is named


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run directory.

    Example:
        >>> run = onebox.train(["experiment=baseline"])
        >>> run.metrics["test"]["iou"], run.predictions["iou"].min(), run.predict("photo.jpg")[0].box_px
        >>> run.show(run.predictions.nsmallest(12, "iou")).save("worst.png")

    Attributes:
        path: the directory.
        record: what run.json holds, see `onebox.runs.record.read_record`. `status` is `died` where run.json says
            `running` and no process holds the directory.
    """

    path: Path
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}: {self.record.get('status')}, {self.record.get('fingerprint')}>"

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The sections of metrics.json (`test`, `floor`, `best`, `final`, `per_class`), each name -> value.

        Boxes are measured in [0, 1]. Empty when the run did not get that far.
        """
        path = os.path.join(self.path, "metrics.json")
        try:
            check(not os.path.islink(path), f"{path}: is a link; remove it")
            sections = read_json(path, shape=dict)
        except FileNotFoundError:
            return {}
        except BadInput as error:
            _left_out(error)
            return {}
        return {name: section for name, section in sections.items() if isinstance(section, dict)}

    @cached_property
    def tags(self) -> Mapping[str, float]:
        """`val/...` and `train/...` of the last epoch, `best/...` of the best one (see `best_tag`), and `test/...`."""
        best = {best_tag(tag): value for tag, value in self.metrics.get("best", {}).items()}
        test = {f"test/{name}": value for name, value in self.metrics.get("test", {}).items()}
        return _numbers({**self.metrics.get("final", {}), **best, **test})

    @property
    def floors(self) -> Mapping[str, float]:
        """`floor/NAME`: what a prediction that ignores the image has for the metric `test/NAME`."""
        return _numbers({f"floor/{name}": value for name, value in self.metrics.get("floor", {}).items()})

    @property
    def predictions(self) -> "pd.DataFrame":
        """A row for each test image: classes, boxes in px of the image, IoU, probabilities; see docs/runs.md.

        Raises:
            BadInput: there is no predictions.csv, or it is not that of a run.
        """
        return read_predictions(self.path)

    def show(self, rows: "pd.DataFrame | None" = None, *, num_images: int = 24, columns: int = 6) -> "Image":
        """Test images with true and predicted boxes: a picture that a notebook displays, and that has `save(path)`.

        Args:
            rows: some of `predictions`; by default `num_images` that are spread evenly over them.
            num_images: how many at most.
            columns: images a row.

        Raises:
            BadInput: there are no predictions, or an image is not where it was.
        """
        from onebox.runs.reading.show import draw_predictions

        upright = (self.config.get("data") or {}).get("exif") == "apply"
        found = self.predictions if rows is None else rows
        return draw_predictions(found, self.path, upright=upright, num_images=num_images, columns=columns)

    def predict(self, images: "Given | Sequence[Given]") -> "list[Detection]":
        """Load the network and find the object of each image, see `onebox.runs.reading.load.LoadedRun.predict`."""
        from onebox.runs.reading.load import load_run

        return load_run(self.path).predict(images)

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config."""
        config: Mapping[str, Any] = self.record.get("config", {})
        return config

    @property
    def nonfinite(self) -> str:
        """Where the loss was NaN or infinite first; empty for a run whose losses were numbers."""
        first = self.record.get("nonfinite")
        if not isinstance(first, Mapping):
            return ""
        return f"loss {first.get('loss')} from epoch {first.get('epoch')}, batch {first.get('batch')} on, so no result"

    @property
    def parent(self) -> str:
        """Which run it began from, and how; empty for one that began anew."""
        parent, how = self.record.get("parent"), self.record.get("parent_how", "init")
        return f"{BEGAN.get(how, how)} {parent}" if parent else ""

    def value(self, key: str) -> Any:
        """The fact of run.json, value of the config, choice of a group or metric that a key names, or `MISSING`."""
        fact = _at(self.record, key)
        if fact is not MISSING and not isinstance(fact, Mapping | list):
            return fact
        value = _at(self.config, key)
        if value is not MISSING and not isinstance(value, Mapping):
            return value
        return self.record.get("choices", {}).get(key.replace(".", "/"), self.tags.get(key, MISSING))

    def known_keys(self) -> Iterator[str]:
        """All keys that `value` knows, but for the less interesting facts."""
        yield from self.tags
        yield from (key for key, value in self.record.items() if isinstance(value, str | int | float))
        yield from self.record.get("choices", {})
        yield from (key for key, _ in flatten(dict(self.config)))


@cache  # asked of each metric of thousands of runs
def best_tag(tag: str) -> str:
    """The name of a tag's value in the best epoch: `best/iou` for `val/iou`, `best/train/iou` for `train/iou`."""
    split, _, name = tag.partition("/")
    return {"val": f"best/{name}", "train": f"best/{tag}"}.get(split, tag)


def logged_tag(tag: str) -> str:
    """The tag that is logged each epoch for what `best_tag` has named: `val/iou` for `best/iou`."""
    split, _, name = tag.partition("/")
    return tag if split != "best" else name if name.startswith("train/") else f"val/{name}"


def split_of(tag: str) -> str:
    """The split whose images a metric is of."""
    split, _, name = tag.partition("/")
    return split if split != "best" else "train" if name.startswith("train/") else "val"


def read_run(path: Path) -> Run | None:
    """The run in a directory; None when it holds none."""
    record = _record(path)
    return None if record is None else Run(path, record)


def find_runs(folder: Path) -> list[Run]:
    """All runs in or below a folder, newest first; those in hidden folders and in `reproduced` are left out.

    A run.json that cannot be read, or holds something other than a run writes, is logged and left out.
    """
    known: dict[tuple[str, bytes], Any] = {}  # as the runs of a sweep hold much alike
    records = ((path, _record(path, known)) for path in _directories(folder))
    runs = [Run(Path(path), record) for path, record in records if record is not None]
    return sorted(runs, key=lambda run: (run.record.get("started", ""), str(run.path)), reverse=True)


def find_run(name: str, outputs: Path) -> Run:
    """The run that a user means.

    Args:
        name: a run directory (also relative to `outputs`), `latest`, a fingerprint or the first digits of one that no
            other run has; with `~N` the one that was started N runs before it among those of that name. A number of
            one or two digits is `latest~N`.
        outputs: where runs are looked for.

    Raises:
        BadInput: there is no such run, or more than one; the message names candidates.
    """
    for folder in (Path(name), outputs / name):
        run = read_run(folder.parent if folder.name == "run.json" else folder)
        if run is not None:
            return run
    name = f"latest~{name}" if re.fullmatch("[0-9]{1,2}", name) else name
    base, _, back = name.rpartition("~")
    if not base or not back.isdecimal():
        base, back = name, "0" if name == "latest" else ""
    runs = found = find_runs(outputs)
    if base != "latest":
        is_code = re.fullmatch("[0-9a-f]{3,12}", base)
        found = [run for run in runs if is_code and str(run.record.get("fingerprint", "")).startswith(base)]
    if back and int(back) < len(found):
        return found[int(back)]
    if len(found) == 1 and not back:
        return found[0]
    if back:
        problem = f"there are {len(found)} such runs in {outputs}"
    elif found:
        raise BadInput(
            f"{name}: {len(found)} runs have it: {_names(found)}; give more digits, or {base}~0 for the newest of them"
        )
    else:
        what = "holds no run.json, and there is no such run" if Path(name).is_dir() else "no such run"
        problem = (
            f"{what} in {outputs}; give a run directory, latest, latest~1, or the first digits of a fingerprint "
            "(onebox runs lists them)"
        )
    raise BadInput(f"{name}: {problem}; {_candidates(name, runs, outputs)}")


def weights_file(folder: Path) -> Path:
    """The best checkpoint of a run or, without one, the last.

    Raises:
        BadInput: there is none, or it is a link to somewhere else.
    """
    files = [folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last", "previous")]
    file = next((name for name in files if name.exists()), None)
    why = why_no_checkpoint(read_record(folder) or {}) if file is None else ""
    check(not why, f"{folder}: {why}; onebox reproduce {folder} trains it again")
    if file is None or not (folder / "config.yaml").exists():
        raise BadInput(f"{folder}: no trained run; it needs config.yaml and checkpoints/best.ckpt or last.ckpt")
    return stored_file(folder, str(file.relative_to(folder)))


def find_all(names: Sequence[str], outputs: Path) -> list[Run]:
    """The runs that several names mean, each once; a folder, or the name of a sweep, means all runs below it.

    Raises:
        BadInput: see `find_run`.
    """
    found: dict[Path, Run] = {}
    for name in names:
        folder = next((path for path in (Path(name), outputs / name, outputs / "sweeps" / name) if path.is_dir()), None)
        below = find_runs(folder) if folder is not None else []
        for run in below or [find_run(name, outputs)]:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def near_keys(key: str, runs: Sequence[Run]) -> str:
    """What to say of a key that no run has: the nearest ones."""
    known = sorted({name for run in runs for name in run.known_keys()})
    last = key.rpartition("/")[2].rpartition(".")[2]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.75) or [name for name in known if last in name][:3]
    return f"no run has a key {key}" + (f", did you mean {' or '.join(near)}?" if near else "")


def _candidates(name: str, runs: Sequence[Run], outputs: Path) -> str:
    if not runs:
        return "there are no runs yet (--outputs FOLDER looks elsewhere)"
    paths = {os.path.relpath(run.path, outputs): run for run in runs}
    near = [paths[path] for path in difflib.get_close_matches(name, paths, n=3, cutoff=0.6)]
    return f"close to it: {_names(near)}" if near else f"the newest: {_names(runs[:3])}"


def _names(runs: Sequence[Run]) -> str:
    shown = ", ".join(f"{run.path} ({run.record.get('fingerprint', '?')})" for run in runs[:MAX_CANDIDATES])
    return shown + (f" and {len(runs) - MAX_CANDIDATES} more" if len(runs) > MAX_CANDIDATES else "")


def _directories(folder: Path | str) -> Iterator[Path | str]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    if any(entry.name == "run.json" for entry in found):
        yield folder  # no run lies in another
        return
    for entry in found:
        is_left_out = entry.name == REPRODUCED or entry.name.startswith(".")
        if entry.is_dir(follow_symlinks=False) and not is_left_out:
            yield from _directories(entry.path)


def _record(folder: Path | str, known: dict[tuple[str, bytes], Any] | None = None) -> dict[str, Any] | None:
    """run.json, with `died` for a run whose process is gone; None when there is none that is sound."""
    try:
        record = read_record(folder, known)
        if record is not None and record.get("status") == "running" and not is_held(folder, unknown=True):
            record = read_record(folder)  # again, as the run may have ended in between
            if record is not None and record.get("status") == "running":
                record["status"] = "died"
        return record
    except BadInput as error:
        _left_out(error)
        return None


def _left_out(error: BadInput) -> None:
    log.warning("%s; left out", printable(str(error)))


def _at(node: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return MISSING
        node = node[name]
    return node


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    # Of each metric of thousands of runs; nearly all are floats, and a call takes longer.
    return {key: one for key, one in values.items() if (type(one) is float and abs(one) <= 1e300) or is_finite(one)}
