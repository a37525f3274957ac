"""From config to objects: data, network, trainer. Only functions import what is heavy."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import importlib.util
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from hydra._internal.utils import _locate
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from onebox.errors import BadInput, check
from onebox.lightning_setup import quieten
from onebox.runs.fingerprint import with_new_names
from onebox.validation import validate

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from onebox.data.datamodule import VocDataModule
    from onebox.module import LocalizationModule
    from onebox.runs.record import RunRecord

log = logging.getLogger(__name__)

STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward"),
    *("on_after_backward", "on_before_optimizer_step", "on_train_batch_end"),
)
DDP, DDP_UNUSED = "ddp", "ddp_find_unused_parameters_true"  # the second waits for no gradient that never comes


def build_job(config: dict[str, Any], known: dict[str, Any]) -> dict[str, str]:
    """Build all that a job of a sweep is made of, so that a mistake is found before the first one starts.

    `known` keeps the data that earlier jobs have read, by what describes them, and receives those of this job, whose
    fingerprint is returned.

    Raises:
        BadInput: something is wrong.
    """
    quieten()
    cfg = OmegaConf.create(config)
    validate(cfg)
    if OmegaConf.select(cfg, "extend.run"):
        from onebox.runs.extension import check_changes, last_checkpoint

        check_changes(last_checkpoint(Path(cfg.extend.run)), config)
    described = repr((config["data"], config["augment"]))
    if described not in known:
        known[described] = read_data(cfg)
    data: VocDataModule = known[described]
    fill_in(cfg, data)
    build_trainer(cfg, module=build_module(cfg, data))
    return data.fingerprint()


def rehearse(cfg: DictConfig) -> None:
    """Build all but the data a first time, as if they had two classes: to read annotations may take minutes.

    Raises:
        BadInput: something is wrong.
    """
    quieten()
    trial = copy.deepcopy(cfg)
    data: Any = SimpleNamespace(num_classes=2, class_counts=(1, 1), class_names=["a", "b"])
    fill_in(trial, data)
    build_data(trial)
    build_module(trial, data)
    build_trainer(trial)


class Built(NamedTuple):
    """What an experiment is made of, and the checkpoint that it is resumed from."""

    data: VocDataModule
    module: LocalizationModule
    trainer: Trainer
    checkpoint: Path | None


def build(cfg: DictConfig, run: RunRecord, fingerprint: str) -> Built:
    """Read the data, build all that an experiment is made of, and record it.

    Raises:
        BadInput: config or data cannot be used, or the data are not those that the run was begun with.
    """
    import lightning.pytorch as L

    from onebox.runs.checkpoint import begin_with, checkpoint_to_resume
    from onebox.runs.provenance import hardware
    from onebox.runs.results import write_samples

    quieten()
    L.seed_everything(cfg.seed, verbose=False)
    data = read_data(cfg)
    _check_data(cfg, data)
    # All of it is built before images are decoded, which may take minutes: a mistake is found at once.
    counts = data.class_counts
    module = _filled_in(cfg, data, run)
    facts: dict[str, Any] = {"fingerprint": fingerprint, "class_names": data.class_names}
    trainer = build_trainer(cfg, facts, module)
    data.decode()
    if data.class_counts != counts:  # data.on_error=skip has left images out
        L.seed_everything(cfg.seed, verbose=False)
        module = _filled_in(cfg, data, run)
    if run.writes:
        write_samples(run.folder, data.indexes, data.class_names)
    facts |= {"data_fingerprint": data.fingerprint(), "config": OmegaConf.to_container(cfg, resolve=True)}
    is_extended, init = OmegaConf.select(cfg, "extend.run"), OmegaConf.select(cfg, "init.run")
    checkpoint = checkpoint_to_resume(run.folder, facts) if run.is_resumed or is_extended else None
    damaged = f"{run.folder}: extends another run, and none of its checkpoints can be read; remove it and begin again"
    check(checkpoint is not None or not is_extended, damaged)
    if init and run.is_resumed and checkpoint is None:
        begin_with(module.localizer, cfg.init, data.class_names)
    run.add(
        hardware=hardware(),
        data={split: str(index) for split, index in data.indexes.items()},
        data_fingerprint=data.fingerprint(),
        data_notes=data.notes,
        weights_fingerprint=cfg.init.weights if init else module.localizer.backbone.weights_fingerprint,
        **_parent(cfg),
        skipped=data.skipped,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
    return Built(data, module, trainer, checkpoint)


def _parent(cfg: DictConfig) -> dict[str, str]:
    """What run.json says of the run that this one begins from: where it is, its fingerprint, and how."""
    from onebox.runs.reading.find import read_run

    for how in ("extend", "init", "like"):
        if folder := OmegaConf.select(cfg, f"{how}.run"):
            run = read_run(Path(folder))
            known = {"parent_fingerprint": run.record["fingerprint"]} if run else {}
            return {"parent": folder, "parent_how": how, **known}
    return {}


def _filled_in(cfg: DictConfig, data: VocDataModule, run: RunRecord) -> LocalizationModule:
    """The module of a config, once what only the data know is filled in and config.yaml is written."""
    from onebox.files import write_text

    fill_in(cfg, data)
    if run.writes:
        write_text(run.folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    module = build_module(cfg, data)
    has_checkpoint = run.is_resumed or OmegaConf.select(cfg, "extend.run")  # with its weights, or see `build`
    if OmegaConf.select(cfg, "init.run") and not has_checkpoint:
        from onebox.runs.checkpoint import begin_with

        begin_with(module.localizer, cfg.init, data.class_names)
    return module


def _check_data(cfg: DictConfig, data: VocDataModule) -> None:
    """Refuse data without images to validate on, and data that differ from a part of `cfg.data_fingerprint`."""
    check(
        not cfg.monitor.startswith("val/") or len(data.indexes["val"]) > 0,
        f"monitor={cfg.monitor} but there is no validation image; name a list in data.splits.val, give "
        "data.holdout.val a share of the training images, or set monitor=train/loss monitor_mode=min",
    )
    wanted = cfg.get("data_fingerprint") or {}
    found = data.fingerprint() if wanted else {}
    others = [f"{part} is {found.get(part)}, not {value}" for part, value in wanted.items() if found.get(part) != value]
    check(
        not others,
        f"the data are not those of data_fingerprint ({', '.join(others)}); restore them, or accept these with "
        "data_fingerprint=null (onebox reproduce --force)",
    )


def fill_in(cfg: DictConfig, data: VocDataModule) -> None:
    """Set what only the data know."""
    cfg.model.num_classes = data.num_classes
    criterion = OmegaConf.select(cfg, "loss.cls.criterion")
    if criterion is not None and "class_counts" in set(criterion):
        criterion.class_counts = list(data.class_counts)


def _made(config: DictConfig, **arguments: Any) -> Any:
    missing = sorted(OmegaConf.missing_keys(config))
    check(not missing, f"{', '.join(missing)} must be given (KEY=VALUE)")
    plain = OmegaConf.to_container(config, resolve=True)
    renamed = with_new_names(plain)  # a private config may have old names; others keep their place for messages
    try:
        return hydra.utils.instantiate(config if renamed == plain else renamed, _convert_="all", **arguments)
    except InstantiationException as error:
        found = re.match(r"Error locating target '([^']+)'.*full_key: ?(\S*)", str(error), re.DOTALL)
        if found is None:
            raise
        raise BadInput(f"{found[2] or config._get_full_key('')}._target_={found[1]}: {_not_found(found[1])}") from error


def _not_found(target: str) -> str:
    """Why nothing is called `target`, and what to do."""
    package = target.partition(".")[0]
    if package == "__main__":
        return "what a cell or a script defines has no file to be imported from; move it into a module of your own"
    try:
        if importlib.util.find_spec(package) is None:
            return (
                f"no package {package} is found; if it is yours, name the folder that holds it: "
                f"PYTHONPATH=/path/to/folder onebox-train ..., or install it (pip install -e)"
            )
        _locate(target)
    except Exception as error:  # whatever importing it raises
        return str(error).splitlines()[0]
    return "cannot be called"


def build_data(cfg: DictConfig) -> VocDataModule:
    """The data module that `cfg.data` and `cfg.augment` describe."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # albumentations only warns of an argument that it does not know
        transform = _made(cfg.augment)
    data: VocDataModule = _made(cfg.data, transform=transform)
    return data


