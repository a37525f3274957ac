"""The sweeper of grids and lists: plans, launches what must run, and says how it ended."""

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from onebox.errors import BadInput, SweepFailed, check, duration, own_complaint, printable
from onebox.files import read_bytes, replacing
from onebox.overrides import check_place
from onebox.runs.provenance import source_fingerprint
from onebox.runs.reading.find import read_run
from onebox.sweep.check import Build
from onebox.sweep.compose import Composer
from onebox.sweep.course import Course
from onebox.sweep.job import PLANNED_SOURCE, RERUN
from onebox.sweep.plan import Job, Jobs, combinations, varied, without_excluded, write_plan
from onebox.sweep.process import importing, start_server
from onebox.sweep.report import reported
from onebox.sweep.snapshot import code_of_now
from onebox.sweep.submit import instantiate_launcher, submit

log = logging.getLogger(__name__)


# Hydra's BasicSweeper cannot be a base: Hydra loads its module twice, and super() in it then fails.
class GridSweeper(Sweeper):
    """Runs all combinations of the values that the command line and `params` list, and those of `sweep.jobs`.

    Typos are found before the first job starts. The rest is composed, and what is composed is built, beside jobs that
    run. What is done already is not launched.

    Args:
        params: key -> values as the command line writes them, such as `1,3,10`; the command line wins.
        build: builds a job, which this layer does not know how to.
    """

    def __init__(self, params: dict[str, str] | None, build: Build) -> None:
        self._params, self._build = dict(params or {}), build

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config, self._context = config, hydra_context
        self._launcher, self._waits = instantiate_launcher(hydra_context, task_function, config)
        self._takes_jobs_as_they_come = hasattr(self._launcher, "launch_composed")

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run the sweep; `arguments` are overrides of the command line.

        Raises:
            BadInput: a job cannot be composed, and none was started; or all failed for a mistake in their config.
            SweepFailed: some jobs failed.
        """
        folder = Path(self._config.hydra.sweep.dir)
        check_place(folder, self._config.get("name"))
        with suppress(FileNotFoundError):
            is_ours = b"onebox.train.ClaimDirectory" in read_bytes(folder / "multirun.yaml")
            check(is_ours, f"{folder}: its multirun.yaml is of no sweep of onebox; choose another hydra.sweep.dir")
        start_server()  # imports, while the jobs are composed
        jobs = self._plan(arguments)
        source = source_fingerprint()
        write = partial(write_plan, folder, objective=objectives(self._config), source=source)
        with closing(Course(jobs, self._config.rerun, self._build, write)) as course:
            if self._config.sweep.plan == "only":
                self._show(course, folder)
                return []
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / "multirun.yaml") as temporary:
                OmegaConf.save(self._config, temporary)
            os.environ[PLANNED_SOURCE] = source
            with reported(folder):
                try:
                    with code_of_now(folder, wanted=self._config.sweep.snapshot) as keep:
                        returns = self._launch(course, keep)
                finally:
                    os.environ.pop(PLANNED_SOURCE, None)
                    course.write()
        jobs.refuse_problems("the other jobs have run")
        _raise_failures(returns)
        return returns

    def _launch(self, course: Course, keep: Callable[[Mapping[str, Path]], None]) -> list[JobReturn]:
        """Run what is to be run, whose own code is to be kept first; what all jobs came to."""

        def kept(job: Job | None) -> Job | None:
            keep(job.own_code if job else {})
            return job

        jobs = map(kept, course.to_run())
        if self._takes_jobs_as_they_come:
            found = self._launcher.launch_composed(course.jobs.combined, jobs=jobs, compose=self._compose)
        else:
            new = [job for job in jobs if job is not None]
            if not self._waits:
                if new:
                    submit(self._launcher, new, Path(self._config.hydra.sweep.dir))
                return list(course.kept.values())
            overrides = [list(job.overrides) for job in new]
            found = self._launcher.launch(overrides, initial_job_idx=0) if overrides else []
        return [*course.kept.values(), *found]

    def _plan(self, arguments: list[str]) -> Jobs:
        """The jobs that the sweep asks for, composed as far as that goes while the first cannot start yet."""
        config, context = self._config, self._context
        check(config.rerun in RERUN, f"rerun must be one of {', '.join(RERUN)}, not {config.rerun}")
        settings: Any = OmegaConf.to_container(config.sweep, resolve=True)
        # What only says which jobs there are is no part of any of them.
        given = [f"{key}={value}" for key, value in self._params.items()]
        given += [text for text in arguments if not text.lstrip("+~").startswith("sweep.")]
        parser = OverridesParser.create(config_loader=context.config_loader)
        combined = combinations(parser.parse_overrides(given), settings["jobs"])
        self._compose = Composer(context.config_loader, config)
        jobs = Jobs(combined, self._compose)
        jobs.look_ahead(self._compose.is_new_kind)
        jobs.refuse_problems("no job was started")
        needs_all = not self._takes_jobs_as_they_come or settings["exclude"] or settings["plan"] == "only"
        imports = importing()
        with Progress(transient=True, disable=not Console().is_terminal) as bar:
            shown = bar.add_task("composing the jobs", total=len(combined))
            while jobs.advance() and (needs_all or imports.is_alive()):
                bar.advance(shown)
        if imports.is_alive() and settings["plan"] != "only":
            importlib.import_module("onebox.sweep.reading.page")  # what the end needs, while the server imports as well
        jobs.refuse_problems("no job was started")
        jobs.composed = without_excluded(jobs.composed, settings["exclude"])
        return jobs

    def _show(self, course: Course, folder: Path) -> None:
        """Print what would run, and how long that may take; nothing is written."""
        jobs = course.jobs.composed
        waiting = {job.fingerprint for job in jobs if course.step(job) != "keep"}
        course.say()
        table = Table("job", "", "what it varies", box=SIMPLE_HEAD)
        for job, shown in zip(jobs, varied([job.overrides for job in jobs]), strict=True):
            what = " ".join(f"{key}={value}" for key, value in shown.items())
            table.add_row(job.fingerprint, "to run" if job.fingerprint in waiting else "done", Text(printable(what)))
        Console().print(table)
        runs = [run for job in jobs if job.fingerprint not in waiting and (run := read_run(job.folder))]
        seconds = [spent for run in runs if (spent := run.record.get("seconds")) is not None]
        at_once = self._config.hydra.launcher.get("n_jobs") or 1
        if seconds and waiting:
            left = duration(mean(seconds) * len(waiting) / at_once)
            print(f"about {left} for {len(waiting):,} jobs, {at_once} at once, at the pace of those that are done")


def _raise_failures(returns: Sequence[JobReturn]) -> None:
    errors = [own_complaint(back._return_value) for back in returns if back.status is not JobStatus.COMPLETED]
    if errors and len(errors) == len(returns) and all(isinstance(error, BadInput) for error in errors):
        raise BadInput("; ".join(dict.fromkeys(map(str, errors))))
    if errors:
        raise SweepFailed(f"{len(errors)} of {len(returns)} jobs failed; the same command tries them again")


def objectives(config: DictConfig) -> dict[str, str]:
    """The tags that a sweep optimises, each with max or min."""
    from onebox.runs.reading.noise import lower_is_better

    if isinstance(config.objective, str) and config.objective == config.monitor:
        return {config.monitor: config.monitor_mode}
    tags = [config.objective] if isinstance(config.objective, str) else config.objective
    return {tag: "min" if lower_is_better(tag) else "max" for tag in tags}
