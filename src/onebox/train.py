"""`onebox-train`: composes a config, trains, tests, and leaves a run directory.

Nothing heavy is imported before a config is complete: `--help`, `--cfg job` and tab completion stay quick.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # PyYAML has no types

from onebox.build import (
    build_module,
    build_trainer,
    check_stages,
    fill_in,
    quieten,
    read_data,
    run_trainer,
    unread_levels,
    use_threads,
)
from onebox.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    BadInput,
    Preempted,
    RankFailed,
    SweepFailed,
)
from onebox.help import help_text
from onebox.spelling import check_options, explain
from onebox.validation import validate

if TYPE_CHECKING:
    from onebox.data.datamodule import VocDataModule
    from onebox.runs.record import RankRecord, RunRecord
    from onebox.sweep.job import Value

log = logging.getLogger(__name__)

USER_ERRORS = (BadInput, HydraException, OmegaConfBaseException)

# Hydra's plugins of engines, and what installs them.
EXTRAS = {
    "hydra_joblib_launcher": "joblib",
    "hydra_ray_launcher": "ray",
    "hydra_submitit_launcher": "slurm",
}
# conf/hydra/launcher has the names that users know, which are those of the plugins' schemas too. Also in workers.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
RESULT_TAGS = [
    f"{split}/{name}"
    for split in ("val", "best", "test")
    for name in ("joint_acc", "acc", "iou", "loc_acc", "loc_l1", "loss")
]


def main() -> None:
    """The console command. Exit codes: 0 done, 1 a fault, 2 bad input, 75 stopped by SIGTERM, 130 by hand."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(), end="")
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    try:
        register_plugins()
        sys.argv[1:] = [new for argument in sys.argv[1:] for new in _stored_arguments(argument)]
        check_options(sys.argv[1:])
        _app()
    except USER_ERRORS as error:
        _exit_with(error)
    except OSError as error:
        if error.filename is None:
            raise
        _exit_with(BadInput(f"{error.filename}: {error.strerror}; free it, or choose another hydra.run.dir"))
    except RuntimeError as error:
        unknown = re.search(r"Unknown plugin class : 'hydra_plugins\.(\w+)", str(error))
        if unknown is None or unknown[1] not in EXTRAS:
            raise
        _exit_with(BadInput(f'{unknown[1]} is not installed: pip install "onebox[{EXTRAS[unknown[1]]}]"'))
    except (RankFailed, SweepFailed) as error:
        print(f"onebox-train: {error}", file=sys.stderr)
        sys.exit(EXIT_FAULT)
    except Preempted as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt as error:
        print(str(error) or "stopped by hand", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


_stored_in: list[
    Path
] = []  # the file of a run directory that the arguments of this process come from, with resume=FOLDER


class ClaimDirectory(HydraCallback):
    """Stops before Hydra writes into a directory that this run may not have, so that nothing in it is lost."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once before a single run."""
        from onebox import ranks
        from onebox.runs.claim import claim
        from onebox.runs.composition import without_hydra
        from onebox.runs.fingerprint import fingerprints
        from onebox.trust import check_stored, stored_in

        number = ranks.rank(config.trainer)
        if number is not None and ranks.is_served(number):
            ranks.prepare(config, number)
            return
        folder = Path(config.hydra.run.dir)  # not of the copy, whose time stamp would be another
        cfg = without_hydra(config, run_dir=str(folder))
        try:
            for path in stored_in:
                check_stored(OmegaConf.to_container(cfg, resolve=True), folder, path, cfg.trust)
            claim(folder, fingerprint=fingerprints(cfg)["fingerprint"], resume=cfg.resume)
        except USER_ERRORS as error:
            _exit_with(error)  # Hydra turns other exceptions of a callback into warnings
        except OSError:
            return  # the folder cannot be made, which Hydra finds as well


def task(cfg: DictConfig) -> Value:
    """What Hydra calls, in a sweep once a job."""
    from onebox.runs.preemption import submitit_requeues

    try:
        with submitit_requeues():
            return train(cfg)
    except USER_ERRORS as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # the other jobs go on
        _exit_with(error)  # here, as Hydra would print a line of its own first


# Launchers pickle `task` by its name, so it is not decorated.
_app = hydra.main(version_base="1.3", config_path="pkg://onebox.conf", config_name="train")(task)


def register_plugins() -> None:
    """Make our launcher and sweepers known to Hydra, which does not find them in an editable install."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.plugin import Plugin

    import hydra_plugins.onebox as ours

    for found in vars(ours).values():
        if isinstance(found, type) and issubclass(found, Plugin) and found.__module__ == ours.__name__:
            Plugins.instance().register(found)


def job_fingerprint(root: DictConfig) -> str:
    """The name of a sweep's folder for the job that Hydra has composed."""
    from onebox.runs.composition import without_hydra
    from onebox.runs.fingerprint import fingerprints

    # run_dir depends on what is asked for, and never counts.
    return fingerprints(without_hydra(root, run_dir=""))["fingerprint"]


OmegaConf.register_new_resolver("fingerprint", lambda *, _root_: job_fingerprint(_root_), replace=True)


def train(cfg: DictConfig) -> Value:
    """Train and test one experiment, and leave a run directory at `cfg.run_dir`.

    In a sweep, a run that is complete there is kept, and one that did not end goes on.

    Returns:
        The value of `cfg.objective` in the best epoch, which a sweep optimises; None when the fit did not log it.

    Raises:
        BadInput: config or data cannot be used; run.json says why.
    """
    from onebox import ranks
    from onebox.runs.claim import claim, release
    from onebox.runs.composition import run_facts
    from onebox.runs.hparams import session
    from onebox.runs.preemption import sigterm_raises
    from onebox.runs.provenance import source_fingerprint
    from onebox.runs.record import RankRecord, RunRecord
    from onebox.sweep.job import Done, stored_objective, take

    run_dir = Path(os.path.relpath(cfg.run_dir))
    facts = run_facts(cfg, HydraConfig.get())
    number = ranks.rank(cfg.trainer)
    if number is not None and ranks.is_served(number):
        with ranks.as_rank(number), sigterm_raises():
            use_threads(cfg, capped=True)
            return _train(cfg, run_dir, RankRecord(run_dir, number), facts["fingerprint"])
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    if in_sweep:
        try:
            earlier = take(
                run_dir,
                rerun=cfg.rerun,
                source=source_fingerprint(),
                data=lambda: read_data(cfg).fingerprint(),
                objective=_objective(cfg),
            )
        except Done as done:
            return done.value
    else:
        earlier = claim(run_dir, fingerprint=facts["fingerprint"], resume=cfg.resume)
    record = RunRecord(run_dir, earlier, **facts)
    try:
        hparams, varied = _hparams(cfg, facts, run_dir.parent if in_sweep else None)
        with sigterm_raises(), record:
            validate(cfg)  # before tensorboard is imported, which takes longer
            with session(_tensorboard_folder(cfg), hparams, varied, RESULT_TAGS):
                if number is None and (count := ranks.num_ranks(cfg.trainer)) > 1:
                    try:
                        ranks.run_ranks(run_dir, count)
                    finally:
                        record.reread()
                    return stored_objective(run_dir, _objective(cfg))
                use_threads(cfg, capped=in_sweep)
                return _train(cfg, run_dir, record, facts["fingerprint"])
    except (Preempted, KeyboardInterrupt) as error:
        stored = (run_dir / "checkpoints" / "last.ckpt").exists()
        then = "goes on" if stored else "begins anew, as nothing was stored yet"
        error.args = (f"{str(error) or 'stopped by hand'}; onebox-train resume={run_dir} {then}",)
        raise
    finally:
        release(run_dir)


def _objective(cfg: DictConfig) -> str | list[str]:
    return cfg.objective if isinstance(cfg.objective, str) else list(cfg.objective)


def _train(cfg: DictConfig, run_dir: Path, record: RunRecord | RankRecord, fingerprint: str) -> Value:
    import lightning.pytorch as L

    from onebox.callbacks.balance import Balance
    from onebox.callbacks.early_stopping import stopped_early
    from onebox.callbacks.epoch_csv import EpochCsvLogger
    from onebox.callbacks.freeze import Freeze
    from onebox.callbacks.same_on_all_ranks import SameOnAllRanks
    from onebox.files import write_json, write_text
    from onebox.frozen_features import store_features
    from onebox.model.weights import weights_hash
    from onebox.runs.checkpoint import load_weights
    from onebox.runs.provenance import hardware
    from onebox.runs.reading.report import write_report
    from onebox.runs.results import best_row, floor_metrics, metrics_json, print_results
    from onebox.runs.samples import write_samples
    from onebox.sweep.job import value_of

    quieten()
    L.seed_everything(cfg.seed, verbose=False)
    data = read_data(cfg)
    if cfg.monitor.startswith("val/") and not len(data.indexes["val"]):
        raise BadInput(
            f"monitor={cfg.monitor} but there is no validation image; name a list in data.splits.val, give "
            "data.holdout.val a share of the training images, or set monitor=train/loss monitor_mode=min"
        )
    _check_data(cfg, data)
    fill_in(cfg, num_classes=data.num_classes, class_counts=data.class_counts)
    if record.writes:
        write_text(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    # All of it is built before images are decoded, which may take minutes: a mistake is found at once.
    counts = data.class_counts
    module = build_module(cfg, data)
    facts: dict[str, Any] = {"fingerprint": fingerprint, "class_names": data.class_names}
    trainer = build_trainer(cfg, facts, module)
    check_stages(trainer, module)
    unread = unread_levels(cfg, module)
    if unread is not None:
        log.warning(unread)
    data.decode()
    if data.class_counts != counts:  # data.on_error=skip has left images out
        fill_in(cfg, num_classes=data.num_classes, class_counts=data.class_counts)
        L.seed_everything(cfg.seed, verbose=False)
        module = build_module(cfg, data)
        if record.writes:
            write_text(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    if record.writes:
        write_samples(run_dir, data.indexes, data.class_names)
    facts |= {"data_fingerprint": data.fingerprint(), "config": OmegaConf.to_container(cfg, resolve=True)}
    checkpoint = _checkpoint(cfg, run_dir, facts) if record.goes_on else None
    if trainer.world_size > 1:
        common = {"fingerprint": fingerprint, "run_dir": run_dir, "checkpoint": checkpoint, **data.fingerprint()}
        same = SameOnAllRanks({name: str(value) for name, value in common.items()})
        trainer.callbacks.append(same)  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    rows = next(logger.rows for logger in trainer.loggers if isinstance(logger, EpochCsvLogger))
    record.add(
        hardware=hardware(),
        data={split: str(index) for split, index in data.indexes.items()},
        data_fingerprint=data.fingerprint(),
        weights_fingerprint=module.localizer.backbone.weights_fingerprint,
        skipped=data.skipped,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )

    store_features(
        trainer,
        module,
        data,
        checkpoint=checkpoint,
        backbone=facts["config"]["model"]["backbone"],
        augment=facts["config"]["augment"],
    )
    run_trainer(trainer, trainer.fit, module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    record.add(final_weights=weights_hash(module))
    stopped = stopped_early(trainer, module)
    if stopped is not None:
        log.info(stopped)
        record.add(stopped_early=stopped)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # as above
        if isinstance(callback, Freeze):
            record.add(trained_parameters=callback.num_trained(module, trainer.current_epoch))
        if isinstance(callback, Balance):
            record.add(balance=callback.summary(module))
    best = best_row(rows, cfg.monitor, cfg.monitor_mode)
    test: dict[str, float] = {}
    floor: dict[str, float] = {}
    if len(data.indexes["test"]):
        if (run_dir / "checkpoints" / "best.ckpt").exists():  # callbacks.checkpoint_best=null: the last weights
            # Not by Lightning, which under averaging would test the weights that were not averaged.
            load_weights(module, run_dir / "checkpoints" / "best.ckpt")
        run_trainer(trainer, trainer.test, module, datamodule=data, verbose=False)
        test = {tag.removeprefix("test/"): value.item() for tag, value in trainer.callback_metrics.items()}
        num_tested = int(sum(row["images"] for row in module.test_per_class.values()))
        floor = floor_metrics(data.indexes["train"], data.indexes["test"], data.class_names, num_tested)
    shown = {tag: best.get(tag.replace("best/", "val/")) for tag in RESULT_TAGS if tag.startswith("best/")}
    for logger in trainer.loggers:
        logger.log_metrics({tag: value for tag, value in shown.items() if value is not None}, step=trainer.global_step)
        logger.finalize("success")
    if not record.writes:
        return None

    write_json(run_dir / "metrics.json", metrics_json(rows, best, test, floor, module.test_per_class))
    write_report(run_dir)
    print_results(run_dir)
    return value_of(best, _objective(cfg))


def _check_data(cfg: DictConfig, data: VocDataModule) -> None:
    """Raises BadInput when `cfg.data_fingerprint` is of other data; parts that it does not name may be any."""
    wanted = cfg.get("data_fingerprint") or {}
    found = data.fingerprint() if wanted else {}
    others = [f"{part} is {found.get(part)}, not {value}" for part, value in wanted.items() if found.get(part) != value]
    if others:
        raise BadInput(
            f"the data are not those of data_fingerprint ({', '.join(others)}); bring them back, or accept these with "
            "data_fingerprint=null (onebox reproduce --force)"
        )


def _checkpoint(cfg: DictConfig, run_dir: Path, facts: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a run goes on from, None for its beginning.

    Raises:
        BadInput: the data are not those that it was begun with.
    """
    from onebox.runs.checkpoint import newest_checkpoint

    found = newest_checkpoint(run_dir / "checkpoints", fingerprint=facts["fingerprint"])
    start: dict[str, Any] = {"global_step": 0, "epoch": 0, "onebox": facts}
    path, content = found or (None, start)
    begun, now = content["onebox"]["data_fingerprint"], facts["data_fingerprint"]
    changed = [part for part in now if begun.get(part) != now[part]]
    if changed:
        raise BadInput(
            f"{run_dir}: the data have changed since the run was begun ({', '.join(changed)}); bring them back, or "
            "choose another hydra.run.dir"
        )
    log.info("goes on after %s epochs, %s steps", content["epoch"], content["global_step"])
    return path


def _stored_arguments(argument: str) -> Iterator[str]:
    """For `resume=FOLDER` the arguments that the run in it was started with, for any other argument itself.

    Raises:
        BadInput: there is no run.
    """
    key, _, value = argument.partition("=")
    if key != "resume" or value in ("auto", "never", ""):
        yield argument
        return
    from onebox.trust import stored_file, stored_in, stored_overrides

    path = stored_file(Path(value), ".hydra/overrides.yaml")
    try:
        overrides: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError) as error:
        raise BadInput(f"{path}: cannot be read; resume=FOLDER takes the folder of a run") from error
    folder = value.replace("\\", "\\\\").replace("'", "\\'")
    stored_in.append(path)
    # A job of a sweep is resumed alone.
    yield from [*stored_overrides(Path(value), overrides), f"hydra.run.dir='{folder}'", "hydra.mode=RUN"]


def _hparams(
    cfg: DictConfig, facts: Mapping[str, Any], sweep: Path | None
) -> tuple[dict[str, bool | float | str], set[str]]:
    """What the HPARAMS tab shows, and what of it first.

    These are the groups and keys of `cfg.hparams`, and what was overridden by hand. In the folder of a sweep also what
    other jobs override, as TensorBoard takes the list of keys from any one of them.
    """
    from onebox.sweep.plan_file import read_plan

    planned = [job["overrides"] for job in read_plan(sweep).get("jobs", [])] if sweep is not None else []
    overrides = dict.fromkeys([*facts["overrides"], *(text for job in planned for text in job)])
    by_hand = {text: text.partition("=")[0].lstrip("+~") for text in overrides}
    varied = {key for text, key in by_hand.items() if not all(text in job for job in planned)} or {*by_hand.values()}
    values = {key: facts["choices"].get(key) or OmegaConf.select(cfg, key) for key in [*cfg.hparams, *by_hand.values()]}
    plain = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
    others = {key: "null" if values[key] is None else str(values[key]) for key in by_hand.values()}
    return others | plain, varied


def _tensorboard_folder(cfg: DictConfig) -> Path | None:
    """Where the events of a run go; None without TensorBoard, and in all but the first process of several."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    for part in (cfg.logger or {}).values():
        if part and part["_target_"].endswith("TensorBoardLogger"):
            return Path(part.save_dir, part.name or "", part.version or "")
    return None


def _exit_with(error: Exception) -> NoReturn:
    """Print one line and leave with the exit code of bad input; with ONEBOX_DEBUG=1 show the traceback."""
    if os.environ.get("ONEBOX_DEBUG") == "1":
        raise error
    # Loader workers send the whole traceback as the message.
    text = explain(error, sys.argv[1:]).rpartition("onebox.errors.BadInput: ")[2]
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    print(f"onebox-train: {line}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
