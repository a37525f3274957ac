"""`onebox-train`: composes a config, trains, tests, and leaves a run directory.

Nothing heavy is imported before a config is complete: `--help`, `--cfg job` and tab completion stay quick.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import onebox
from onebox.api import hydra_arguments, single_run
from onebox.build import Built, build, read_data, rehearse
from onebox.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    BadInput,
    Preempted,
    RankFailed,
    SweepFailed,
    exit_with,
    exit_with_os_error,
    limit_of_system,
    say,
)
from onebox.hydra_setup import register_plugins
from onebox.lightning_setup import collect_late, lightnings_errors, use_threads
from onebox.project import enter
from onebox.streams import check_limits, command_line
from onebox.validation import explain, validate

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from onebox.runs.record import RunRecord
    from onebox.sweep.job import Value

log = logging.getLogger(__name__)
USER_ERRORS = (BadInput, HydraException, OmegaConfBaseException)
# Hydra's plugins of engines, and what installs them.
EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_ray_launcher": "ray", "hydra_submitit_launcher": "slurm"}
SCHEMA = 1  # of metrics.json
BEST = ("joint_acc", "acc", "iou", "loc_acc", "loc_l1", "loss")  # shown in TensorBoard as `best/NAME`


def main() -> None:
    """The console command. Exit codes: 0 done, 1 a fault, 2 bad input, 75 stopped by SIGTERM or SIGHUP, 130 by hand."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # no process of ours finds a module in the working directory
    collect_late()
    try:
        with command_line("onebox-train"):
            check_limits()
            enter()
            register_plugins()
            sys.argv[1:] = hydra_arguments(sys.argv[1:])
            if not {"-m", "--multirun"}.isdisjoint(sys.argv):
                from onebox.sweep.process import start_server

                start_server()  # imports what jobs need, while this process imports Hydra's plugins and composes
            _app()
    except (*USER_ERRORS, OSError) as error:
        _exit_with(error)
    except (RankFailed, SweepFailed) as error:
        exit_with(error, str(error), "onebox-train", EXIT_FAULT)
    except Preempted as error:
        say(error)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt as error:
        say(str(error) or "stopped by Ctrl-C")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        unknown = re.search(r"(?:Unknown plugin class :|Invalid plugin) '(?:hydra_plugins\.)?(\w+)[\w.]*'", str(error))
        if unknown is None:
            _exit_at_limit(error)
            raise
        if unknown[1] not in EXTRAS:
            name = unknown[0].rpartition(" ")[2]
            _exit_with(BadInput(f"{name} is no plugin of Hydra's; choose hydra/launcher or hydra/sweeper (see --help)"))
        _exit_with(BadInput(f'{unknown[1]} is not installed: pip install "onebox[{EXTRAS[unknown[1]]}]"'))


class ClaimDirectory(HydraCallback):
    """Stops before Hydra writes into a directory that this run may not have, so that nothing in it is lost."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once before a single run."""
        from onebox import ranks
        from onebox.runs.fingerprint import fingerprints
        from onebox.runs.record import claim
        from onebox.trust import check_stored, stored_in

        number = ranks.served_rank(config.trainer)
        if number is not None:
            ranks.prepare(config, number)
            return
        try:
            folder, cfg = single_run(config)
            for path in stored_in:
                check_stored(OmegaConf.to_container(cfg, resolve=True), folder, path, cfg.trust)
            claim(folder, fingerprint=fingerprints(cfg)["fingerprint"], resume=cfg.resume)
        except USER_ERRORS as error:
            _exit_with(error)  # Hydra turns other exceptions of a callback into warnings
        except OSError:
            return  # the folder cannot be made; Hydra reports that too


def task(cfg: DictConfig) -> Value:
    """What Hydra calls, in a sweep once a job."""
    try:
        return train(cfg)
    except (*USER_ERRORS, OSError) as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # the other jobs run on
        _exit_with(error)  # here, as Hydra would print a line of its own first
    except Exception as error:
        if HydraConfig.get().mode is RunMode.RUN:
            _exit_at_limit(error)
        raise


# Launchers pickle `task` by its name, so it is not decorated.
_app = hydra.main(version_base="1.3", config_path="pkg://onebox.conf", config_name="train")(task)


