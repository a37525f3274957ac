"""From images to boxes and classes, by a network that was trained: decoding runs beside it, memory stays as it is.

Works without torch, as an exported network does.
"""

import contextlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from onebox.data.image import HEADERS, MAX_BYTES, MAX_PIXELS, Image, read_header, read_image
from onebox.data.layout import IMAGE_SUFFIXES, walk
from onebox.data.processes import num_cores
from onebox.errors import BadInput, check
from onebox.files import read_bytes

BATCH = 8  # images; of more, glibc gives the memory back after each batch, which takes longer
SHOWN_PX = 640  # width of an image that is kept to draw on


class Detection(NamedTuple):
    """What is in an image."""

    box_px: NDArray[np.float32]  # [4] float32, xyxy in pixels of the image that was given, inside it
    label: str  # name of the class
    probability: float  # of that class
    probabilities: NDArray[np.float32]  # [K] float32, of all classes


class Model(Protocol):
    """A trained network, whatever computes it."""

    @property
    def class_names(self) -> list[str]:
        """The K names that belong to its probabilities."""

    def resize(self, image: Image) -> Image:
        """An image [H, W, 3] of any size as the network reads it, [S, S, 3]."""

    def run(self, images: Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Boxes [N, 4], xyxy in [0, 1], and probabilities [N, K] of images [N, S, S, 3]."""


class Decoded(NamedTuple):
    """An image file, ready for the network."""

    path: Path  # the file
    image: Image | BadInput  # [S, S, 3], or what is wrong with the file and what to do
    # width, height: in px, as a person sees the image: turned as its EXIF data ask
    width: int = 0
    height: int = 0
    is_turned: bool = False  # whether a viewer that knows no EXIF data shows it in another way, or cannot open it
    shown: Image | None = None  # the image in a width of at most `SHOWN_PX`, when it was asked for


def detect(model: Model, images: Sequence[Image]) -> list[Detection]:
    """The object of each image, RGB [H, W, 3] uint8, each of its own size; all are one batch."""
    squares = [model.resize(image) for image in images]
    return _detections(model, squares, [(image.shape[1], image.shape[0]) for image in images])


def detect_files(
    model: Model, paths: Sequence[Path], *, keep_shown: bool = False
) -> Iterator[tuple[Decoded, Detection | None]]:
    """The object of each file, in their order; None for one that cannot be read.

    Each thread decodes a batch and computes its network, so that none waits for another, and only a few batches are in
    memory. `model.run` should itself take one thread, see `onebox.cli.predict`.
    """

    def found(some: Sequence[Path]) -> list[tuple[Decoded, Detection | None]]:
        decoded = [_decode(model, path, keep_shown) for path in some]
        sound = [one for one in decoded if not isinstance(one.image, BadInput)]
        squares = [one.image for one in sound if not isinstance(one.image, BadInput)]
        detections = iter(_detections(model, squares, [(one.width, one.height) for one in sound]))
        return [(one, None if isinstance(one.image, BadInput) else next(detections)) for one in decoded]

    pool = ThreadPoolExecutor(workers := num_cores())
    coming: deque[Future[list[tuple[Decoded, Detection | None]]]] = deque()
    try:
        for start in range(0, len(paths), BATCH):
            coming.append(pool.submit(found, paths[start : start + BATCH]))
            if len(coming) > workers + 1:
                yield from coming.popleft().result()
        while coming:
            yield from coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def image_files(names: Sequence[str]) -> list[Path]:
    """The image files that are meant: files, folders with all images below them, and patterns such as `photos/*.jpg`.

    Raises:
        BadInput: there is nothing of a name.
    """
    paths: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        found = [path]
        if path.is_dir():
            found = sorted(Path(file) for _, file in walk(path, IMAGE_SUFFIXES))
            check(bool(found), f"{name}: no image in this folder, nor below it; name another one")
        elif not path.exists() and has_magic(name):
            found = sorted(file for file in map(Path, glob(str(path), recursive=True)) if file.is_file())
            check(bool(found), f"{name}: no file is called like this; correct the pattern")
        paths |= dict.fromkeys(found)
    return list(paths)


def read_any(path: Path) -> tuple[Image, bool]:
    """Decode an image file as a person sees it, and say whether a viewer without EXIF data or this format would not.

    What onebox does not train on, such as GIF or AVIF, is left to Pillow; of several pictures the first is taken.

    Raises:
        BadInput: it cannot be read, or has more than `MAX_PIXELS`.
    """
    try:
        data = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    if data.startswith(tuple(HEADERS)):
        header = read_header(data)
        return read_image(path, upright=True), not isinstance(header, str) and header.turn != 1
    with contextlib.suppress(Exception), PIL.Image.open(io.BytesIO(data)) as image:  # decoders raise anything
        check(image.width * image.height <= MAX_PIXELS, "")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")), True
    raise BadInput(f"{path}: not a readable image; restore it, or leave it out")


def _decode(model: Model, path: Path, keep_shown: bool) -> Decoded:
    try:
        image, is_turned = read_any(path)
    except BadInput as error:
        return Decoded(path, error)
    height, width = image.shape[:2]
    shown = None
    if keep_shown:
        picture = PIL.Image.fromarray(image)
        picture.thumbnail((SHOWN_PX, SHOWN_PX))
        shown = np.asarray(picture)
    return Decoded(path, model.resize(image), width, height, is_turned, shown)


def _detections(model: Model, squares: Sequence[Image], sizes: Sequence[tuple[int, int]]) -> list[Detection]:
    if not squares:
        return []
    boxes, probabilities = model.run(np.stack(squares))
    are_numbers = bool(np.isfinite(boxes).all() and np.isfinite(probabilities).all())
    check(are_numbers, "the network gives NaN in place of boxes: its training diverged; use another run")
    best = probabilities.argmax(1)
    return [
        Detection(box * np.array([width, height] * 2, np.float32), model.class_names[number], float(p[number]), p)
        for box, p, number, (width, height) in zip(boxes, probabilities, best.tolist(), sizes, strict=True)
    ]
