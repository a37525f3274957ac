"""The way of a sweep's jobs: composed, written into the plan, then kept as they are or given to the launcher."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from onebox.runs.hparams import complete, overridden
from onebox.runs.provenance import source_fingerprint
from onebox.runs.reading.find import read_run
from onebox.sweep.check import Build, Checks
from onebox.sweep.job import Step, is_stale, next_step, stored_objective
from onebox.sweep.plan import Job, Jobs

log = logging.getLogger(__name__)

STALE = "done, but stale"


class Course:
    """Says which jobs are to be run, as soon as it is known of each.

    Args:
        jobs: all of them, of which some may not be composed yet.
        rerun: one of `onebox.sweep.job.RERUN`.
        build: builds one, to check it.
        write: `onebox.sweep.plan.write_plan` for this sweep.

    Attributes:
        kept: what those that are not run again have returned before, by fingerprint.
    """

    def __init__(self, jobs: Jobs, rerun: str, build: Build, write: Callable[..., None]) -> None:
        self.jobs, self._rerun, self._build, self._write = jobs, rerun, build, write
        self.kept: dict[str, JobReturn] = {}
        self._source = source_fingerprint()
        self._becomes: dict[str, str] = {}  # fingerprint -> what is counted
        self._checks: Checks | None = None

    def close(self) -> None:
        if self._checks is not None:
            self._checks.close()

    def to_run(self) -> Iterator[Job | None]:
        """The jobs that are to be run, each when the plan on disk has it; None when one was composed, or is waited for.

        What ended before comes last, as only the checks say whether its data are those of now.
        """
        ended, num_written, is_left = list[Job](), 0, True
        while is_left:
            is_left = self.jobs.advance()
            composed = self.jobs.composed
            if is_left and len(composed) < 2 * num_written:
                yield None
                continue
            self.write(self.jobs.combined if is_left else ())
            for job in composed[num_written:]:
                step = self.step(job)
                if step == "keep" or (step != "new" and self._rerun == "stale"):
                    ended.append(job)
                else:
                    yield job
            num_written = len(composed)
        for what, where in self.jobs.problems.items():
            log.error("%s: %s; this job is left out", where, what)
        self._checks = Checks(self.jobs.composed, self._build)
        while ended and self._checks.is_running():
            yield None
        if ended and self._checks.died_at:
            log.warning(
                "the process that checks the jobs died at: %s; their data may have changed", self._checks.died_at
            )
        varied = overridden(job.overrides for job in self.jobs.composed)
        for job in ended:
            if self.step(job) == "keep":
                complete(job.folder, job.config, {"choices": job.choices, "overrides": job.overrides}, varied)
                self.kept[job.fingerprint] = self._returned(job)
            else:
                yield job
        self.say()

    def write(self, combined: Sequence[tuple[str, ...]] = ()) -> None:
        """Write the plan as it is now; `combined` are all combinations, where not all jobs are composed yet."""
        known = self._checks.data_fingerprints if self._checks else {}
        self._write(self.jobs.composed, combined=combined, data_fingerprints=known)

    def step(self, job: Job) -> Step:
        """What becomes of a job, as far as it is known."""
        run = read_run(job.folder)
        facts = run.record if run else None
        data = self._checks.data_fingerprints if self._checks else {}
        stale = facts is not None and is_stale(facts, self._source, partial(data.get, job.fingerprint))
        step = next_step(facts, rerun=self._rerun, stale=stale)
        status = facts and facts.get("status")
        failed = status == "failed"
        kept = "failed before, kept" if failed else STALE if stale else "pruned" if status == "pruned" else "done"
        again = "failed before, retried" if failed and step == "resume" else step
        self._becomes[job.fingerprint] = kept if step == "keep" else again
        return step

    def say(self) -> None:
        """Say what becomes of how many jobs."""
        jobs, combined = self.jobs.composed, self.jobs.combined
        counts = Counter(self._becomes[job.fingerprint] for job in jobs)
        log.info("%d jobs: %s", len(jobs), ", ".join(f"{number} {what}" for what, number in counts.items()))
        if len(jobs) < len(combined):
            log.info("%d of %d combinations are duplicates or left out", len(combined) - len(jobs), len(combined))
        if counts[STALE]:
            log.info("stale: done by other code or on other data; rerun=stale runs them again")

    def _returned(self, job: Job) -> JobReturn:
        """What a job that is kept would have returned."""
        failed = "failed" in self._becomes[job.fingerprint]
        value: Any = RuntimeError("failed before") if failed else stored_objective(job.folder, job.config["objective"])
        status = JobStatus.FAILED if failed else JobStatus.COMPLETED
        return JobReturn(overrides=list(job.overrides), working_dir=str(job.folder), status=status, _return_value=value)