def read_data(cfg: DictConfig) -> VocDataModule:
    """The data module of `build_data`, with its annotations read."""
    data = build_data(cfg)
    data.prepare_data()
    data.setup()
    return data


def build_module(cfg: DictConfig, data: VocDataModule) -> LocalizationModule:
    """The network, its loss and its optimizer."""
    from onebox.module import LocalizationModule

    module = LocalizationModule(
        localizer=_made(cfg.model),
        loss=_made(cfg.loss),
        optimizer=_made(cfg.optimizer),
        param_groups=_made(cfg.param_groups),
        scheduler=_made(cfg.scheduler) if cfg.get("scheduler") else None,
        class_names=data.class_names,
        seed=cfg.seed,
        log_every_n_steps=cfg.trainer.log_every_n_steps,
    )
    module.begins_at = OmegaConf.select(cfg, "extend.epochs") or 0
    _check_map(cfg, module)
    # Both are made from partials when the fit starts; a wrong value is to be found now.
    try:
        optimizer = module.param_groups.optimizer(module.make_optimizer, module.localizer, module.loss)
        if module.make_scheduler is not None:
            module.make_scheduler(optimizer, 100)
    except (TypeError, ValueError) as error:
        given = {key: value for group in ("optimizer", "scheduler") for key, value in (cfg.get(group) or {}).items()}
        raise BadInput(f"optimizer or scheduler: {error}; correct one of {given}") from error
    return module


