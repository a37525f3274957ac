"""A trained model out of its run directory, ready for use."""

import os
import textwrap
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from numpy.typing import NDArray

from onebox.boxes import clip
from onebox.data.augment import Transform
from onebox.errors import BadInput, check, own_complaint
from onebox.files import misfit
from onebox.model.localizer import Localizer
from onebox.runs.checkpoint import read_checkpoint
from onebox.runs.fingerprint import with_new_names
from onebox.runs.reading.find import Run, find_run, read_run, weights_file
from onebox.runs.reading.predict import Detection, detect, read_any
from onebox.trust import check_config, stored_yaml

Given = NDArray[np.uint8] | str | Path


@dataclass(frozen=True, eq=False, repr=False)
class LoadedRun(Run):
    """A run with its trained localizer in evaluation mode, on the processor.

    Attributes:
        localizer: the network.
        transform: makes an image what the network takes.
        class_names: the K names that belong to its logits.
    """

    localizer: Localizer
    transform: Transform
    class_names: list[str]

    def predict(self, images: Given | Sequence[Given]) -> list[Detection]:
        """Find the object of each image.

        Args:
            images: RGB images [H, W, 3] uint8, each of its own size, or paths of image files; or one of them. They are
                predicted as one batch.

        Returns:
            One detection an image: `label`, `probability`, and `box_px` [4], x1, y1, x2, y2 in px of the image.

        Raises:
            BadInput: an array is no such image, or a file cannot be read.
        """
        is_one = isinstance(images, str) or (not isinstance(images, Sequence) and getattr(images, "ndim", 3) == 3)
        given: Any = [images] if is_one else images
        arrays = [read_any(Path(one))[0] if isinstance(one, str | Path) else one for one in given]
        for image in arrays:
            is_rgb = getattr(image, "dtype", None) == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            check(is_rgb, f"an image must be uint8 [H, W, 3], or the path of a file, not {found}")
        return detect(self, arrays)

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.transform.resize(image)

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        device = next(self.localizer.parameters()).device
        with torch.inference_mode():
            preds = self.localizer(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        return clip(preds.boxes).cpu().numpy(), preds.logits.softmax(1).cpu().numpy()


def load_run(
    path: str | os.PathLike[str], *, trust: Sequence[str] = (), outputs: str | os.PathLike[str] = "outputs"
) -> LoadedRun:
    """The model of a run: config.yaml, with the weights of the best checkpoint or, without one, the last.

    A checkpoint is loaded as plain data. config.yaml names the classes to build; a run that someone else made could
    name anything, so only what `onebox.trust` allows is built.

    Args:
        path: the run directory, or what the commands take: `latest`, `latest~1`, the first digits of a fingerprint.
        trust: further packages whose classes config.yaml may name.
        outputs: the folder in which a run is looked for that is named otherwise than by its directory.

    Returns:
        The run with its network, for `predict`.

    Raises:
        BadInput: there is no such run, its files cannot be read, or it names what is not trusted.

    Example:
        >>> onebox.load_run("latest").predict("photo.jpg")[0].label
    """
    folder = Path(path) if Path(path).is_dir() else find_run(str(path), Path(outputs)).path
    file = weights_file(folder)
    path = folder / "config.yaml"
    config = with_new_names(stored_yaml(folder, path.name, "it is not that of a run"))
    config = config if isinstance(config, dict) else {}
    parts: dict[str, Any] = {group: deepcopy(config.get(group)) or {} for group in ("model", "augment")}
    is_whole = misfit(parts, {"model": {"backbone": dict}, "augment": dict}) is None and "backbone" in parts["model"]
    check(is_whole, f"{path}: not the config of a run: it needs model, with its backbone, and augment")
    check_config(parts, path, trust)
    if "pretrained" in parts["model"]["backbone"]:
        parts["model"]["backbone"]["pretrained"] = False  # the checkpoint has all weights
    checkpoint = read_checkpoint(file)
    state, names = checkpoint.get("state_dict"), checkpoint["onebox"].get("class_names")
    check(isinstance(state, dict) and isinstance(names, list), f"{file}: holds no weights, or no names of classes")
    try:
        localizer, transform = (hydra.utils.instantiate(part, _convert_="all") for part in parts.values())
        prefix = "localizer."
        weights = {name.removeprefix(prefix): value for name, value in (state or {}).items() if name.startswith(prefix)}
        localizer.load_state_dict(weights)
        localizer.eval()
    except BadInput:
        raise
    except Exception as error:  # whatever the config names is called with whatever it says
        reason = textwrap.shorten(str(own_complaint(error)), 300, placeholder=" ...")
        raise BadInput(f"{path}: gives no network of the weights in {file} ({reason})") from error
    record = run.record if (run := read_run(folder)) else {}
    return LoadedRun(folder.absolute(), {**record, "config": config}, localizer, transform, names)
