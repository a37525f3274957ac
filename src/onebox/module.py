"""The LightningModule: one step, what is logged, and the optimizer."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from onebox.data.dataset import Batch
from onebox.errors import check
from onebox.losses import TERMS, WeightedLoss
from onebox.metrics import LocalizationMetrics, Results
from onebox.model.localizer import Localizer, Prediction, Target
from onebox.optim import ParamGroups, Plateau

log = logging.getLogger(__name__)

SEEDS_AT_ONCE = 16  # drawn one at a time, each takes five times as long
TRAIN_METRICS = ("acc", "iou", "loc_acc", "joint_acc")
MANY_FALLBACKS = 0.05  # share of an epoch's images; with more of them the augmentation is not what its file says

Step = tuple[dict[str, Tensor], Prediction, Target]  # losses by tag, detached; what was predicted; what was true


class Predicted(NamedTuple):
    """What a test predicted of N images, on the processor."""

    rows: Tensor  # [N] int64, of the split
    boxes: Tensor  # [N, 4] xyxy, in [0, 1] where inside the image
    classes: Tensor  # [N, 1 + min(5, K)] int64: the predicted one, then those of the highest logits
    probabilities: Tensor  # as classes


class Validated(NamedTuple):
    """What a validation epoch predicted of N images, on the processor."""

    rows: Tensor  # [N] int64, of the split
    boxes: Tensor  # [N, 4] xyxy, in [0, 1] where inside the image
    logits: Tensor  # [N, K]


class LocalizationModule(LightningModule):
    """Trains a `Localizer` on batches of one box and one class an image.

    Logging costs more than a small network's step, so a training step only keeps detached tensors. They are read
    every `log_every_n_steps` steps (tags `step/...`, means over those steps) and at the end of each epoch
    (`train/...`, means over its images); so are the batch's `shares`.

    The optimizer is made from `param_groups`, the schedule from the optimizer and the number of steps of the fit from
    epoch `begins_at` on; None keeps the learning rate fixed. `seed` is that of what is drawn in a training step
    (dropout).
    """

    begins_at = 0

    def __init__(
        self,
        *,
        localizer: Localizer,
        loss: WeightedLoss,
        optimizer: Callable[..., Optimizer],
        param_groups: ParamGroups,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None,
        class_names: Sequence[str],
        seed: int,
        log_every_n_steps: int,
    ) -> None:
        super().__init__()
        loss.check_fits(localizer.box_coder)
        self.localizer = localizer
        self.loss = loss
        self.make_optimizer = optimizer
        self.param_groups = param_groups
        self.make_scheduler = scheduler
        self.class_names = list(class_names)
        self.seed = seed
        self.log_every_n_steps = log_every_n_steps
        self.train_results = RunningResults(class_names)
        self.eval_results = RunningResults(class_names)
        self.stored_until: str | None = None  # the backbone's stage that gives what batches hold in the place of images
        self.test_per_class: dict[str, dict[str, float]] = {}  # filled by a test
        self.tested: Predicted | None = None  # by a test too
        self.validated: Validated | None = None  # by the last validation epoch
        self._batches: list[tuple[Tensor, ...]] = []  # not yet in one of them
        self._warned = False  # of many fallbacks, once a fit
        self.last_step: Step  # set by each training step
        self._pending: list[Step] = []  # not yet read
        self._is_new_schedule = False  # whether the checkpoint's run had another

    def forward(
        self, images: Tensor | tuple[Tensor, ...], labels: Tensor | None = None, after: str | None = None
    ) -> Prediction:
        return self.localizer(images, labels, after=after)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule, which is stepped with it or, `Plateau`, by `on_train_epoch_end`."""
        optimizer = self.param_groups.optimizer(self.make_optimizer, self.localizer, self.loss)
        if self.device.type == "cpu":
            # In each step Adam looks for a GPU that captures graphs, which takes .1 ms and has no switch.
            optimizer._accelerator_graph_capture_health_check = lambda: None  # type: ignore[method-assign]  # see above
        self._first_groups = optimizer.param_groups
        if self.make_scheduler is None:
            return optimizer
        num_steps, num_epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or 0
        if self.begins_at:  # a run that is extended has made the steps of the epochs before
            num_steps -= num_steps // num_epochs * self.begins_at
        scheduler = self.make_scheduler(optimizer, num_steps)
        how: dict[str, Any] = {"interval": "step"}
        if isinstance(scheduler, Plateau):
            # Never by Lightning, which passes over the end of an epoch that was resumed from a checkpoint.
            how = {"interval": "epoch", "frequency": sys.maxsize, "monitor": scheduler.monitor}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **how}}

    def on_train_start(self) -> None:
        """Take the optimizer's options from the config, where the checkpoint's are those of another schedule."""
        if self._is_new_schedule:
            for group, first in zip(self.trainer.optimizers[0].param_groups, self._first_groups, strict=True):
                group |= {key: value for key, value in first.items() if key != "params"}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make what the step draws a function of (seed, epoch, step, rank), whatever was drawn before."""
        block, place = divmod(batch_idx, SEEDS_AT_ONCE)
        seed = _step_seeds(self.seed, self.current_epoch, block, self.global_rank)[place]
        # torch.manual_seed takes a millisecond, as it keeps a stack trace for each kind of device that is not there.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        preds, targets, total, losses = self._predict(batch)
        self.last_step = losses, Prediction(*(column.detach() for column in preds)), targets
        # Not torch.tensor, as a GPU would be waited for while it is copied there.
        shares = {name: torch.full((), share, device=self.device) for name, share in batch.shares.items()}
        self._pending.append((losses | shares, *self.last_step[1:]))
        # The last steps are read when the epoch ends, so that nothing is logged of its end before validation.
        if (batch_idx + 1) % self.log_every_n_steps == 0 and not self.trainer.is_last_batch:
            self._read_steps(self.global_step)
        return total

    def on_train_epoch_end(self) -> None:
        self._read_steps(self.global_step - 1)
        losses, metrics = self.train_results.pop()
        self._log("train", losses | _balance(losses) | {name: metrics.micro[name] for name in TRAIN_METRICS})
        self.loss.weighting.end_epoch({name: losses[f"loss_{name}"] for name in self.loss.terms})
        scheduler = self.lr_schedulers() if self.make_scheduler is not None else None
        if isinstance(scheduler, Plateau):
            self._step_plateau(scheduler)
        if not self._warned and losses.get("augment_fallback", 0) > MANY_FALLBACKS:
            self._warned = True
            log.warning(
                "epoch %d: %.1f %% of the images were not augmented, because every draw lost their box; soften "
                "augment.scale, translate or transforms, or lower augment.min_visibility",
                self.current_epoch,
                100 * losses["augment_fallback"],
            )

    def _step_plateau(self, scheduler: Plateau) -> None:
        """Show the schedule the value that it monitors, in an epoch that logs it.

        Raises:
            BadInput: there is none, as there are no validation images.
        """
        tag, every_n_epochs = scheduler.monitor, self.trainer.check_val_every_n_epoch or 1
        if tag.startswith("train/") or (self.current_epoch + 1) % every_n_epochs == 0:
            values = self.trainer.callback_metrics
            check(tag in values, f"scheduler.monitor={tag} but nothing was validated; set scheduler.monitor=train/loss")
            scheduler.step(values[tag])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pending = [(losses, tuple(preds), tuple(targets)) for losses, preds, targets in self._pending]
        checkpoint["unfinished_epoch"] = {"results": self.train_results.state(), "pending": pending}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._is_new_schedule = checkpoint.get("new_schedule", False)
        kept = move_data_to_device(checkpoint["unfinished_epoch"], self.trainer.strategy.root_device)
        self.train_results.restore(kept["results"])
        self._pending = [(losses, Prediction(*preds), Target(*targets)) for losses, preds, targets in kept["pending"]]

    def on_validation_epoch_start(self) -> None:
        self._batches = []  # of one that was stopped

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        preds = self._evaluate(batch)
        self._batches.append((preds.boxes, preds.logits))

    def _evaluate(self, batch: Batch) -> Prediction:
        preds, targets, _, losses = self._predict(batch)
        self.eval_results.add([losses], [preds], [targets], self.loss.counts(targets))
        return preds

    def on_validation_epoch_end(self) -> None:
        losses, metrics = self.eval_results.pop()
        self.validated, self._batches = Validated(*_of_all_ranks(self._batches)), []
        self._log("val", losses | metrics.tags())

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        preds = self._evaluate(batch)
        top = preds.logits.topk(min(5, preds.logits.shape[1])).indices
        classes = torch.cat([preds.logits.argmax(1, keepdim=True), top], dim=1)  # of equals, topk may take another
        self._batches.append((preds.boxes, classes, preds.logits.softmax(1).gather(1, classes)))

    def on_test_epoch_end(self) -> None:
        losses, metrics = self.eval_results.pop()
        self.tested, self._batches = Predicted(*_of_all_ranks(self._batches)), []
        self.test_per_class = metrics.per_class
        self._log("test", losses | metrics.tags())

    def _predict(self, batch: Batch) -> tuple[Prediction, Target, Tensor, dict[str, Tensor]]:
        """What is predicted, what is true, the weighted loss, and the losses that are logged."""
        labels = batch.labels if self.training else None
        preds = self(batch.images, labels) if batch.images is not None else self(batch.state, labels, self.stored_until)
        targets = self.localizer.encode(batch.boxes, batch.labels)
        return preds, targets, *self.loss(preds, targets)

    def _log(self, split: str, values: Mapping[str, Any]) -> None:
        """In a fit at once to callbacks and loggers, as it is the same in all processes: `log` takes .5 ms a value."""
        trainer, named = self.trainer, {f"{split}/{name}": value for name, value in values.items()}
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return self.log_dict(named, sync_dist=True)
        column = torch.stack([torch.as_tensor(value, device=self.device) for value in named.values()]).cpu()
        trainer.callback_metrics.update(zip(named, column.unbind(), strict=True))
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - (split == "train")  # the last one's, from 0
        row = dict(zip(named, column.tolist(), strict=True), epoch=trainer.current_epoch)
        for logger in self.loggers:
            logger.log_metrics(row, step=step)
            logger.save()

    def _read_steps(self, last: int) -> None:
        """Add the kept steps to the epoch's results and log their means under the number of the last, from 0."""
        if not self._pending:
            return
        losses, preds, targets = zip(*self._pending, strict=True)
        self._pending = []
        columns = self.train_results.add(losses, preds, targets)
        values = {f"step/{name}": mean for name, mean in zip(losses[0], columns.mean(1).tolist(), strict=True)}
        for group in self.trainer.optimizers[0].param_groups:
            values["step/lr" if group["name"] == "all" else f"step/lr/{group['name']}"] = group["lr"]
        for logger in self.loggers:
            logger.log_metrics(values, step=last)


