"""`onebox export`: a trained network as one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onebox.cli.reproduce import Outputs, Run, Trust
from onebox.errors import BadInput, check, printable

if TYPE_CHECKING:
    from onebox.data.image import Image

IMAGES = 64  # to compare on
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}

To = Annotated[Literal["onnx", "torch"], typer.Option(help="ONNX, or a program of torch.export.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The file. [default: model.onnx or model.pt2 in RUN]", dir_okay=False),
]
AnySize = Annotated[
    bool, typer.Option("--any-size", help="Take images of any size, and resize them inside the network.")
]


def export(
    run: Run,
    to: To = "onnx",
    out: Out = None,
    any_size: AnySize = False,
    trust: Trust = None,
    outputs: Outputs = Path("outputs"),
) -> None:
    """Write a run's network to one file that needs no onebox.

    It takes RGB images, uint8 [N, H, W, 3], and gives boxes (xyxy in [0, 1]), labels and probabilities; it is compared
    with the run on images of the run's test split, and only written if every class is the same, and every box and
    probability to 0.0001.

    \b
    Examples
      onebox export latest
      onebox export RUN --out flowers.onnx --any-size
      onebox export RUN --to torch
      onebox predict flowers.onnx photos
    """
    from onebox.runs.reading.find import find_run

    found = find_run(run, outputs)
    file = out or found.path / f"model{SUFFIXES[to]}"
    check(file.suffix == SUFFIXES[to], f"{file}: the name of a file for --to {to} ends in {SUFFIXES[to]}")
    check(file.parent.is_dir(), f"{file}: no such folder; create it, or choose another --out")
    from onebox.runs.reading.export import export as write  # takes torch with it
    from onebox.runs.reading.load import load_run

    loaded = load_run(found.path, trust=trust or [])
    images, what = _images(found.path)
    about = {"fingerprint": found.record.get("fingerprint"), "run": found.record.get("name")}
    report = write(loaded, file, any_size=any_size, images=images, about=about)
    print(printable(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {len(loaded.class_names)} classes"))
    same = (
        f"largest difference of a box {report.box:.1e}, of a probability {report.probability:.1e}, every class the same"
    )
    print(printable(f"compared with the run on {report.images} {what}: {same}"))
    if any_size:
        print(f"with the resize of training instead of its own, a box differs by at most {report.resized:.1e}")


def _images(folder: Path) -> "tuple[list[Image], str]":
    """Images to compare on, and what they are."""
    import numpy as np

    from onebox.runs.predictions import PREDICTIONS, read_predictions
    from onebox.runs.reading.predict import read_any

    images: list[Any] = []
    if (folder / PREDICTIONS).exists():
        for path in read_predictions(folder)["path"].head(IMAGES):
            try:
                images.append(read_any(Path(path))[0])
            except BadInput:
                continue  # the data have moved
    if images:
        return images, "images of its test split"
    draw = np.random.default_rng(0)
    noise = [draw.integers(0, 256, (height, 200, 3), dtype=np.uint8) for height in range(100, 116)]
    return noise, "images of random pixels, as those of its test split are not there"
