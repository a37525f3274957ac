"""What a frozen part of a network gives for a split, computed once. B = batch size, V = views, N = images.

A view of an image is its augmentation's draw with the number of the view in the place of the epoch. The features of
each view lie in a file of the cache folder (see `onebox.data.cache`), as float16, maps channels-last. Its name is a
hash of all that they follow from, so runs that differ only in what comes after, or in the number of views, share it.
"""

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import Dataset

from onebox.callbacks.freeze import Freeze
from onebox.data.cache import open_array
from onebox.data.datamodule import VocDataModule
from onebox.data.dataset import Batch, OneBoxDataset
from onebox.data.loading import Key
from onebox.data.processes import progress
from onebox.errors import BadInput, check
from onebox.model.localizer import Localizer
from onebox.model.pretrained import weights_hash
from onebox.module import LocalizationModule
from onebox.runs.checkpoint import load_weights

log = logging.getLogger(__name__)

FORMAT = 2  # of the file; part of its name
CHUNK = 32  # images that are computed together, whatever the batch size: it may decide the last bits
STATE, SHARE = "state ", "share "  # begin the names of columns: `Batch.state` by number, `Batch.shares` by name
ADVICE = "lower data.views or image_size, choose another data.cache_dir, or set data.features=off"
CLOSE = 1e-3  # of the largest number: far more than rounding, far less than a norm


def store_features(
    trainer: Trainer,
    module: LocalizationModule,
    data: VocDataModule,
    *,
    checkpoint: Path | None,
    backbone: Mapping[str, Any],
    augment: Mapping[str, Any],
) -> None:
    """Let a fit train on stored features where the first part of its backbone stays frozen throughout.

    They are computed unless they are there already. Without such a part, or with data.features=off, nothing happens;
    when it could be used but is not, a line says why.

    Args:
        trainer: its callbacks say what is frozen.
        module: is told to start after that part.
        data: receives the features.
        checkpoint: what the fit resumes from.
        backbone: config of the backbone.
        augment: config of the augmentation.

    Raises:
        BadInput: there is no room for the features.
    """
    frozen = _frozen_stages(trainer, module, data)
    if not frozen:
        return
    localizer = module.localizer
    network: Any = localizer.backbone  # a module as well
    if checkpoint is not None:
        # A file of pretrained weights may have changed since; and averages of what is frozen differ in their last bits.
        load_weights(module, checkpoint, are_trained=True)
    until = frozen[-1]
    device = trainer.strategy.root_device

    compute = _prefix_of(localizer, until, device, data.image_size)
    name = backbone.get("name") or backbone["_target_"].rpartition(".")[2]
    follows_from = {
        "backbone": dict(backbone),
        "until": until,
        "weights": weights_hash(network, lambda name: network.stage_of(name) in frozen),
        "torch": torch.__version__,
        "device": device.type,
    }

    def store(source: OneBoxDataset, split: str, views: int, cache_dir: Path) -> FeatureDataset:
        mirrored = split == "val" and localizer.flip_average
        part = Frozen(
            f"{name} until {until}{', mirrored too' * mirrored}",
            follows_from | {"mirrored": mirrored},
            partial(compute, mirrored=mirrored),
        )
        how: Any = {"split": split, "views": views, "augment": augment, "cache_dir": cache_dir}
        return FeatureDataset(source, part, memory_mb=data.features_memory_mb, **how)

    data.replace_datasets(store)
    module.stored_until = until


def _prefix_of(localizer: Localizer, until: str, device: torch.device, image_size: int) -> Callable[..., Any]:
    """A function from images to what stage `until` gives, by a copy of the network that is made at the first call."""

    @cache
    def evaluated() -> Localizer:
        net = copy.deepcopy(localizer).eval().to(device)
        random = torch.Generator().manual_seed(0)
        example = torch.rand(1, 3, image_size, image_size, generator=random).to(device)
        fold_norms(net, lambda: net.prefix(example, until=until, mirrored=False))
        return net

    def compute(images: Tensor, *, mirrored: bool) -> Sequence[Tensor]:
        with torch.inference_mode():
            return evaluated().prefix(images.to(device), until=until, mirrored=mirrored)

    return compute


