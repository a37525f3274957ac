"""Experiments from Python: a config as the command composes it, and the command itself in a process of its own.

So nothing in a notebook changes what is trained, and no training changes the notebook.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from onebox.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    NO_CHDIR,
    BadInput,
    JobFailed,
    Stopped,
    check,
)
from onebox.hydra_setup import register_plugins
from onebox.overrides import as_text, check_place, read_arguments
from onebox.runs.fingerprint import without_hydra
from onebox.trust import check_stored, stored_arguments, stored_in
from onebox.validation import told_as_bad_input, validate

if TYPE_CHECKING:
    from onebox.runs.reading.find import Run

MEMORY = "onebox"  # where a config keeps what it was composed from: in its cache for resolvers, which copies take along
FOR_KERNELS = ("FORCE_COLOR", "CLICOLOR_FORCE", "MPLBACKEND")  # variables that Jupyter sets for what runs in it
CHILD = "from onebox.api import end_with_parent; end_with_parent(); from onebox.train import main; main()"

_composing = threading.RLock()


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config of one experiment, as the command `onebox-train` composes and checks it.

    Args:
        overrides: what is typed after `onebox-train`: `experiment=baseline`, `optimizer.lr=3e-3`, `like=latest`, ...

    Returns:
        Every key, to be read and set. What is interpolated from a key, as many are from `image_size`, follows it.
        `run_dir` is where a training would go now; each has a directory of its own, unless you set it.

    Raises:
        BadInput: something cannot be used; the message says what to do.

    Example:
        >>> cfg = onebox.compose(["experiment=baseline", "data=voc2007"])
        >>> cfg.optimizer.lr = 3e-3
        >>> print(OmegaConf.to_yaml(cfg, resolve=True))
    """
    are_texts = not isinstance(overrides, str) and all(isinstance(text, str) for text in overrides)
    check(are_texts, f"{overrides!r:.80}: give a list of texts, such as ['experiment=baseline', 'seed=1']")
    flags = [text for text in overrides if text.startswith("-")]
    check(not flags, f"{' '.join(flags)}: an option of the command line; a config is composed of KEY=VALUE alone")
    with _composing:
        others, known = Singleton._instances.pop(GlobalHydra, None), Singleton._instances
        try:
            register_plugins()
            typed = hydra_arguments(overrides)
            given = list(overrides) if stored_in else typed  # the training has to check a run directory again
            with told_as_bad_input(typed), hydra.initialize_config_module("onebox.conf", version_base="1.3"):
                config = hydra.compose("train", overrides=typed, return_hydra_config=True)
                is_single = config.hydra.mode is not RunMode.MULTIRUN
                check(is_single, "a sweep is started by onebox-train; in Python, loop over onebox.train")
                folder, cfg = single_run(config)
                for path in stored_in:  # before a command builds a part of it
                    check_stored(OmegaConf.to_container(cfg, resolve=True), folder, path, cfg.trust)
                with warnings.catch_warnings(action="ignore"):  # what libraries say when they are first imported
                    validate(cfg)
        finally:
            stored_in.clear()
            known.pop(GlobalHydra, None)
            known.update({} if others is None else {GlobalHydra: others})
    OmegaConf.get_cache(cfg)[MEMORY] = {"given": given, "run_dir": cfg.run_dir}
    return cfg


def train(config: DictConfig | Sequence[str] = ()) -> "Run":
    """Train and test one experiment, as the command does, and print its lines as they come.

    Its process imports what it needs anew: files count, not what a cell has defined or changed in memory. An interrupt
    stops it as Ctrl-C stops the command, a second one kills it; the end of the kernel stops it at a checkpoint. It may
    be called in a thread.

    Args:
        config: what `compose` gives, changed or not, or the overrides that it takes; `["resume=FOLDER"]` resumes.

    Returns:
        The run, with `metrics`, `predictions`, `show()` and `predict()`.

    Raises:
        BadInput: config or data cannot be used.
        KeyboardInterrupt: it was interrupted; the message says how to resume it.
        JobFailed, Stopped: it failed, or was stopped from outside; what it printed says why.

    Example:
        >>> runs = [onebox.train(["experiment=baseline", f"seed={seed}"]) for seed in range(3)]
        >>> [run.metrics["test"]["joint_acc"] for run in runs]
    """
    from onebox.runs.reading.find import read_run
    from onebox.sweep.launcher import how_it_died

    arguments, folder = _command(config if isinstance(config, DictConfig) else compose(config))
    code, last = _wait_for(arguments)
    run = read_run(folder)
    if code == 0 and run is not None:
        return run
    kinds = {EXIT_BAD_INPUT: BadInput, EXIT_INTERRUPTED: KeyboardInterrupt, EXIT_PREEMPTED: Stopped}
    where = f" ({folder})" if run is not None and code not in kinds else ""
    raise kinds.get(code, JobFailed)((last if code > 0 and last else how_it_died(code)) + where)


