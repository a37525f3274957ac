"""What only a GPU shows, as far as it can be tested without one: on the processor, on `meta` tensors, by what is asked."""

import contextlib
import dataclasses
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torchvision
from hydra.utils import instantiate
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import diou_loss, giou_loss

from onebox import boxes
from onebox.build import build_data, build_module, build_trainer, fill_in
from onebox.errors import BadInput
from onebox.validation import validate

# What makes a GPU wait: a number is read; a tensor's size depends on its values; a tensor is made of Python's numbers.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "lift_fresh")
PAINTED = ["augment=batched_strong", "augment.painter=torch"]
QUIET = [f"callbacks.{name}=null" for name in ("pictures", "worst", "graph", "projector", "augmented", "histograms")]


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += [name for name in WAITS if func._schema.name == f"aten::{name}"]
        return func(*args, **(kwargs or {}))


class Begin(Callback):
    """Stands before all callbacks, and `End` after them: between them is a step, from the second on, after warming up."""

    def __init__(self, mode):
        self.mode, self.steps = mode, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.stack = contextlib.ExitStack()
        if batch_idx > 0:
            self.stack.enter_context(self.mode())
            self.steps += 1


class End(Callback):
    def __init__(self, begin):
        self.begin = begin

    def on_train_batch_end(self, *args):
        self.begin.stack.close()


def fit(cfg, mode):
    """Trains with `mode` around each step; gives the number of such steps."""
    data = build_data(cfg)
    data.prepare_data()
    data.setup()
    fill_in(cfg, data)
    trainer = build_trainer(cfg)
    begin = Begin(mode)
    trainer.callbacks[:] = [begin, *trainer.callbacks, End(begin)]
    trainer.fit(build_module(cfg, data), datamodule=data)
    return begin.steps


STEP = [*PAINTED, *QUIET, "trainer.max_epochs=1", "data.batch_size=16", "trainer.log_every_n_steps=100"]
STEP += ["logger=csv", "callbacks/progress=lines", "loss/loc=l1_giou", "loss/weighting=uncertainty"]


def test_a_step_never_waits_for_the_device(composed):
    waits = Waits()
    assert fit(composed(*STEP), lambda: waits) > 1
    assert waits.seen == []


