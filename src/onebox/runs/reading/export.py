"""A trained network as one file that needs no onebox: ONNX, or a program of `torch.export`."""

import copy
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onebox.data.image import Image
from onebox.data.resize import Resize
from onebox.errors import BadInput, check
from onebox.files import replacing
from onebox.model.localizer import Localizer
from onebox.runs.reading.load import LoadedRun
from onebox.runs.reading.onnx_model import KEY, OnnxModel

TOLERANCE = 1e-4  # of any box (in [0, 1]) or probability
OUTPUTS = ("boxes", "labels", "probabilities")
# Radius of the filter, px of the result, where an image shrinks; `area` weighs by the covered part instead.
FILTERS = {"area": 0.5, "bilinear": 1.0, "bicubic": 2.0}
LICENCES = {  # of the pretrained weights, by what makes the backbone
    "torchvision_net": "BSD-3-Clause",
    "efficientnet_lite0": "Apache-2.0",
    "efficientnet_lite2": "Apache-2.0",
}


class Exported(nn.Module):
    """A localizer from images to boxes, labels and probabilities.

    Args:
        localizer: the network.
        resize: brings images of any size to that of the network; None takes them as they are.
    """

    def __init__(self, localizer: Localizer, resize: "GraphResize | None") -> None:
        super().__init__()
        self.localizer = copy.deepcopy(localizer)
        # Pixels stay in [0, 255], which spares a division of each.
        self.localizer.mean *= 255
        self.localizer.std *= 255
        self.resize = resize

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [N, 4] xyxy in [0, 1], labels [N] int64, probabilities [N, K] of RGB images [N, H, W, 3] uint8."""
        pixels = images.permute(0, 3, 1, 2).float()
        preds = self.localizer(pixels if self.resize is None else self.resize(pixels))
        return preds.boxes.clamp(0, 1), preds.logits.argmax(1), preds.logits.softmax(1)

    def run(self, images: Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            boxes, _, probabilities = self(torch.from_numpy(images))
        return boxes.numpy(), probabilities.numpy()


class GraphResize(nn.Module):
    """The resize of training as two products with matrices, which any runtime computes for images of any size.

    Each row of a matrix weighs the pixels that one pixel of the result sees: the share of them that it covers (`area`),
    or by Pillow's triangle or cubic (a = -0.5) filter, widened where the image shrinks.
    """

    def __init__(self, size: int, interpolation: str) -> None:
        super().__init__()
        check(
            interpolation in FILTERS,
            f"--any-size: images are resized by {interpolation}, which is not among {', '.join(FILTERS)}; leave "
            "--any-size out and resize them before",
        )
        self.size = size
        self.interpolation = interpolation

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 3, S, S], whole numbers from 0 to 255, as float32."""
        rows, columns = self._weights(images.shape[2]), self._weights(images.shape[3])
        pixels = rows @ (images @ columns.transpose(0, 1))
        return pixels.round().clamp(0, 255)

    def _weights(self, length: int) -> Tensor:
        """[S, length], each row's sum is 1."""
        scale = torch.ones(()) * length / self.size
        centres = (torch.arange(self.size)[:, None] + 0.5) * scale
        away = torch.arange(length)[None] + 0.5 - centres
        wide = scale.clamp(min=1)
        if self.interpolation == "bicubic":
            x = (away / wide).abs()
            near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
            weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))
        elif self.interpolation == "bilinear":
            weights = (1 - (away / wide).abs()).clamp(min=0)
        else:  # OpenCV's INTER_AREA; where an image is enlarged, linear
            covered = ((scale + 1) / 2 - away.abs()).clamp(min=0).minimum(scale.clamp(max=1))
            weights = torch.where(scale > 1, covered, (1 - away.abs()).clamp(min=0))
        return weights / weights.sum(1, keepdim=True)


class Report(NamedTuple):
    """How a file compares with the network that it was made of, on some images."""

    # box, probability: the largest difference of any
    box: float
    probability: float
    other_labels: int  # of how many images the class is another
    images: int  # how many were compared
    resized: float = 0.0  # with a resize of its own, the largest difference of a box from the run with that of training

    @property
    def is_same(self) -> bool:
        """Whether the file can stand for the network."""
        return max(self.box, self.probability) <= TOLERANCE and not self.other_labels


