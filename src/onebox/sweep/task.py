"""A job as the hermetic launcher has it."""

from collections.abc import Sequence
from functools import cached_property

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from onebox.runs.fingerprint import run_facts, without_hydra
from onebox.runs.record import record_failure
from onebox.sweep.compose import Composer
from onebox.sweep.plan import Job


class Task:
    """A job that is to be run, composed when it is first asked for, if it is not yet.

    Attributes:
        attempts: how often it has been started by this launch.
        result: None until it has ended for good.
    """

    def __init__(self, compose: Composer, overrides: Sequence[str], number: int, label: str, job: Job | None) -> None:
        self._compose, self._overrides = compose, list(overrides)
        self.number, self.label = number, label or "one job"
        if job is not None:
            self.job = job
        self.attempts = 0
        self.result: JobReturn | None = None

    @cached_property
    def config(self) -> DictConfig:
        """Its config, with `hydra`."""
        return self._compose.with_hydra(self._overrides, self.number)

    @cached_property
    def job(self) -> Job:
        """What the sweep planned, with its run directory."""
        return self._compose(self._overrides)

    def forget(self) -> None:
        """Give its config back, which takes megabytes."""
        del self.config

    @property
    def is_composed(self) -> bool:
        """Whether its config could be composed, and so its run directory is known."""
        return "job" in vars(self)

    def record_failure(self, error: BaseException, text: str) -> None:
        """Say in run.json why it failed, as a job that is killed cannot say it itself."""
        config = without_hydra(self.config, run_dir=str(self.job.folder.absolute()))
        facts = run_facts(config, self.config.hydra)
        record_failure(self.job.folder, {"type": type(error).__name__, "message": text}, **facts)
