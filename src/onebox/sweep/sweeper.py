"""The sweeper of grids and lists: plans, launches what must run, and says how it ended."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from onebox.errors import BadInput, SweepFailed, check, duration, own_complaint, printable
from onebox.files import replacing
from onebox.overrides import check_place
from onebox.runs.provenance import source_fingerprint
from onebox.runs.reading.find import read_run
from onebox.sweep.check import Build, Checks
from onebox.sweep.compose import Composer
from onebox.sweep.job import PLANNED_SOURCE, RERUN, is_stale, next_step, stored_objective
from onebox.sweep.plan import Job, combinations, compose_jobs, varied, without_excluded, write_plan
from onebox.sweep.process import start_server
from onebox.sweep.snapshot import code_of_now

log = logging.getLogger(__name__)


# Hydra's BasicSweeper cannot be a base: Hydra loads its module twice, and super() in it then fails.
class GridSweeper(Sweeper):
    """Runs all combinations of the values that the command line and `params` list, and those of `sweep.jobs`.

    All are composed before the first starts, so that a typo costs nothing. They are built beside those that run. What
    is done already is not launched.

    Args:
        params: key -> values as the command line writes them, such as `1,3,10`; the command line wins.
        build: builds a job, which this layer does not know how to.
    """

    def __init__(self, params: dict[str, str] | None, build: Build) -> None:
        self._params, self._build = dict(params or {}), build

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's Sweeper."""
        self.config, self.hydra_context = config, hydra_context
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run the sweep; `arguments` are overrides of the command line.

        Raises:
            BadInput: a job cannot be composed, and none was started; or all failed for a mistake in their config.
            SweepFailed: some jobs failed.
        """
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        check_place(folder, self.config.get("name"))
        start_server()  # imports, while the jobs are composed
        jobs = self._plan(arguments)
        if self.config.sweep.plan == "only":
            self._show(jobs, folder)
            return []
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "multirun.yaml") as temporary:
            OmegaConf.save(self.config, temporary)
        source = source_fingerprint()
        plan = partial(write_plan, folder, jobs, objective=objectives(self.config), source=source)
        plan(data_fingerprints={})
        with Checks(jobs, self._build) as checks:
            if any((job.folder / "run.json").exists() for job in jobs):
                checks.wait()  # whether what is done is of these data
            returns, to_run = self._kept(jobs, checks.data_fingerprints)
            try:
                if to_run:
                    os.environ[PLANNED_SOURCE] = source
                    with code_of_now(folder, wanted=self.config.sweep.snapshot):
                        launched = self._launcher.launch([list(job.overrides) for job in to_run], initial_job_idx=0)
                    returns |= {job.fingerprint: back for job, back in zip(to_run, launched, strict=True)}
            finally:
                os.environ.pop(PLANNED_SOURCE, None)
                plan(data_fingerprints=checks.data_fingerprints)
                report(folder)
        _raise_failures([returns[job.fingerprint] for job in jobs])
        return [returns[job.fingerprint] for job in jobs]

    def _plan(self, arguments: list[str]) -> list[Job]:
        """Compose the jobs that the sweep asks for."""
        config, context = self.config, self.hydra_context
        assert config is not None
        assert context is not None
        check(config.rerun in RERUN, f"rerun must be one of {', '.join(RERUN)}, not {config.rerun}")
        settings: Any = OmegaConf.to_container(config.sweep, resolve=True)
        # What only says which jobs there are is no part of any of them.
        given = [f"{key}={value}" for key, value in self._params.items()]
        given += [text for text in arguments if not text.lstrip("+~").startswith("sweep.")]
        parser = OverridesParser.create(config_loader=context.config_loader)
        combined = combinations(parser.parse_overrides(given), settings["jobs"])
        bar = track(combined, "composing the jobs", transient=True, disable=not Console().is_terminal)
        jobs = compose_jobs(bar, Composer(context.config_loader, config))
        if len(jobs) < len(combined):
            log.info("%d of %d combinations are duplicates", len(combined) - len(jobs), len(combined))
        return without_excluded(jobs, settings["exclude"])

    def _show(self, jobs: Sequence[Job], folder: Path) -> None:
        """Print what would run, and how long that may take; nothing is written."""
        assert self.config is not None
        returns, to_run = self._kept(jobs, {})
        waiting = {job.fingerprint for job in to_run}
        table = Table("job", "", "what it varies", box=SIMPLE_HEAD)
        for job, shown in zip(jobs, varied(jobs), strict=True):
            what = " ".join(f"{key}={value}" for key, value in shown.items())
            table.add_row(job.fingerprint, "to run" if job.fingerprint in waiting else "done", Text(printable(what)))
        Console().print(table)
        runs = [run for name in returns if (run := read_run(folder / name))]
        seconds = [spent for run in runs if (spent := run.record.get("seconds")) is not None]
        at_once = self.config.hydra.launcher.get("n_jobs") or 1
        if seconds and to_run:
            left = duration(mean(seconds) * len(to_run) / at_once)
            print(f"about {left} for {len(to_run):,} jobs, {at_once} at once, at the pace of those that are done")

    def _kept(
        self, jobs: Sequence[Job], data_fingerprints: Mapping[str, Mapping[str, str]]
    ) -> tuple[dict[str, JobReturn], list[Job]]:
        """What is kept, by fingerprint, and what is to run; says how many there are of each."""
        assert self.config is not None
        source = source_fingerprint()
        kept: dict[str, JobReturn] = {}
        to_run: list[Job] = []
        counts: Counter[str] = Counter()
        for job in jobs:
            run = read_run(job.folder)
            facts = run.record if run else None
            stale = facts is not None and is_stale(facts, source, partial(data_fingerprints.get, job.fingerprint))
            step = next_step(facts, rerun=self.config.rerun, stale=stale)
            failed = facts is not None and facts.get("status") == "failed"
            if step == "keep":
                kept[job.fingerprint] = _returned(job, failed=failed)
                counts["failed before, kept" if failed else "done, but stale" if stale else "done"] += 1
            else:
                to_run.append(job)
                counts["failed before, retried" if failed and step == "resume" else step] += 1
        log.info("%d jobs: %s", len(jobs), ", ".join(f"{number} {what}" for what, number in counts.items()))
        if counts["done, but stale"]:
            log.info("stale: done by other code or on other data; rerun=stale runs them again")
        return kept, to_run


def _returned(job: Job, *, failed: bool) -> JobReturn:
    """What a job that is kept would have returned."""
    value: Any = RuntimeError("failed before") if failed else stored_objective(job.folder, job.config["objective"])
    status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    config = OmegaConf.create(dict(job.config))
    return JobReturn(
        overrides=list(job.overrides), cfg=config, working_dir=str(job.folder), status=status, _return_value=value
    )


def _raise_failures(returns: Sequence[JobReturn]) -> None:
    errors = [own_complaint(back._return_value) for back in returns if back.status is not JobStatus.COMPLETED]
    if len(errors) == len(returns) and all(isinstance(error, BadInput) for error in errors):
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


def report(folder: Path) -> None:
    """Print the table of all jobs in a sweep's folder."""
    from onebox.sweep.reading.table import list_sweep, read_sweep

    list_sweep(read_sweep(folder)).show(Console(highlight=False))