def train(cfg: DictConfig) -> Value:
    """Train and test one experiment, and leave a run directory at `cfg.run_dir`.

    In a sweep, a run that is complete there is kept, and one that did not end is resumed.

    Returns:
        The value of `cfg.objective` in the best epoch, which a sweep optimises; None when the fit did not log it.

    Raises:
        BadInput: config or data cannot be used; run.json says why.
    """
    from onebox import ranks
    from onebox.runs import hparams
    from onebox.runs.fingerprint import run_facts
    from onebox.runs.own_code import config_places
    from onebox.runs.provenance import source_fingerprint
    from onebox.runs.record import RunRecord, claim
    from onebox.runs.signals import sigterm_raises
    from onebox.sweep.job import Done, check_planned, planned_varied, read_plan, stored_objective, take

    run_dir = Path(os.path.relpath(cfg.run_dir))
    facts = run_facts(cfg, HydraConfig.get()) | config_places(HydraConfig.get())
    number = ranks.served_rank(cfg.trainer)
    if number is not None:
        hparams.name_events(cfg, {})
        with ranks.as_rank(number, run_dir), sigterm_raises(), ExitStack() as after:
            return _experiment(cfg, RunRecord.of_rank(run_dir, number), facts["fingerprint"], after, capped=True)
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    plan = read_plan(run_dir.parent) if in_sweep else {}
    if in_sweep:
        check_planned(run_dir, facts, source_fingerprint(), plan)
        now: Any = {"source": source_fingerprint(), "data": lambda: read_data(cfg).fingerprint()}
        try:
            earlier = take(run_dir, rerun=cfg.rerun, objective=_objective(cfg), **now)
        except Done as done:
            return done.value
    else:  # already claimed where Hydra started this; then run.json is only read
        earlier = claim(run_dir, fingerprint=facts["fingerprint"], resume=cfg.resume)
    with sigterm_raises(), ExitStack() as after, RunRecord(run_dir, earlier, **facts) as run:
        validate(cfg)  # before tensorboard is imported, which takes longer
        if not in_sweep:  # which has built each of its jobs
            rehearse(cfg)
        if OmegaConf.select(cfg, "extend.run"):
            from onebox.runs.extension import begin

            begin(run_dir, facts["config"], facts["fingerprint"])
        hparams.name_events(cfg, planned_varied(plan, facts["fingerprint"]))
        with hparams.session(cfg, facts, hparams.overridden(job["overrides"] for job in plan.get("jobs", []))):
            if (count := ranks.num_ranks(cfg.trainer)) > 1:
                try:
                    ranks.run_ranks(run_dir, count)
                finally:
                    run.reread()
                return stored_objective(run_dir, _objective(cfg))
            return _experiment(cfg, run, facts["fingerprint"], after, capped=in_sweep)


def _objective(cfg: DictConfig) -> str | list[str]:
    return cfg.objective if isinstance(cfg.objective, str) else list(cfg.objective)


def _experiment(cfg: DictConfig, run: RunRecord, fingerprint: str, after: ExitStack, *, capped: bool) -> Value:
    """Build, fit, test, close; `capped`, with few loader workers. Uploads end with `after`, once run.json is whole."""
    from onebox.runs.texts import about, tell

    use_threads(cfg, capped=capped)
    built = build(cfg, run, fingerprint)
    for logger in built.trainer.loggers:
        if run.writes and hasattr(logger, "upload"):
            plain = OmegaConf.to_container(cfg, resolve=True)
            after.enter_context(logger.upload(run.folder, fingerprint, plain, is_resumed=run.is_resumed))
    _let_be_pruned(cfg, built.trainer, fingerprint)
    tell(built.trainer, about(cfg, HydraConfig.get()))
    _fit(cfg, run, built)
    best, folder = run.folder / "checkpoints" / "best.ckpt", run.folder if run.writes else None
    return _close(cfg, run, built, Tested({}, {}, {}) if run.is_pruned else tested(built, best, folder))


def _let_be_pruned(cfg: DictConfig, trainer: Trainer, fingerprint: str) -> None:
    """Let a job of a search that has a pruner ask it after each epoch."""
    hydra: Any = HydraConfig.get()
    has_pruner = OmegaConf.select(hydra, "sweeper.pruner") is not None  # there is no sweeper when a run is reproduced
    if has_pruner and os.path.abspath(Path(cfg.run_dir).parent) == os.path.abspath(hydra.sweep.dir):
        from onebox.callbacks.pruning import Pruning
        from onebox.sweep.study import reporter

        if (is_hopeless := reporter(hydra.sweeper, fingerprint)) is not None:
            trainer.callbacks.append(Pruning(cfg.objective, is_hopeless))  # type: ignore[attr-defined]  # see _fit