def _check_map(cfg: DictConfig, module: LocalizationModule) -> None:
    """Refuse a localisation head that looks for the box on a map of one row or column."""
    head, finest = module.localizer.loc_head, module.localizer.backbone.feature_shape.maps[0]
    or_else = ", or name a finer level in model.backbone.levels" if cfg.model.backbone.get("levels") else ""
    check(
        not getattr(head, "reads_maps", False) or min(finest.height, finest.width) > 1,
        f"model.loc_head: {type(head).__name__} looks for the box on a map, but the finest at "
        f"image_size={cfg.image_size} is {finest.height}x{finest.width}; set a larger image_size{or_else}",
    )


def build_trainer(
    cfg: DictConfig, facts: Mapping[str, Any] | None = None, module: LocalizationModule | None = None
) -> Trainer:
    """The trainer with all callbacks and loggers that are not null; `facts` go into each checkpoint.

    With `module`, ranks do not wait for the gradients of parameters that get none, and a stage to be unfrozen that its
    backbone does not have is refused.
    """
    import torch.utils.deterministic
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar

    from onebox.callbacks.epoch_csv import EpochCsvLogger
    from onebox.callbacks.freeze import Freeze
    from onebox.runs.checkpoint import CheckpointFacts

    callbacks = [_made(part) for part in cfg.callbacks.values() if part is not None]
    loggers = [_made(part) for part in cfg.logger.values() if part is not None]
    for callback in callbacks:
        if module and isinstance(callback, Freeze):
            callback.frozen(module.localizer.backbone.stages, 0)
    if not any(isinstance(logger, EpochCsvLogger) for logger in loggers):
        loggers.append(EpochCsvLogger(path=None))  # metrics.json is made from its rows
    trainer: Trainer = _made(
        cfg.trainer,
        callbacks=[*callbacks, CheckpointFacts(facts or {})],
        logger=loggers,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),  # or it adds one
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        strategy=DDP_UNUSED if module and _waits_in_vain(cfg, module) else cfg.trainer.strategy,
    )
    _silence_empty_hooks(trainer, module)
    # By default glibc gives large blocks back to the system, which clears them again for the next step: a seventh of
    # the tiny CNN's time. The options are M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        for option in (-3, -1):
            ctypes.CDLL(None).mallopt(option, 1 << 30)
    # Part of trainer.deterministic: writes NaN into all new memory, in case something reads it. Nothing here does.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch hides it
    return trainer


def _silence_empty_hooks(trainer: Any, module: LocalizationModule | None) -> None:
    """Keep Lightning from calling, in each step, the hooks that do nothing: what cannot be called it passes over.

    Nor is a generator made for each hook, as there is no profiler. On the objects, not their classes, so that a hook of
    a researcher's own class may call its parent's.
    """
    from lightning.pytorch import Callback, LightningModule

    nothing = contextlib.nullcontext()
    parts = [(part, Callback) for part in trainer.callbacks] + ([(module, LightningModule)] if module else [])
    for part, base in parts:
        for hook in STEP_HOOKS:
            if getattr(type(part), hook) is getattr(base, hook):
                setattr(part, hook, None)
    trainer.profiler.profile = lambda action_name: nothing


def _waits_in_vain(cfg: DictConfig, module: LocalizationModule) -> bool:
    """Whether ranks would wait for a gradient that never comes: of a term of weight 0, or of an unread layer."""
    import torch

    if cfg.trainer.strategy != DDP:
        return False
    trial = copy.deepcopy(module.localizer).eval()
    with torch.random.fork_rng(devices=[]):
        preds = trial(torch.zeros(1, 3, cfg.image_size, cfg.image_size))
    targets = trial.encode(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), torch.zeros(1, dtype=torch.int64))
    copy.deepcopy(module.loss).train()(preds, targets)[0].backward()
    return any(parameter.requires_grad and parameter.grad is None for parameter in trial.parameters())
