"""Handing jobs to a scheduler without waiting for them: `hydra.launcher.wait=false`."""

import logging
import subprocess
import threading
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from onebox.errors import BadInput, check
from onebox.files import alone
from onebox.runs.reading.find import read_run
from onebox.runs.record import is_held
from onebox.sweep.plan import Job
from onebox.sweep.queue import note_submitted, queued

log = logging.getLogger(__name__)

NAMESPACE = "onebox"  # of our actors in Ray


def instantiate_launcher(
    context: HydraContext, task_function: TaskFunction, config: DictConfig, *, needs_results: bool = False
) -> tuple[Any, bool]:
    """The launcher of a sweep, and whether it is to wait for its jobs, which the plugins' classes have no word for.

    Raises:
        BadInput: it is not to, but the sweep needs results, or its jobs would end with the command.
    """
    wait = True
    if "wait" in config.hydra.launcher:
        config = config.copy()
        with open_dict(config):
            wait = config.hydra.launcher.pop("wait")
    check(isinstance(wait, bool), f"hydra.launcher.wait={wait}: must be true or false")
    check(
        wait or not needs_results, "hydra.launcher.wait=false: a search needs the result of each trial; leave it true"
    )
    check(
        wait or OmegaConf.select(config, "hydra.launcher.ray.init.address", default="") not in (None, "local"),
        "hydra.launcher.wait=false: a Ray cluster of this sweep would end with the command; start one by ray start "
        "--head, and give hydra.launcher.ray.init.address=auto",
    )
    plugins = Plugins.instance()
    found = plugins.instantiate_launcher(hydra_context=context, task_function=task_function, config=config)
    return found, wait


def submit(launcher: Any, jobs: Sequence[Job], folder: Path) -> None:
    """Submit the jobs that neither wait nor run already, and say how to go on."""
    with alone(folder / ".submit.lock", waiting="another process is submitting this sweep; waiting"):
        records = {job.fingerprint: run.record for job in jobs if (run := read_run(job.folder))}
        waiting = queued(folder, records, _in_ray(launcher))
        left = [job for job in jobs if job.fingerprint not in waiting and not is_held(job.folder, unknown=False)]
        if left:
            engine, ids = _hand_over(launcher, [list(job.overrides) for job in left])
            note_submitted(folder, engine, {job.fingerprint: name for job, name in zip(left, ids, strict=True)})
    busy = f", {len(jobs) - len(left)} queued or running already" if len(left) < len(jobs) else ""
    log.info(
        "%d job%s submitted%s; onebox sweep %s --follow shows them, and the same command continues with what is left",
        *(len(left), "s"[: len(left) != 1], busy, folder),
    )


def _hand_over(launcher: Any, job_overrides: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """Submit jobs by a plugin's launcher; the name of the engine, and what that calls each job."""
    kind = type(launcher).__name__
    if kind == "RayLauncher":
        return "ray", _to_ray(launcher, job_overrides)
    import submitit

    # Local processes must neither keep the command's output open nor end with its terminal.
    alone = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    apart = partial(subprocess.Popen, start_new_session=True, **alone)
    with patch.object(submitit.Job, "results", lambda job: [job]), patch.object(subprocess, "Popen", apart):
        jobs = launcher.launch(job_overrides, initial_job_idx=0)
    return "slurm" if kind == "SlurmLauncher" else "local", [job.job_id for job in jobs]


class Runner:
    """An actor that owns tasks in a Ray cluster, as these end with what has started them. It ends with the last one."""

    def run(self, name: str, orders: Sequence[Any]) -> None:
        from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray

        self._name, self._tasks = name, [launch_job_on_ray(*order) for order in orders]
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        import ray

        ray.wait(self._tasks, num_returns=len(self._tasks))
        ray.kill(ray.get_actor(self._name, namespace=NAMESPACE))


def _to_ray(launcher: Any, job_overrides: Sequence[Sequence[str]]) -> list[str]:
    import ray
    from hydra_plugins.hydra_ray_launcher import _core

    orders: list[Any] = []
    name = f"sweep-{uuid.uuid4().hex}"
    given = SimpleNamespace(get=lambda order: order)
    with (
        patch.object(_core, "launch_job_on_ray", lambda *order: orders.append(order)),
        patch.object(_core, "ray", given),
    ):
        launcher.launch(job_overrides, initial_job_idx=0)
    kind: Any = ray.remote(Runner)
    runner = kind.options(name=name, namespace=NAMESPACE, lifetime="detached", num_cpus=0).remote()
    ray.get(runner.run.remote(name, orders))
    return [name] * len(orders)


def _in_ray(launcher: Any) -> set[str] | None:
    """The names of our actors that a cluster has; None for another engine."""
    if type(launcher).__name__ != "RayLauncher":
        return None
    import ray
    from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

    try:
        start_ray(launcher.ray_cfg.init)
    except ConnectionError as error:
        raise BadInput(f"{error}; is it running, and does it ask for a token (export RAY_AUTH_MODE=token)?") from error
    return {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