def _fit(cfg: DictConfig, run: RunRecord, built: Built) -> None:
    from onebox.callbacks.freeze import Freeze
    from onebox.callbacks.nonfinite import NonFiniteLoss
    from onebox.model.pretrained import weights_hash

    data, module, trainer, checkpoint = built
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    if any(isinstance(callback, Freeze) for callback in callbacks):
        from onebox.frozen_features import store_features

        parts: Any = {"backbone": cfg.model.backbone, "augment": cfg.augment}
        plain: Any = {name: OmegaConf.to_container(part, resolve=True) for name, part in parts.items()}
        store_features(trainer, module, data, checkpoint=checkpoint, **plain)
    try:
        with lightnings_errors(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except BadInput:  # it may have stopped at such a loss
        for callback in callbacks:
            if isinstance(callback, NonFiniteLoss):
                run.add(**callback.outcome(module))
        raise
    run.add(final_weights=weights_hash(module))
    if (stopped := _stopped_early(trainer)) is not None:
        log.info(stopped)
        run.add(stopped_early=stopped)
    for callback in callbacks:
        if hasattr(callback, "outcome"):
            run.add(**callback.outcome(module))


def _stopped_early(trainer: Trainer) -> str | None:
    """When and why early stopping ended a fit, also one that resumed from its last checkpoint; None if it did not."""
    stopping = trainer.early_stopping_callback
    reason = stopping.stopping_reason_message if stopping is not None else None
    if reason is None or trainer.current_epoch == trainer.max_epochs:
        return None
    reason = reason.removesuffix(". Signaling Trainer to stop.")
    return f"stopped after epoch {trainer.current_epoch} of {trainer.max_epochs}: {reason}"


class Tested(NamedTuple):
    """The metrics of the test split, the floor beside them, and how they compare; empty without a test image."""

    test: dict[str, float]
    floor: dict[str, float]
    against_floor: dict[str, dict[str, Any]]


def tested(built: Built, weights: Path, folder: Path | None) -> Tested:
    """Test what was trained.

    The metrics are those of the checkpoint `weights`, if there is one; predictions.csv goes into `folder`.
    """
    from onebox.runs.checkpoint import load_weights
    from onebox.runs.predictions import write_predictions
    from onebox.runs.results import against_floor, floor_metrics

    data, module, trainer, _ = built
    if not len(data.indexes["test"]):
        return Tested({}, {}, {})
    if weights.exists():  # callbacks.checkpoint_best=null: the last weights
        load_weights(module, weights)  # Lightning, under averaging, would test the weights that were not averaged
    with lightnings_errors(trainer):
        trainer.test(module, datamodule=data, verbose=False)
    test = {tag.removeprefix("test/"): value.item() for tag, value in trainer.callback_metrics.items()}
    assert module.tested is not None  # by the test
    train, images = data.indexes["train"], data.indexes["test"]
    if folder is not None:
        write_predictions(folder, images, data.class_names, module.tested)
    num_tested = int(sum(row["images"] for row in module.test_per_class.values()))
    floor = floor_metrics(train, images, data.class_names, num_tested)
    return Tested(test, floor, against_floor(train, images, len(data.class_names), module.tested))


def _close(cfg: DictConfig, run: RunRecord, built: Built, results: Tested) -> Value:
    """Write the results, and give the objective's value."""
    from onebox.callbacks.epoch_csv import EpochCsvLogger, best_row
    from onebox.files import write_json
    from onebox.runs.reading.report import write_report
    from onebox.runs.results import print_results
    from onebox.runs.texts import changed, result_table, tell
    from onebox.sweep.job import value_of

    loggers = built.trainer.loggers
    rows = next(logger.rows for logger in loggers if isinstance(logger, EpochCsvLogger))
    best = best_row(rows, cfg.monitor, cfg.monitor_mode)
    shown = {f"best/{name}": best[tag] for name in BEST if (tag := f"val/{name}") in best}
    table = result_table(results.test, results.floor, per_class := built.module.test_per_class)
    tell(built.trainer, {"results": table, **changed(cfg, HydraConfig.get())})
    for logger in loggers:
        logger.log_metrics(shown, step=built.trainer.global_step)
        logger.finalize("success")
    if not run.writes:
        return None
    parts = {"final": rows[max(rows)] if rows else {}, "best": best, **results._asdict(), "per_class": per_class}
    write_json(run.folder / "metrics.json", {"schema": SCHEMA, **parts})
    write_report(run.folder, upright=built.data.is_upright if cfg.callbacks.get("pictures") else None)
    print_results(run.folder)
    return value_of(best, _objective(cfg))


def _exit_with(error: Exception) -> NoReturn:
    if isinstance(error, OSError) and not isinstance(error, USER_ERRORS):  # some of Hydra's are both
        exit_with_os_error(error, "onebox-train", elsewhere="another hydra.run.dir")
    # Loader workers send the whole traceback as the message.
    exit_with(error, explain(error, sys.argv[1:]).rpartition("onebox.errors.BadInput: ")[2], "onebox-train")


def _exit_at_limit(error: Exception) -> None:
    if (limit := limit_of_system(error)) is not None:
        exit_with(error, limit, "onebox-train", EXIT_FAULT)


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = onebox.Both  # onebox.train(cfg) is that of onebox.api