class RunningResults(nn.Module):
    """Means of losses and metrics over the images added since the last `pop`; `class_names` belong to the logits."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.metrics = LocalizationMetrics(class_names)
        self._loss_sums: dict[str, Tensor] = {}
        self._num_images = 0

    def add(
        self,
        losses: Sequence[dict[str, Tensor]],
        preds: Sequence[Prediction],
        targets: Sequence[Target],
        counts: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Add S steps, each with the means of its L losses (scalars, by tag); returns these, [L, S].

        For a single step, `counts` says what the loss of a term is a mean over where that is not its images.
        """
        sizes = [len(target.labels) for target in targets]
        for name, count in (counts or {}).items():
            # Sums over what the term is a mean over; `pop` divides by the sum of the counts.
            share = count / sizes[0]
            tags = (f"loss_{name}", f"loss_{name}_weighted")
            losses = [losses[0] | {tag: losses[0][tag] * share for tag in tags} | {f"count_{name}": share}]
        columns = torch.stack([torch.stack([row[tag] for row in losses]) for tag in losses[0]])
        # Step by step, so that the sums have the bits they always had.
        totals = reduce(torch.add, (columns[:, step] * size for step, size in enumerate(sizes)))
        for tag, total in zip(losses[0], totals.unbind(), strict=True):
            self._loss_sums[tag] = self._loss_sums.get(tag, torch.tensor(0.0)) + total
        self._num_images += sum(sizes)
        self.metrics.update(
            torch.cat([row.boxes for row in preds]),
            torch.cat([row.logits for row in preds]),
            torch.cat([row.boxes for row in targets]),
            torch.cat([row.labels for row in targets]),
        )
        return columns

    def state(self) -> dict[str, Any]:
        """Everything that was added, as plain data."""
        sums = {"sums": self.metrics.sums, "count": self.metrics.count}
        return {"loss_sums": dict(self._loss_sums), "num_images": self._num_images, **sums}

    def restore(self, state: dict[str, Any]) -> None:
        self._loss_sums, self._num_images = dict(state["loss_sums"]), state["num_images"]
        self.metrics.sums, self.metrics.count = state["sums"], state["count"]

    def pop(self) -> tuple[dict[str, Tensor], Results]:
        """Mean losses and metrics; starts again from nothing."""
        totals, num_images = list(self._loss_sums.values()), torch.tensor(float(self._num_images))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everything = torch.stack([*totals, num_images.to(self.metrics.device)])
            torch.distributed.all_reduce(everything)  # the metrics do the same by themselves
            *totals, num_images = everything
        losses = {tag: total / num_images for tag, total in zip(self._loss_sums, totals, strict=True)}
        for name in [name for name in TERMS if f"count_{name}" in losses]:
            count = losses.pop(f"count_{name}")
            losses |= {tag: losses[tag] / count for tag in (f"loss_{name}", f"loss_{name}_weighted")}
            losses["loss"] = torch.stack([losses[f"loss_{term}_weighted"] for term in TERMS]).sum()
        results = self.metrics.compute()
        self._loss_sums, self._num_images = {}, 0
        self.metrics.reset()
        return losses, results