def _frozen_stages(trainer: Trainer, module: LocalizationModule, data: VocDataModule) -> Sequence[str]:
    """The first stages of the backbone, which stay frozen throughout, if their output can be stored."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    freeze = next((callback for callback in callbacks if isinstance(callback, Freeze)), None)
    if freeze is None or data.features == "off":
        return ()
    assert trainer.max_epochs is not None
    network: Any = module.localizer.backbone  # a module as well
    frozen: Sequence[str] = freeze.frozen(network.stages, trainer.max_epochs)
    if not frozen:
        log.info("features are computed in every epoch, as callbacks.freeze.unfreeze trains all of the backbone")
    elif data.views is None:
        log.info("features are computed in every epoch, as each draws its own views; data.views=8 computes 8 once")
        return ()
    return frozen


@dataclass(frozen=True)
class Frozen:
    """A part of a network that does not change."""

    name: str  # for people
    follows_from: Mapping[str, Any]  # plain data that its output follows from, such as a hash of its weights
    compute: Callable[[Tensor], Sequence[Tensor]]  # [B, 3, H, W] uint8 images to tensors [B, ...]


class FeatureDataset(Dataset[Batch]):
    """Like a `OneBoxDataset`, but its batches hold features (`state`) in the place of images.

    Args:
        source: the images; read only when the features are not there yet.
        frozen: makes features of them.
        split: name of the split, for people.
        views: V; an image's key (v, row) gives its view v.
        augment: plain data that the views follow from beside `source`.
        cache_dir: the cache folder.
        memory_mb: features that take no more than this are read once, and held in memory.

    Raises:
        BadInput: there is no room for the features, or they exceed float16.
    """

    def __init__(
        self,
        source: OneBoxDataset,
        frozen: Frozen,
        *,
        split: str,
        views: int,
        augment: Mapping[str, Any],
        cache_dir: Path,
        memory_mb: float = 0,
    ) -> None:
        self.index = source.index
        self._source = source
        self._frozen = frozen
        about = {
            "data": source.folder,
            "split": split,
            "images": len(source),
            "image_size": source.image_size,
            "backbone": frozen.name,
        }
        follows_from = {
            "format": FORMAT,
            "images": source.fingerprint(),
            "augment": dict(augment) if source.is_random else None,
            "frozen": dict(frozen.follows_from),
        }
        key = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()[:24]
        self._paths = [cache_dir / "features" / f"{key}-{view}.npy" for view in range(views)]
        what = f"{split:5} features of {len(source):,} images x {views} view{'s' * (views > 1)}, {frozen.name}"
        there = all(path.exists() for path in self._paths)
        log.info("%s: %s in %s", what, "read" if there else "computed once", cache_dir / "features" / f"{key}-*.npy")
        opened: dict[int, dict[str, NDArray[Any]]] = {}
        # Processes that want the same views share the work: each begins with what no other is computing.
        for doing in (None, f"computes features of {split} of"):
            for view, path in enumerate(self._paths):
                if view in opened:
                    continue
                try:
                    array = open_array(
                        path,
                        shape=(len(source),),
                        dtype=self._columns,
                        fill=partial(self._compute, view),
                        about=about | {"view": view, "follows_from": follows_from},
                        doing=doing,
                    )
                except Timeout:  # an OSError too
                    continue
                except OSError as error:
                    raise BadInput(f"{path}: {error.strerror or error}; {ADVICE}") from error
                opened[view] = {name: array[name] for name in array.dtype.names or ()}
        self._views = [opened[view] for view in range(views)]
        size_mb = sum(column.nbytes for columns in self._views for column in columns.values()) / 1e6
        if size_mb <= memory_mb:
            self._views = [{name: np.array(column) for name, column in columns.items()} for columns in self._views]
        elif memory_mb:
            log.info(
                "%s take %.0f MB, more than data.features_memory_mb=%g: read from the files", what, size_mb, memory_mb
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        views, rows = np.array(keys).T
        columns = {name: self._gather(name, views, rows) for name in self._views[0]}
        state = tuple(torch.from_numpy(column) for name, column in columns.items() if name.startswith(STATE))
        return Batch(
            images=None,
            state=tuple(column.permute(0, 3, 1, 2) if column.ndim == 4 else column for column in state),
            boxes=torch.from_numpy(columns["boxes"]),
            labels=self.index.labels[rows],
            ids=tuple(self.index.ids[row] for row in rows),
            shares={
                name.removeprefix(SHARE): float(column.mean())
                for name, column in columns.items()
                if name.startswith(SHARE)
            },
        )

    def _gather(self, name: str, views: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        """[B, ...] what one column holds of these keys."""
        column = self._views[0][name]
        gathered = np.empty((len(rows), *column.shape[1:]), column.dtype)
        for view in np.unique(views):
            chosen = views == view
            gathered[chosen] = self._views[view][name][rows[chosen]]
        return gathered

    def _columns(self) -> np.dtype[Any]:
        """The columns of a file, from the features of one image; refuses files that would not fit on the disk."""
        batch = self._source[0]
        assert batch.images is not None
        items = [_channels_last(tensor) for tensor in self._frozen.compute(batch.images)]
        columns = np.dtype(
            [(f"{STATE}{number}", np.float16, tuple(item.shape[1:])) for number, item in enumerate(items)]
            + [("boxes", np.float32, (4,))]
            + [(f"{SHARE}{name}", np.float64) for name in batch.shares]
        )
        folder = self._paths[0].parent
        size = columns.itemsize * len(self) * sum(not path.exists() for path in self._paths) / 1e6
        free = shutil.disk_usage(folder).free / 1e6
        check(size <= free, f"{folder}: {size:,.0f} MB of features, but {free:,.0f} MB are free; {ADVICE}")
        return columns

    def _compute(self, view: int, array: NDArray[Any]) -> None:
        chunks = range(0, len(self), CHUNK)
        description = f"computing features, view {view + 1} of {len(self._paths)}"
        for first in progress(chunks, total=len(chunks), description=description):
            rows = range(first, min(first + CHUNK, len(self)))
            batches = [self._source.__getitems__([(view, row)]) for row in rows]
            states = self._frozen.compute(torch.cat([batch.images for batch in batches if batch.images is not None]))
            for number, state in enumerate(states):
                half = _channels_last(state).half()
                check(
                    bool(half.isfinite().all()),
                    f"features {self._frozen.name} exceed float16; set data.features=off",
                )
                array[f"{STATE}{number}"][rows.start : rows.stop] = half.numpy()
            for row, batch in zip(rows, batches, strict=True):
                array["boxes"][row] = batch.boxes[0].numpy()
                for name, share in batch.shares.items():
                    array[f"{SHARE}{name}"][row] = share


def _channels_last(state: Tensor) -> Tensor:
    state = state.cpu()
    return state.permute(0, 2, 3, 1) if state.ndim == 4 else state


def fold_norms(net: nn.Module, run: Callable[[], Sequence[Tensor]]) -> None:
    """Fold each batch norm into the convolution before it, and lay weights out channels-last.

    The network, which must be in evaluation mode, gives the same but for rounding, a fifth faster on a CPU.
    Where something else reads the convolution as well, that would be wrong, and the network stays as it is.

    Args:
        net: is changed.
        run: sends something through it. The calls that this leads to show which norm reads which convolution.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # a module, its input, its output
    hooks = [
        module.register_forward_hook(lambda module, given, out: calls.append((module, given[0], out)))
        for module in net.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    with torch.no_grad():
        before = run()
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in net.named_modules()}
    called = [module for module, _, _ in calls]
    replaced: dict[str, nn.Module] = {}
    for (conv, _, out), (norm, given, _) in pairwise(calls):
        once = called.count(conv) == called.count(norm) == 1
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and given is out and once:
            act: Any = getattr(norm, "act", nn.Identity())  # timm's norms have their activation inside
            for old, new in ((conv, fuse_conv_bn_eval(conv, norm)), (norm, act)):
                replaced[names[old]] = old
                net.set_submodule(names[old], new)
    with torch.no_grad():
        after = run()
    if not all((one - other).abs().max() <= CLOSE * one.abs().max() for one, other in zip(before, after, strict=True)):
        for name, module in replaced.items():
            net.set_submodule(name, module)
    net.to(memory_format=torch.channels_last)
