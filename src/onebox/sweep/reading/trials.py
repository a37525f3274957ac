"""The jobs of a sweep as trials of an Optuna study, whether a search asked for them or a grid."""

import logging
import math
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import plot_parallel_coordinate

from onebox.data.processes import progress
from onebox.errors import check, is_finite
from onebox.files import replacing
from onebox.runs.reading.find import logged_tag
from onebox.runs.reading.report import read_epochs
from onebox.runs.reading.table import cell
from onebox.sweep.reading.strips import drawn
from onebox.sweep.reading.sweep import Sweep

MAX_LINES = 200  # of parallel coordinates: more cannot be told apart
MAX_CHOICES = 8  # values of a key, beyond which they count as drawn from a range
MIN_JOBS = 10  # importances compare the best tenth with the others
STATES = {"pruned": TrialState.PRUNED, **dict.fromkeys(("completed", "stale", "failed", "died"), TrialState.FAIL)}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without what Optuna says of each study and each trial, and of what it calls experimental since years."""
    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        yield


def write_study(sweep: Sweep, file: Path, *, force: bool) -> int:
    """Write an SQLite database that `optuna-dashboard` opens; returns how many jobs it lacks, as they have not ended.

    Raises:
        BadInput: the file exists and `force` is not given, or it is the study that a search goes on with.
    """
    check(file.resolve() != (sweep.folder / "study.db").resolve(), f"{file}: is the search's own study; choose another")
    check(force or not file.exists(), f"{file}: exists already; choose another file, or overwrite it with --force")
    with TemporaryDirectory() as folder, replacing(file) as temporary:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db")
        trials = make_trials(sweep, with_epochs=len(sweep.mode) == 1)
        shown = progress(trials, total=len(trials), description="writing the study")  # a thousand jobs take minutes
        _study(sweep, shown, storage=storage, study_name=sweep.folder.resolve().name)
        storage.engine.dispose()
        shutil.copyfile(f"{folder}/study.db", temporary)
    return len(sweep.jobs) - len(trials)


def make_trials(sweep: Sweep, *, with_epochs: bool = False) -> list[FrozenTrial]:
    """A trial for each job that has ended, stale ones too; `with_epochs` with its only objective after each epoch."""
    known = {key: [value for value in sweep.jobs[key] if value == value] for key in sweep.varied}
    spaces = {key: _distribution(values) for key, values in known.items() if values}
    tag, trials = logged_tag(next(iter(sweep.mode))), []
    for number, job in zip(sweep.jobs.index, sweep.jobs.to_dict("records"), strict=True):
        run, values = sweep.every[number], [job.get(tag, math.nan) for tag in sweep.mode]
        state = TrialState.COMPLETE if all(map(math.isfinite, values)) else STATES.get(job["status"])
        if state is None:
            continue
        rows = read_epochs(run.path / "metrics.csv") if with_epochs else []
        keys = [key for key in sweep.varied if job[key] == job[key]]
        trial = create_trial(
            state=state,
            values=values if state is TrialState.COMPLETE else None,
            params={key: cell(job[key]) if _has_texts(spaces[key]) else job[key] for key in keys},
            distributions={key: spaces[key] for key in keys},
            intermediate_values={int(row["epoch"]): row[tag] for row in rows if math.isfinite(row.get(tag, math.nan))},
            user_attrs={"run": job["fingerprint"], "job": number, "seed": cell(job["seed"]), "status": job["status"]},
        )
        with suppress(ValueError, OverflowError):  # of a record that somebody else wrote, or without seconds
            start = datetime.fromisoformat(str(run.record.get("started")))
            start = (start.astimezone(UTC) if start.tzinfo else start).replace(tzinfo=None)
            trial.datetime_complete = start + timedelta(seconds=job["seconds"])
            trial.datetime_start = start
        trials.append(trial)
    return trials


def drawn_trials(sweep: Sweep) -> list[FrozenTrial]:
    """Those of the jobs that charts show."""
    shown = drawn(sweep).index
    return [trial for trial in make_trials(sweep) if trial.values and trial.user_attrs["job"] in shown]


def parallel_coordinates(sweep: Sweep, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """Optuna's figure of the jobs with a result, the best drawn last; None without two of them or without a key.

    Of more than `MAX_LINES` it has the best half, and of the rest every so many; `left_out` says how many not.
    """
    if len(trials) < 2 or not sweep.varied:
        return None
    tag, mode = next(iter(sweep.mode.items()))
    sign = -1 if mode == "min" else 1
    trials = sorted(trials, key=lambda trial: -sign * trial.values[0])
    half = MAX_LINES // 2
    shown = [*trials[:half], *trials[half :: math.ceil((len(trials) - half) / half) or 1]]
    figure = plot_parallel_coordinate(_study(sweep, shown), target_name=tag).to_plotly_json()
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines"]
    return {
        "lines": sorted(lines, key=lambda line: sign * line["y"][0]),
        "layout": figure["layout"],
        "names": [*sweep.mode, *sorted({key for trial in shown for key in trial.params})],  # Optuna cuts long ones off
        "ranges": [[min(column), max(column)] for column in zip(*(trial.values for trial in shown), strict=True)],
        "left_out": len(trials) - len(shown),
    }


def importances(sweep: Sweep, trials: Sequence[FrozenTrial]) -> dict[str, dict[str, float]]:
    """Each objective -> share of each varied key in what makes the best tenth of the jobs (PED-ANOVA).

    Empty where there are too few jobs, or less than two keys; an objective that hardly differs is left out.
    """
    found: dict[str, dict[str, float]] = {}
    if len(trials) < MIN_JOBS or len(sweep.varied) < 2:
        return found
    study = _study(sweep, trials)
    for place, (tag, mode) in enumerate(sweep.mode.items()):

        def loss(trial: FrozenTrial, place: int = place, sign: int = 1 if mode == "min" else -1) -> float:
            return sign * float(trial.values[place])

        losses = sorted(map(loss, trials))
        if losses[math.ceil(len(losses) / 10) - 1] < losses[-1]:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*low `target` values")
                found[tag] = get_param_importances(study, target=loss)
    return found


def _study(sweep: Sweep, trials: Iterable[FrozenTrial], **where: Any) -> optuna.Study:
    directions = [StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE for mode in sweep.mode.values()]
    with quiet_optuna():
        study = optuna.create_study(directions=directions, **where)
        study.set_metric_names(list(sweep.mode))
    for trial in trials:
        study.add_trial(trial)
    return study


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Each value as a choice; many numbers as a range, by its logarithm where it spans a power of ten."""
    if not all(map(is_finite, values)):
        return CategoricalDistribution(sorted(set(map(cell, values))))
    if len(set(values)) <= MAX_CHOICES:
        return CategoricalDistribution(sorted(set(values)))
    low, high = min(values), max(values)
    return FloatDistribution(low, high, log=low > 0 and high >= 10 * low)


def _has_texts(space: BaseDistribution) -> bool:
    return isinstance(space, CategoricalDistribution) and isinstance(space.choices[0], str)