def export(run: LoadedRun, out: Path, *, any_size: bool, images: Sequence[Image], about: dict[str, Any]) -> Report:
    """Write a run's network to a file, which is there when it was compared with the network and found the same.

    Args:
        run: the run.
        out: the file; `.onnx`, or `.pt2` for a program of `torch.export`.
        any_size: whether it takes images of any size, and resizes them itself.
        images: to compare on, each of its own size.
        about: what the file is to say of itself, beside what it needs.

    Raises:
        BadInput: a package is missing, or the file does not compute the same.
    """
    resize = run.transform.resize
    graph = Exported(run.localizer, GraphResize(resize.size, resize.interpolation) if any_size else None).eval()
    about = {
        "format": 1,
        "class_names": run.class_names,
        "image_size": resize.size,
        "interpolation": resize.interpolation,
        "any_size": any_size,
        **about,
        "backbone": _backbone(run.config["model"]["backbone"]),
    }
    batches = [image[None] for image in images] if any_size else [np.stack([resize(image) for image in images])]
    with replacing(out) as temporary:
        compute = (_to_onnx if out.suffix == ".onnx" else _to_program)(graph, temporary, resize, any_size, about)
        report = _compare(graph if any_size else run, compute, batches)
        if any_size:
            boxes = [(run.run(resize(image[0])[None])[0], compute(image)[0]) for image in batches]
            report = report._replace(resized=max(float(np.abs(one - other).max()) for one, other in boxes))
        check(report.is_same, f"{out}: not written, as it does not compute the same as the run ({report})")
    return report


def _to_onnx(graph: Exported, path: Path, resize: Resize, any_size: bool, about: dict[str, Any]) -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed: pip install 'onebox[onnx]'") from error
    with _quiet():
        program = torch.onnx.export(
            graph,
            _example(resize, any_size),
            dynamo=True,
            dynamic_shapes=_shapes(any_size),
            input_names=["images"],
            output_names=OUTPUTS,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    loaded = OnnxModel(path)
    return lambda images: loaded.session.run(list(OUTPUTS), {"images": images})


def _to_program(graph: Exported, path: Path, resize: Resize, any_size: bool, about: dict[str, Any]) -> Any:
    with _quiet(), torch.no_grad():
        program = torch.export.export(graph, _example(resize, any_size), dynamic_shapes=_shapes(any_size))
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={f"{KEY}.json": json.dumps(about)})
        with path.open("rb") as file:
            module = torch.export.load(file).module()
    return lambda images: [output.numpy(force=True) for output in module(torch.from_numpy(images))]


def _example(resize: Resize, any_size: bool) -> tuple[Tensor]:
    height, width = (resize.size + 37, resize.size + 23) if any_size else (resize.size, resize.size)
    return (torch.zeros((2, height, width, 3), dtype=torch.uint8),)


def _shapes(any_size: bool) -> tuple[dict[int, Any]]:
    sides = {1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)} if any_size else {}
    return ({0: torch.export.Dim("batch", min=1), **sides},)


def _compare(expected: Any, compute: Any, batches: Sequence[Image]) -> Report:
    box = probability = 0.0
    others = total = 0
    for images in batches:
        boxes, probabilities = expected.run(images)
        found = compute(images)
        box = max(box, float(np.abs(boxes - found[0]).max()))
        probability = max(probability, float(np.abs(probabilities - found[2]).max()))
        others += int((probabilities.argmax(1) != found[1]).sum())
        total += len(images)
    return Report(box, probability, others, total)


def _backbone(backbone: dict[str, Any]) -> dict[str, Any]:
    """Which network it is, and the licence of the weights that its training began with, where those were pretrained."""
    maker = str(backbone["_target_"]).rpartition(".")[2]
    licence = LICENCES.get(maker)
    if maker == "timm_net" and backbone["pretrained"] is True:
        import timm

        licence = getattr(timm.get_pretrained_cfg(backbone["name"]), "license", None)
    is_own = not backbone.get("pretrained")
    about = None if is_own else licence if backbone["pretrained"] is True else f"that of {backbone['pretrained']}"
    return {"name": backbone.get("name", maker), "licence_of_pretrained_weights": about}


def _quiet() -> Any:
    """Without what the exporters say of their own insides."""
    for name in ("onnx_ir", "onnxscript", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    caught = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return caught
