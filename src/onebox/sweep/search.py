"""A search by Optuna that survives being killed: its study lies in the sweep's folder and is resumed from there."""

import importlib.util
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from onebox.errors import BadInput, SweepFailed, check, is_finite, is_integer, is_number, printable
from onebox.files import alone, write_text
from onebox.overrides import check_place
from onebox.runs.reading.find import find_runs, read_run
from onebox.runs.reading.report import read_epochs
from onebox.runs.record import ENDED
from onebox.sweep.check import Build, Checks
from onebox.sweep.compose import Composer
from onebox.sweep.plan import compose_jobs
from onebox.sweep.process import start_server
from onebox.sweep.reading.trials import quiet_optuna
from onebox.sweep.report import reported
from onebox.sweep.snapshot import code_of_now
from onebox.sweep.space import describe, distribution, ends_of, values_of
from onebox.sweep.study import RUN, Constraint, constrain, make, make_pruner, open_storage
from onebox.sweep.study import report as report_values
from onebox.sweep.submit import instantiate_launcher
from onebox.sweep.sweeper import objectives

log = logging.getLogger(__name__)

RETRY_OF = "retry_of"  # user attribute of a trial: number of the one, killed or failed, whose parameters it runs again


@dataclass
class Search(Sweeper):
    """Asks Optuna for jobs and tells it their objectives, until the study holds `n_trials` that ended.

    With one job at a time, which parameters a trial gets follows from the seed and the trials before it alone: a
    search that was killed and started again proposes what it would have proposed.
    """

    sampler: DictConfig  # of an Optuna sampler that takes a `seed`
    pruner: str | None  # one of the names of `pruners`; None: every job is trained to its end
    pruners: Mapping[str, DictConfig]  # Optuna's pruners by name
    constraints: str | Sequence[str] | None  # see `Constraint`
    direction: str | Sequence[str] | None  # maximize or minimize, one for each objective; None: see `objectives`
    storage: str  # address of the database that holds the study
    study_name: str
    n_trials: int | None  # that the study holds in the end, with those of earlier starts; None: all of a grid
    n_jobs: int | None  # trials that are proposed and launched together; None: the launcher's n_jobs, or 1
    max_failure_rate: float  # a larger share of failed jobs among those launched together ends the search
    params: Mapping[Any, str] | None  # override -> its values in Hydra's notation: `tag(log, interval(1e-4, 1e-2))`
    build: Build

    def __post_init__(self) -> None:
        name, n_jobs, rate = "hydra.sweeper", self.n_jobs, self.max_failure_rate
        is_sampler = isinstance(self.sampler, DictConfig) and "_target_" in self.sampler
        check(is_sampler, f"{name}.sampler is {self.sampler}; choose hydra/sweeper=tpe, or another that --help lists")
        seed, texts = self.sampler.get("seed"), self.constraints or []
        check(is_integer(seed, 0), f"{name}.sampler.seed must be a whole number >= 0, not {seed}")
        check(isinstance(self.storage, str), f"{name}.storage must be the address of a database, not {self.storage}")
        check(isinstance(texts, Sequence), f"{name}.constraints must be a list, such as ['parameters <= 1e6']")
        self._is_grid = str(self.sampler._target_).endswith(".GridSampler")
        is_number_of_trials = is_integer(self.n_trials, 1) or (self.n_trials is None and self._is_grid)
        check(is_number_of_trials, f"{name}.n_trials must be a number >= 1, not {self.n_trials}")
        check(n_jobs is None or is_integer(n_jobs, 1), f"{name}.n_jobs must be null or a number >= 1, not {n_jobs}")
        check(is_number(rate, 0, 1), f"{name}.max_failure_rate must be in [0, 1], not {rate}")
        needs_cmaes = str(self.sampler._target_).endswith(".CmaEsSampler")
        check(
            not needs_cmaes or importlib.util.find_spec("cmaes") is not None,
            f"{self.sampler._target_} needs the package cmaes: pip install 'onebox[optuna]'",
        )
        self._constraints = [Constraint.parse(text) for text in ([texts] if isinstance(texts, str) else texts)]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config, self._loader = config, hydra_context.config_loader
        chosen = config.hydra.runtime.choices["hydra/sweeper"]
        loader: Any = self._loader  # Hydra's interface does not show where it reads files
        found = loader.repository.load_config(f"hydra/sweeper/{chosen}")
        wanted, sweep = found and OmegaConf.select(found.config, "sampler._target_"), config.hydra.runtime.choices.sweep
        check(
            wanted in (None, self.sampler._target_),
            f"hydra/sweeper={chosen}, but sweep={sweep} brings another sampler; take sweep=search with it",
        )
        self._launcher, _ = instantiate_launcher(hydra_context, task_function, config, needs_results=True)

    def sweep(self, arguments: list[str]) -> None:
        """Search, beginning with what an earlier start left open; `arguments` are overrides of the command line.

        Raises:
            BadInput: there is nothing to search, a job cannot be composed or built, or the folder holds another search.
            SweepFailed: some jobs failed.
        """
        start_server()  # imports, while jobs are composed
        folder = Path(self._config.hydra.sweep.dir)
        check_place(folder, self._config.get("name"))
        tags = objectives(self._config)
        directions = _directions(tags, self.direction)
        check(self.pruner is None or len(tags) == 1, "hydra.sweeper.pruner needs one objective; set it to null")
        space, fixed = self._space(arguments)
        make_pruner(self.pruner, self.pruners)
        self._make_sampler(space, place=0)
        base = self._check(space, fixed)
        if self._config.sweep.plan == "only":
            self._show(space, folder)
            return
        with (
            alone(folder / ".search.lock", waiting="another process is running this search; waiting for it to end"),
            quiet_optuna(),
        ):
            study = optuna.create_study(
                study_name=self.study_name,
                storage=open_storage(self.storage),
                pruner=make_pruner(self.pruner, self.pruners),
                directions=directions,
                load_if_exists=True,
            )
            _check_study(study, folder, {"config": base, "objective": list(tags)}, directions, space)
            _retry(study, space, failed=self._config.rerun != "none")
            with reported(folder):
                self._search(study, folder, space, fixed)
            failed = [trial for trial in _ended(study) if trial.state is TrialState.FAIL]
        if failed:
            raise SweepFailed(f"{len(failed)} of {len(_ended(study))} trials failed; the same command tries them again")

    def _space(self, arguments: list[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
        """What is searched, and the overrides that all jobs share. The command line wins over `params`."""
        parser = OverridesParser.create(config_loader=self._loader)
        lines = [f"{key}={value}" for key, value in (self.params or {}).items()] + arguments
        last = {override.get_key_element(): override for override in parser.parse_overrides(lines)}
        space = {key: distribution(override) for key, override in last.items() if override.is_sweep_override()}
        fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
        check(
            not (self._config.sweep.jobs or self._config.sweep.exclude),
            "sweep.jobs and sweep.exclude belong to a grid; a search takes hydra.sweeper.params",
        )
        check(
            bool(space),
            "nothing to search: give hydra.sweeper.params or the command line a range, such as "
            "'optimizer.lr=tag(log, interval(1e-4, 1e-2))'",
        )
        check(
            "seed" not in space,
            "seed cannot be searched, as the luckiest one would win; search with one seed, and repeat the best with "
            "sweep=seeds",
        )
        return space, fixed

    def _check(self, space: dict[str, BaseDistribution], fixed: Sequence[str]) -> str:
        """Compose and build a job for each end and each choice, so that a mistake is found before anything runs.

        Returns the fingerprint of what is not searched.
        """
        ends = {key: ends_of(part) for key, part in space.items()}
        first = {key: values[0] for key, values in ends.items()}
        corners = [first, *(first | {key: value} for key, values in ends.items() for value in values[1:])]
        combined = [(*(f"{key}={value}" for key, value in corner.items()), *fixed) for corner in corners]
        compose = Composer(self._loader, self._config)
        jobs = compose_jobs(combined, compose)
        self._own_code = {name: place for job in jobs for name, place in job.own_code.items()}
        with closing(Checks(jobs, self.build)) as checks:
            checks.refuse_problems()
        return compose_jobs([tuple(fixed)], compose)[0].fingerprint

    def _show(self, space: Mapping[str, BaseDistribution], folder: Path) -> None:
        """Print what would be searched; nothing is written."""
        ended = sum(run.record.get("status") in ENDED for run in find_runs(folder))
        print(f"{self._number(space)} trials, of which {ended} have ended; each is proposed when those before it have.")
        for key, part in space.items():
            print(printable(f"  {key}: {describe(part)}"))

    def _number(self, space: Mapping[str, BaseDistribution]) -> float:
        """How many trials the study is to hold."""
        size = math.prod(len(values_of(key, part)) for key, part in space.items()) if self._is_grid else math.inf
        return min(self.n_trials or math.inf, size)

    def _search(self, study: Study, folder: Path, space: dict[str, BaseDistribution], fixed: Sequence[str]) -> None:
        n_trials = self._number(space)
        log.info("%s: %s of %s trials done", folder, len(_ended(study)), n_trials)
        n_jobs = self.n_jobs or _launcher_jobs(self._config)
        study.sampler = self._make_sampler(space, place=0)  # which is also asked when a trial ends
        left = [Trial(study, trial._trial_id) for trial in _standing(study) if trial.state is TrialState.RUNNING]
        compose = Composer(self._loader, self._config)
        while (to_do := n_trials - len(_ended(study))) > 0:
            number = int(min(to_do, n_jobs))
            trials = [left.pop(0) if left else self._ask(study, space) for _ in range(number)]
            jobs = [[*(f"{key}={value}" for key, value in trial.params.items()), *fixed] for trial in trials]
            for trial, job in zip(trials, jobs, strict=True):
                with suppress(BadInput):  # of a job that cannot be composed: the launcher says so
                    trial.set_user_attr(RUN, compose_jobs([tuple(job)], compose)[0].fingerprint)
            with code_of_now(folder, wanted=self._config.sweep.snapshot) as keep:
                keep(self._own_code)
                returns = self._launcher.launch(jobs, initial_job_idx=trials[0].number)
            failed = [not self._tell(study, trial, job, folder) for trial, job in zip(trials, returns, strict=True)]
            _write_results(study, folder, list(objectives(self._config)))
            if sum(failed) / len(failed) > self.max_failure_rate:
                log.error("%s of %s jobs failed, more than max_failure_rate allows", sum(failed), len(failed))
                break

    def _ask(self, study: Study, space: dict[str, BaseDistribution]) -> Trial:
        # Optuna keeps no state of its random numbers. Seeded again by the trial's place, a search that resumes neither
        # repeats its first draws nor differs from one that was never stopped.
        place = len([trial for trial in _standing(study) if trial.state is not TrialState.WAITING])
        study.sampler = self._make_sampler(space, place)
        return study.ask(space)

    def _make_sampler(self, space: Mapping[str, BaseDistribution], place: int) -> BaseSampler:
        if self._is_grid:  # whose order follows from the seed
            grid = {key: values_of(key, part) for key, part in space.items()}
            return make(self.sampler, "sampler", search_space=grid)
        seed = np.random.SeedSequence([self.sampler.seed, place]).generate_state(1)[0]
        return make(self.sampler, "sampler", seed=int(seed))

    def _tell(self, study: Study, trial: Trial, job: JobReturn, folder: Path) -> bool:
        """Tell the study what a job came to; False when it failed."""
        run = read_run(folder / trial.user_attrs.get(RUN, ""))
        value = job._return_value  # its property prints a line of its own for a job that failed
        if job.status is JobStatus.COMPLETED:
            is_pruned, lacking = run is not None and run.record.get("status") == "pruned", ""
            if run is not None:
                lacking = constrain(trial, self._constraints, run)
                if len(study.directions) == 1:  # what another start, or a grid, has made reported nothing
                    tag, rows = next(iter(objectives(self._config))), read_epochs(run.path / "metrics.csv")
                    report_values(trial, {int(row["epoch"]): row[tag] for row in rows if tag in row})
            if is_pruned:
                study.tell(trial, state=TrialState.PRUNED)
                return True
            values = list(value) if isinstance(value, list | tuple) else [value]
            is_told = len(values) == len(study.directions) and all(map(is_finite, values))
            if is_told and not lacking:
                study.tell(trial, [float(item) for item in values])
                return True
            value = f"it has no {lacking}" if is_told else f"its objective is {value}"
        log.warning("trial %s failed: %s", trial.number, value)
        study.tell(trial, state=TrialState.FAIL)
        return False


def _directions(tags: Mapping[str, str], wanted: str | Sequence[str] | None) -> list[StudyDirection]:
    """One for each tag, which is mapped to max or min; `wanted` is what the config asks for, and may not differ."""
    derived = [StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in tags.values()]
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted is not None and list(wanted) != [direction.name.lower() for direction in derived]:
        modes = ", ".join(f"{tag} is best at its {mode}" for tag, mode in tags.items())
        raise BadInput(
            f"hydra.sweeper.direction is {', '.join(wanted)}, but {modes}; leave it null (monitor_mode says which end "
            "of the monitor is best)"
        )
    return derived


def _check_study(
    study: Study,
    folder: Path,
    facts: Mapping[str, Any],
    directions: Sequence[StudyDirection],
    space: Mapping[str, BaseDistribution],
) -> None:
    """Refuse to resume a study whose objectives would not compare with new ones."""
    known = study.user_attrs
    for key, value in facts.items():
        if key not in known:
            study.set_user_attr(key, value)
    others = [key for key in facts if known.get(key, facts[key]) != facts[key]]
    others += ["direction"] * (study.directions != list(directions))
    for trial in study.get_trials(deepcopy=False):
        for key in trial.distributions.keys() & space.keys():
            try:
                check_distribution_compatibility(trial.distributions[key], space[key])
            except ValueError:
                others.append(key)
    if others:
        raise BadInput(
            f"{folder}: already holds a search with another {', '.join(dict.fromkeys(others))}; choose another "
            "name=... for this one, or remove the folder"
        )


def _standing(study: Study) -> list[FrozenTrial]:
    """The trials that no other one tries again."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [trial for trial in trials if trial.number not in retried]


def _ended(study: Study) -> list[FrozenTrial]:
    return [trial for trial in _standing(study) if trial.state.is_finished()]


def _retry(study: Study, space: Mapping[str, BaseDistribution], *, failed: bool) -> None:
    """Queue the trials again that `failed`, and those that a killed process had not finished to ask for.

    What was asked for and has no end is launched again as the same trial. Safe against a kill in between: a trial is
    enqueued before it is marked as failed, and what is enqueued no longer stands.
    """
    for trial in _standing(study):
        is_cut_off = trial.state is TrialState.RUNNING and not space.keys() <= trial.params.keys()
        if is_cut_off or (failed and trial.state is TrialState.FAIL):
            study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
            log.info("trial %s was %s and is run again", trial.number, "cut off" if is_cut_off else "failed")
        if is_cut_off:
            study.tell(trial.number, state=TrialState.FAIL)


def _launcher_jobs(config: DictConfig) -> int:
    """How many jobs the launcher runs at once, as far as its config says: 1 if it does not."""
    n_jobs = config.hydra.launcher.get("n_jobs")
    if not isinstance(n_jobs, int):
        return 1
    return n_jobs if n_jobs > 0 else os.cpu_count() or 1  # joblib's -1 is all cores


def _write_results(study: Study, folder: Path, tags: Sequence[str]) -> None:
    """optimization_results.yaml, as hydra-optuna-sweeper has it: what is best until now, or the Pareto front."""
    completed = any(trial.state is TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))
    best = study.best_trials if completed else []
    results: dict[str, Any] = {"name": "optuna", "objective": list(tags)}
    if len(tags) > 1:
        results["solutions"] = [{"params": trial.params, "values": list(trial.values)} for trial in best]
    else:
        results |= {"best_params": best[0].params, "best_value": best[0].value} if best else {"best_params": None}
    write_text(folder / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create(results)))