def test_what_makes_a_gpu_wait_is_found():
    with Waits() as waits:
        torch.ones(()).item()
        torch.ones(3)[torch.ones(3) > 0]
        torch.tensor([1.0])
    assert {"_local_scalar_dense", "lift_fresh"} <= set(waits.seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_the_gpu(composed):
    @contextlib.contextmanager
    def strict():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    assert fit(composed(*STEP, "trainer=gpu"), strict) > 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["model/loc_head=edges", "model/cls_head=box_pool", "loss/loc=giou"],
        ["model/loc_head=cells", "model/box_coder=cells", "loss/loc=cells", "model/cls_head=box_pool"],
        ["model/loc_head=attention_pool", "model/cls_head=attention_pool", "model/box_coder=ltrb", "loss/loc=diou"],
        ["model/loc_head=per_class_box", "model/box_coder=xywh", "loss/loc=smooth_l1", "loss/weighting=dwa"],
        ["model/loc_head=dense", "model/box_coder=cxcywh_sigmoid", "loss/loc=ciou", "loss/weighting=uncertainty"],
        ["model/loc_head=spatial", "model/cls_head=mlp", "loss/cls=balanced_cross_entropy", "loss/loc=mse"],
    ],
)
def test_each_part_computes_without_reading_a_number(composed, overrides):
    """A `meta` tensor has no numbers, so a step that reads one, or makes a shape of one, fails."""
    cfg = composed(*PAINTED, *overrides)
    data = build_data(cfg)
    data.setup()
    fill_in(cfg, data)
    module = build_module(cfg, data).to("meta").train()
    batch = next(iter(data.train_dataloader())).to("meta")
    batch = data.on_after_batch_transfer(batch, 0)
    assert batch.images.shape[-1] == cfg.image_size
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    *_, total, _ = module._predict(batch)
    total.backward()
    assert all(parameter.grad is not None for parameter in module.localizer.loc_head.parameters())


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"])
def test_losses_of_boxes_are_torchvisions_to_the_last_bit(monkeypatch, name):
    corners = torch.rand(2, 500, 4, generator=torch.Generator().manual_seed(0))
    preds, true = corners[0], torch.cat([corners[1, :, :2], corners[1, :, :2] + corners[1, :, 2:]], dim=1)
    assert (preds[:, 2:] < preds[:, :2]).any()  # boxes that are inside out too
    found = []
    for function in (boxes._loss_inter_union, torchvision.ops._utils._loss_inter_union):
        for part in (giou_loss, diou_loss):
            monkeypatch.setattr(part, "_loss_inter_union", function)
        variable = preds.clone().requires_grad_()
        loss = getattr(torchvision.ops, name)(variable, true, reduction="mean")
        loss.backward()
        found.append((loss, variable.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("option", ["batched_flip", "batched_affine", "batched_strong"])
def test_torch_paints_what_opencv_paints(composed, option):
    """Both round, and OpenCV takes places to a 32nd of a pixel: of soft images that is a few grey levels."""
    one, other = (
        instantiate(composed(f"augment={option}", f"augment.painter={painter}").augment, _convert_="all")
        for painter in ("opencv", "torch")
    )
    side = one.resize_before_augment.size
    noise = np.random.default_rng(0).normal(size=(32, side, side, 3))
    soft = np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in noise])
    images = (soft / soft.std() * 60 + 128).clip(0, 255).astype(np.uint8)
    box = np.tile(np.array([0.3, 0.2, 0.6, 0.6], dtype=np.float32), (32, 1))
    drawn, painted = (pipeline.augment(images, box, 0, 1, range(32)) for pipeline in (one, other))
    np.testing.assert_array_equal(drawn.boxes, painted.boxes)
    assert drawn[2:] == painted[2:]
    assert not np.array_equal(drawn.images, images[:, :100, :100])
    assert np.abs(drawn.images.astype(int) - painted.images).max() <= 4


def test_batches_are_painted_once_they_are_where_the_network_is(composed):
    cfg = composed(*PAINTED, "data.batch_size=7", "image_size=32")
    data = build_data(cfg)
    data.setup()
    for epoch, batch in enumerate([*data.train_dataloader()][:2]):
        assert batch.images.shape == (7, 3, 48, 48), epoch
        painted = data.on_after_batch_transfer(batch, 0)
        rows = [data.indexes["train"].ids.index(name) for name in batch.ids]
        whole = data.dataset("train").__getitems__([(0, row) for row in rows])
        assert torch.equal(painted.images, whole.images)
        assert torch.equal(painted.boxes, whole.boxes)
        assert (painted.strokes, painted.shares) == (None, whole.shares)
    (plain,) = data.val_dataloader()
    assert data.on_after_batch_transfer(plain, 0) is plain


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_lie_in_pinned_memory_where_the_trainer_has_a_gpu(composed, device):
    data = build_data(composed())
    data.setup()
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    assert data.train_dataloader().pin_memory is data.val_dataloader().pin_memory is (device == "cuda")


def test_a_batch_keeps_its_bytes_and_its_layout_on_the_way_to_the_device(composed):
    data = build_data(composed(*PAINTED))
    data.setup()
    batch = next(iter(data.train_dataloader()))
    there = batch.to("meta")
    assert there.images.dtype is torch.uint8
    assert there.images.is_contiguous(memory_format=torch.channels_last)
    columns = [value for value in dataclasses.asdict(there).values() if isinstance(value, torch.Tensor)]
    assert len(columns) == 4  # images, boxes, labels, strokes
    assert {column.device.type for column in columns} == {"meta"}


def test_a_gpu_that_only_imitates_bfloat16_is_refused(composed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    has_it = {"value": False}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it["value"])
    cfg = composed("trainer=gpu", "trainer.accelerator=gpu")
    with pytest.raises(BadInput, match="this GPU only imitates; set 16-mixed or 32-true"):
        validate(cfg)
    has_it["value"] = True
    validate(cfg)
    has_it["value"] = False
    validate(composed("trainer.precision=bf16-mixed", "trainer.accelerator=cpu"))
