"""A trained model out of its run directory, ready for use."""

import textwrap
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from onebox.runs.predictions import read_predictions
from onebox.runs.reading.find import weights_file
from onebox.runs.reading.predict import Detection, detect, read_any
from onebox.trust import check_config, stored_yaml

if TYPE_CHECKING:
    import pandas as pd

Given = NDArray[np.uint8] | str | Path


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A trained localizer in evaluation mode, on the processor.

    Attributes:
        localizer: the network.
        transform: makes an image what the network takes.
        class_names: the K names that belong to its logits.
        config: resolved config of the run, as plain data.
        folder: the run directory.
    """

    localizer: Localizer
    transform: Transform
    class_names: list[str]
    config: dict[str, Any]
    folder: Path

    @property
    def predictions(self) -> "pd.DataFrame":
        """What the run predicted of each test image, see `onebox.runs.predictions`."""
        return read_predictions(self.folder)

    def predict(self, images: Given | Sequence[Given]) -> list[Detection]:
        """Find the object of each image.

        Args:
            images: RGB images [H, W, 3] uint8, each of its own size, or paths of image files; or one of them. They are
                predicted as one batch.

        Returns:
            One detection an image.

        Raises:
            BadInput: an array is no such image, or a file cannot be read.
        """
        is_one = isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 3)
        given: Any = [images] if is_one else images
        arrays = [read_any(Path(one))[0] if isinstance(one, str | Path) else one for one in given]
        for image in arrays:
            is_rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            check(is_rgb, f"an image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
        return detect(self, arrays)

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See `onebox.runs.reading.predict.Model`."""
        return self.transform.resize(image)

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `onebox.runs.reading.predict.Model`."""
        device = next(self.localizer.parameters()).device
        with torch.inference_mode():
            preds = self.localizer(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
        return clip(preds.boxes).cpu().numpy(), preds.logits.softmax(1).cpu().numpy()


def load_run(path: str | Path, *, trust: Sequence[str] = ()) -> LoadedRun:
    """The model of a run: config.yaml, with the weights of the best checkpoint or, without one, the last.

    A checkpoint is loaded as plain data. config.yaml names the classes to build; a run that someone else made could
    name anything, so only what `onebox.trust` allows is built.

    Args:
        path: the run directory.
        trust: further packages whose classes config.yaml may name.

    Raises:
        BadInput: there is no such run, its files cannot be read, or it names what is not trusted.
    """
    folder = Path(path)
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
    return LoadedRun(localizer, transform, names, config, folder)
