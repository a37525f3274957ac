"""`onebox lr-find`: the learning-rate range test (arXiv:1506.01186, section 3.3) on an experiment."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from onebox.errors import check, printable

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig

    from onebox.callbacks.lr_range import LrRange


def lr_find(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The experiment, as onebox-train takes it.")
    ] = None,
    min_lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    max_lr: Annotated[
        float, typer.Option(help="Learning rate of the last step, which is not reached when the loss diverges.")
    ] = 1.0,
    steps: Annotated[int, typer.Option(min=20, help="How many steps lead from the one to the other.")] = 100,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file that the curve is written to.", dir_okay=False)
    ] = Path("lr_find.png"),
) -> None:
    """Train an experiment for some steps while the learning rate grows, and suggest one.

    Prints an override to paste and draws the curve. Each part keeps its share of the rate (param_groups), freezing
    follows its epochs, schedules are left out. Nothing else is written but what data.cache_dir keeps.

    \b
    Examples
      onebox lr-find experiment=baseline
      onebox lr-find experiment=transfer model/loc_head=spatial --steps 200 --output curve.png
    """
    check(0 < min_lr < max_lr, f"--min-lr {min_lr:g} must be above 0 and below --max-lr {max_lr:g}")
    check(output.absolute().parent.is_dir(), f"{output}: no such folder; create it, or choose another --output")
    check(output.suffix.lower() == ".png", f"{output}: the curve is a PNG; choose an --output that ends in .png")
    from onebox.validation import told_as_bad_input

    with TemporaryDirectory() as folder:
        cfg = _compose(overrides or [], Path(folder))
        with told_as_bad_input():
            check(cfg.optimizer.lr > 0, "optimizer.lr is 0, so parts of the network have no share of it; set it to 1")
            suggested = range_test(cfg, min_lr, max_lr, steps, output)
    print(f"curve  {printable(str(output))}\n\noptimizer.lr={suggested:.1e}")


def _compose(overrides: list[str], run_dir: Path) -> "DictConfig":
    """The config of an experiment without what watches, keeps or schedules."""
    from omegaconf import OmegaConf, open_dict

    from onebox.api import compose
    from onebox.overrides import as_text
    from onebox.validation import told_as_bad_input

    cfg = compose([*overrides, as_text("hydra.run.dir", str(run_dir))])
    with told_as_bad_input(overrides):
        OmegaConf.resolve(cfg)
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
    from omegaconf import open_dict

    from onebox.build import build_module, build_trainer, fill_in, read_data
    from onebox.callbacks.lr_range import LrRange
    from onebox.lightning_setup import lightnings_errors, quieten, use_threads

    quieten()
    use_threads(cfg, capped=False)
    L.seed_everything(cfg.seed, verbose=False)
    data = read_data(cfg)
    data.decode()
    fill_in(cfg, data)
    with open_dict(cfg):
        cfg.trainer.max_epochs = -1  # as many as the steps take
        cfg.trainer.limit_val_batches = 0
    test = LrRange(min_lr=min_lr, max_lr=max_lr, num_steps=steps, lr=cfg.optimizer.lr)
    trainer = build_trainer(cfg)
    trainer.callbacks.append(test)  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    module = build_module(cfg, data)
    with lightnings_errors(trainer):
        trainer.fit(module, datamodule=data)
    smoothed, suggested = test.curve()
    _draw(test, smoothed, suggested, picture)
    return suggested


def _draw(test: "LrRange", smoothed: "np.ndarray", suggested: float, picture: Path) -> None:
    from matplotlib.figure import Figure

    from onebox.files import replacing

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, ".", color="#B8C0C8", markersize=4, label="loss of a batch")
    axes.plot(test.rates, smoothed, color="#0072B2", linewidth=2, label="mean of neighbouring steps")
    axes.axvline(suggested, color="#D55E00", label=f"falls fastest: {suggested:.2g}")
    axes.set(xscale="log", xlabel="optimizer.lr", ylabel="train/loss")
    low, high = smoothed.min(), smoothed[: smoothed.argmin() + 1].max()
    axes.set_ylim(low - 0.2 * (high - low), high + 0.5 * (high - low))  # where the loss diverges, it leaves the picture
    axes.legend(frameon=False)
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png")