def _command(cfg: DictConfig) -> tuple[list[str], Path]:
    """The arguments that compose a config, with what was set in it since, and the directory of its run."""
    from onebox.sweep.job import differences
    from onebox.sweep.plan import as_override

    memory: dict[str, Any] = OmegaConf.get_cache(cfg).get(MEMORY, {})
    check(bool(memory), "this config is not one of onebox.compose, which knows what it was composed from; begin there")
    now, arguments = _plain(cfg), memory["given"]
    composed = compose(arguments)
    if changed := {key: as_override(value) for key, value in differences(_plain(composed), now)}:
        check("" not in changed, "the config has other keys at its top than onebox.compose gave it; set those alone")
        arguments = [text for text in arguments if text.partition("=")[0] not in changed]
        arguments += [f"{'++' * value.startswith('{')}{key}={value}" for key, value in changed.items()]
        composed = compose(arguments)
        lost = dict(differences(_plain(composed), now))
        check(not lost, f"{', '.join(lost)}: cannot be set so; give it to onebox.compose, as KEY=VALUE or GROUP=OPTION")
    place = composed.run_dir if cfg.run_dir == memory["run_dir"] else cfg.run_dir
    return [*arguments, as_text("hydra.run.dir", str(place))], Path(place).absolute()


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The config without its directory; what is interpolated stands as it is written, and paths are texts."""
    plain: dict[str, Any] = json.loads(json.dumps(OmegaConf.to_container(cfg), default=str))
    return {key: value for key, value in plain.items() if key != "run_dir"}


def _wait_for(arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command in a process of its own; its exit code (or minus a signal), and the last line printed."""
    environment = {name: value for name, value in os.environ.items() if name not in FOR_KERNELS}
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    options: dict[str, Any] = {"stderr": subprocess.STDOUT, "text": True, "errors": "replace", "env": environment}
    options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    last, stop = "", signal.SIGINT
    # In a session of its own, as a kernel's interrupt goes to all that it has started, and it would get two.
    with subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, *arguments], start_new_session=True, **options
    ) as process:
        while True:
            try:
                for line in process.stdout or ():
                    last = line.strip().removeprefix("onebox-train: ") or last
                    print("" if line.startswith("onebox-train: ") else line, end="", flush=True)  # what is raised here
                return process.wait(), last
            except KeyboardInterrupt:
                process.send_signal(stop)
                stop = signal.SIGKILL


def end_with_parent() -> None:
    """Let this process stop at a checkpoint when its standard input ends, as who waits for it is gone."""
    sys.argv[0] = "onebox-train"

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command as Hydra takes them: what they name of earlier runs is looked up, flags come first."""
    arguments = ["sweep.plan=only" if text == "--dry-run" else text for text in arguments]
    arguments = [new for text in arguments for new in stored_arguments(text)]
    if any(text.startswith(("like=", "init=", "extend=")) for text in arguments):
        from onebox.like import with_run

        arguments = with_run(arguments)
    return read_arguments(arguments)


def single_run(config: DictConfig) -> tuple[Path, DictConfig]:
    """The directory of the run that Hydra has composed, and its config without Hydra's part; refuses what is none."""
    folder = Path(config.hydra.run.dir)  # not of the copy, whose time stamp would differ
    cfg = without_hydra(config, run_dir=str(folder))
    check(not config.hydra.job.chdir, NO_CHDIR)
    check("/" not in config.hydra.job.name, f"hydra.job.name={config.hydra.job.name}: must hold no /")
    unused = [text for text in config.hydra.overrides.hydra if text.startswith("hydra.sweep.")]
    check(not unused, f"{', '.join(unused)}: is for a sweep, and this is one run; give hydra.run.dir, or -m")
    check(
        config.sweep.get("plan") != "only",
        "sweep.plan=only lists the jobs of a sweep, and this is one run; name a sweep (sweep=lr) or give -m",
    )
    check_place(folder, cfg.get("name"))
    return folder, cfg
