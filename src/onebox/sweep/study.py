"""The study of a search: its database, what jobs report to it while they run, and what a trial must keep to."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.exceptions import OptunaError
from optuna.samplers import GridSampler as OptunasGridSampler
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from onebox.errors import BadInput, check, own_complaint
from onebox.runs.reading.find import Run

log = logging.getLogger(__name__)

RUN = "run"  # user attribute of a trial: the fingerprint of its job, which names the run directory
WAIT_S = 60  # for another process that writes to an SQLite database
_CONSTRAINT = re.compile(r"(parameters|best/\S+)\s*(<=|>=)\s*(\S+)")


class GridSampler(OptunasGridSampler):
    """Optuna's, which ends a study when the grid is done by a call that nobody may make who asks and tells."""

    def after_trial(self, *args: Any) -> None:
        """Nothing: the search counts the trials."""


def make(config: DictConfig, key: str, **given: Any) -> Any:
    """Instantiate a part of the sweeper's config.

    Raises:
        BadInput: it does not take its arguments.
    """
    try:
        return instantiate(config, **given)
    except InstantiationException as error:
        raise BadInput(f"hydra.sweeper.{key}: {own_complaint(error).__cause__ or error}") from error


def make_pruner(name: str | None, pruners: Mapping[str, DictConfig]) -> optuna.pruners.BasePruner:
    """The pruner of a name; one that prunes nothing without."""
    check(
        name is None or bool(pruners.get(str(name))),
        f"hydra.sweeper.pruner is {name}, not {', '.join(pruners)} or null",
    )
    return make(pruners[name], f"pruners.{name}") if name else optuna.pruners.NopPruner()


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """The database at an address.

    Raises:
        BadInput: it cannot be used.
    """
    apart = "or move it away: the runs that it asked for stay, and are found"
    try:
        options = {"connect_args": {"timeout": WAIT_S}} if url.startswith("sqlite") else {}
        return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=options))
    except RuntimeError as error:  # the database has the schema of another Optuna
        remedy = f"optuna storage upgrade --storage {url} makes it one of Optuna {optuna.__version__}"
        if "$ pip" in str(error):
            remedy = "it was made by a newer Optuna: pip install -U optuna"
        raise BadInput(f"{url}: cannot be used by Optuna {optuna.__version__}; {remedy}, {apart}") from error
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error.orig if isinstance(error, DatabaseError) else error).partition("\n")[0]
        raise BadInput(f"{url}: cannot be opened ({reason}); correct hydra.sweeper.storage, {apart}") from error


def report(trial: Trial, values: Mapping[int, float]) -> None:
    """Let the study know the objective by epoch; what it knows already stays."""
    known = trial.storage.get_trial(trial._trial_id).intermediate_values
    for epoch, value in values.items():
        if epoch not in known:
            trial.report(value, epoch)


def reporter(sweeper: DictConfig, run: str) -> Callable[[Mapping[int, float]], bool] | None:
    """What the job with the fingerprint `run` calls after each epoch, see `onebox.callbacks.pruning.Pruning`.

    None where no trial waits for this job. A database that cannot be reached prunes nothing.
    """
    try:
        storage = open_storage(sweeper.storage)
        pruner = make_pruner(sweeper.pruner, sweeper.pruners)
        study = optuna.load_study(study_name=sweeper.study_name, storage=storage, pruner=pruner)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trials = [Trial(study, trial._trial_id) for trial in running if trial.user_attrs.get(RUN) == run]
    except (BadInput, OptunaError, SQLAlchemyError, KeyError) as error:
        log.warning("not pruned, as the study cannot be read: %s", error)
        return None

    def is_hopeless(values: Mapping[int, float]) -> bool:
        try:
            report(trials[-1], values)
            return trials[-1].should_prune()
        except (OptunaError, SQLAlchemyError) as error:
            log.warning("not pruned, as the study cannot be asked: %s", error)
            return False

    return is_hopeless if trials else None


@dataclass(frozen=True)
class Constraint:
    """What a result must keep to, such as `parameters <= 1e6` or `best/iou >= 0.5`."""

    text: str
    name: str
    sign: int  # 1 for an upper bound
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Raise BadInput where it is none."""
        found = _CONSTRAINT.fullmatch(str(text).strip())
        try:
            if found is not None:
                return cls(found[0], found[1], 1 if found[2] == "<=" else -1, float(found[3]))
        except ValueError:
            pass
        raise BadInput(
            f"hydra.sweeper.constraints: {text} is not NAME <= NUMBER or NAME >= NUMBER with parameters as NAME or a "
            "metric of the best epoch (best/iou is val/iou there, best/train/iou is train/iou)"
        )

    def violation(self, run: Run) -> float | None:
        """By how much a run breaks it, 0 or less if it does not; None when the run has no such number."""
        value = run.value(self.name)
        return self.sign * (value - self.bound) if isinstance(value, int | float) else None


def constrain(trial: Trial, constraints: list[Constraint], run: Run) -> str:
    """Let the study know what a run violates; returns what it has no number of, empty if nothing."""
    found = {constraint: constraint.violation(run) for constraint in constraints}
    for constraint, violation in found.items():
        if violation is not None and constraint.text not in trial.constraints:
            trial.set_constraint(constraint.text, violation)
    return ", ".join(constraint.name for constraint, violation in found.items() if violation is None)