@lru_cache(maxsize=1)
def _step_seeds(seed: int, epoch: int, block: int, rank: int) -> list[int]:
    """Of the `block`-th `SEEDS_AT_ONCE` steps of an epoch."""
    steps = range(block * SEEDS_AT_ONCE, (block + 1) * SEEDS_AT_ONCE)
    return [int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0]) for step in steps]


def _of_all_ranks(batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Rows of a split, and the columns of what all processes predicted of them, in the split's order.

    Each process has every row from its own number on.
    """
    columns = [torch.cat(parts).cpu() for parts in zip(*batches, strict=True)]
    parts: list[Any] = [columns]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, columns)
    rows = torch.cat([torch.arange(len(part[0])) * len(parts) + rank for rank, part in enumerate(parts)])
    order = rows.argsort()
    return [torch.cat(column)[order] for column in ((rows,), *zip(*parts, strict=True))]


def _balance(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weight that each term had, and its share of the weighted sum, of mean losses by tag."""
    weighted = {name: losses[f"loss_{name}_weighted"] for name in TERMS}
    total = torch.stack(list(weighted.values())).sum()
    weights = {f"weight_{name}": value / losses[f"loss_{name}"] for name, value in weighted.items()}
    return weights | {f"share_{name}": value / total for name, value in weighted.items()}
