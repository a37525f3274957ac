"""`onebox lr-find`: Lightning's learning-rate range test (arXiv:1506.01186, section 3.3) on an experiment."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebox.errors import BadInput, check

if TYPE_CHECKING:
    from omegaconf import DictConfig


def lr_find(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The experiment, as onebox-train takes it.")
    ] = None,
    min_lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    max_lr: Annotated[float, typer.Option(help="Of the last step, which is not reached when the loss diverges.")] = 1.0,
    steps: Annotated[int, typer.Option(min=20, help="How many steps from the one to the other.")] = 100,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the curve goes.", dir_okay=False)] = Path(
        "lr_find.png"
    ),
) -> None:
    """Train an experiment for some steps while the learning rate grows, and suggest one.

    Prints an override to paste and draws the curve. All parts have the same rate, what is frozen in the first epoch
    stays frozen, schedules are left out. Nothing else is written but what data.cache_dir keeps.

    \b
    Examples
      onebox lr-find experiment=baseline
      onebox lr-find experiment=transfer model/loc_head=spatial --steps 200 --output curve.png
    """
    check(0 < min_lr < max_lr, f"--min-lr {min_lr:g} must be above 0 and below --max-lr {max_lr:g}")
    check(output.absolute().parent.is_dir(), f"{output}: there is no such folder; make it, or choose another --output")
    check(output.suffix.lower() == ".png", f"{output}: the curve is a PNG; choose an --output that ends with .png")
    from onebox.validation import told_as_bad_input

    with TemporaryDirectory() as folder:
        cfg = _compose(overrides or [], Path(folder))
        with told_as_bad_input():
            suggested = range_test(cfg, min_lr, max_lr, steps, output)
    print(f"curve  {output}\n\noptimizer.lr={suggested:.1e}")


def _compose(overrides: list[str], run_dir: Path) -> "DictConfig":
    """The config of an experiment without what watches, keeps or schedules."""
    from hydra import compose, initialize_config_module
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    from onebox.validation import told_as_bad_input, validate

    with told_as_bad_input(overrides), initialize_config_module("onebox.conf", version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, f"run_dir='{run_dir}'"], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
        validate(cfg)
    with open_dict(cfg):
        kept = ("freeze", "progress") if sys.stdout.isatty() else ("freeze",)
        cfg.callbacks = {name: part for name, part in (cfg.callbacks or {}).items() if name in kept}
        cfg.logger, cfg.scheduler = {}, None
        cfg.trainer.accumulate_grad_batches = 1  # a step is a batch
    return cfg


def range_test(cfg: "DictConfig", min_lr: float, max_lr: float, steps: int, picture: Path) -> float:
    """Run the test, write its curve as PNG, and return the rate at which the loss falls fastest.

    Raises:
        BadInput: config or data cannot be used, or the loss never falls.
    """
    import lightning.pytorch as L
    from lightning.pytorch.tuner.tuning import Tuner

    from onebox.build import build_module, build_trainer, fill_in, quieten, read_data, run_trainer, use_threads
    from onebox.files import replacing

    quieten()
    use_threads(cfg, capped=False)
    L.seed_everything(cfg.seed, verbose=False)
    data = read_data(cfg)
    data.decode()
    fill_in(cfg, num_classes=data.num_classes, class_counts=data.class_counts)
    module = build_module(cfg, data)
    vars(module)["lr"] = cfg.optimizer.lr  # what Lightning asks for; the optimizer does not read it
    found: list[Any] = []
    tuner = Tuner(build_trainer(cfg))
    run_trainer(
        tuner._trainer,
        lambda: found.append(
            tuner.lr_find(
                module,
                datamodule=data,
                min_lr=min_lr,
                max_lr=max_lr,
                num_training=steps,
                attr_name="lr",
                update_attr=False,
            )
        ),
    )
    suggested = found[0].suggestion() if found[0] is not None else None
    if suggested is None:
        raise BadInput(
            f"the loss does not fall between learning rates of {min_lr:g} and {max_lr:g}; choose another --min-lr or "
            "--max-lr, or more --steps"
        )
    figure = found[0].plot(suggest=True)
    figure.axes[0].set(xlabel="optimizer.lr", ylabel="train/loss", title=f"the loss falls fastest at {suggested:.2g}")
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return float(suggested)
