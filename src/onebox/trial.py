"""A few training steps of an experiment, of which nothing is kept: no run directory, no logs, no checkpoints."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from onebox.spelling import told_as_bad_input

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from onebox.data.datamodule import VocDataModule
    from onebox.data.dataset import Batch
    from onebox.module import LocalizationModule


def compose_trial(overrides: Sequence[str], run_dir: Path, *, progress: bool) -> DictConfig:
    """The config of an experiment, without what watches and keeps, and at the optimizer's own learning rate.

    Args:
        overrides: as onebox-train takes them.
        run_dir: stands where a run's directory would.
        progress: whether a progress bar is shown.

    Raises:
        BadInput: there is no such experiment.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.hydra_config import HydraConfig

    from onebox.validation import validate

    with told_as_bad_input(overrides), initialize_config_module("onebox.conf", version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, f"run_dir='{run_dir}'"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
        validate(cfg)
    with open_dict(cfg):
        kept = ("freeze", "progress") if progress else ("freeze",)  # the other callbacks watch or keep
        cfg.callbacks = {name: part for name, part in (cfg.callbacks or {}).items() if name in kept}
        cfg.logger = {}
        cfg.scheduler = None
        cfg.trainer.limit_val_batches = 0
    return cfg


@told_as_bad_input()
def run_trial(cfg: DictConfig, num_steps: int, callbacks: Sequence["Callback"] = ()) -> "LocalizationModule":
    """Train for some steps, all in the first epoch of the schedules: what is frozen there is frozen throughout.

    Args:
        cfg: of `compose_trial`.
        num_steps: epochs follow one another as often as that takes.
        callbacks: more of them.

    Raises:
        BadInput: config or data cannot be used.
    """
    import lightning.pytorch as L

    from onebox.build import build_module, build_trainer, fill_in, quieten, read_data, run_trainer, use_threads
    from onebox.frozen_features import store_features

    quieten()
    use_threads(cfg, capped=False)
    L.seed_everything(cfg.seed, verbose=False)
    data = read_data(cfg)
    data.decode()
    fill_in(cfg, num_classes=data.num_classes, class_counts=data.class_counts)
    with open_dict(cfg):
        cfg.trainer.limit_train_batches = cfg.trainer.max_steps = num_steps
        cfg.trainer.accumulate_grad_batches = 1  # a step is a batch
    with TemporaryDirectory() as folder:  # Lightning wants one
        cfg.trainer.default_root_dir = folder
        module = build_module(cfg, data)
        trainer = build_trainer(cfg)
        trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        config: Any = OmegaConf.to_container(cfg)
        store_features(
            trainer, module, data, checkpoint=None, backbone=config["model"]["backbone"], augment=config["augment"]
        )
        run_trainer(trainer, trainer.fit, module, train_dataloaders=_Endless(data))
    return module


class _Endless:
    """The batches of one epoch after the other."""

    def __init__(self, data: "VocDataModule") -> None:
        self._loader = data.train_dataloader()

    def __iter__(self) -> Iterator["Batch"]:
        for epoch in itertools.count():
            self._loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # it is an EpochSampler
            yield from self._loader
