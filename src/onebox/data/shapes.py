"""The embedded data set: textured shapes in a PASCAL VOC tree, so that every command runs without a download.

It stands in for photographs: cluttered backgrounds, objects of many sizes, colours and rotations, and some
images with several objects for the "exactly one object" selection to drop. Image `i` is a function of
(seed, i) alone, so images are made in parallel and the same settings give the same bytes.
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
from filelock import FileLock

from onebox.data.processes import num_cores
from onebox.data.progress import progress
from onebox.data.shape_images import Image, Object, draw_sample
from onebox.errors import BadInput

GENERATOR = 1  # raise it whenever the same settings would give other bytes


def write_shapes(
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int,
    multi_object_fraction: float,
    min_side: int,
    max_side: int,
    seed: int,
) -> Path:
    """Write the data set as a VOC tree, unless it is there already.

    The tree appears under its name only when it is complete: a killed run leaves `.<name>.partial` beside it,
    which the next call replaces. Several processes may call this at once; one writes, the others wait.

    Args:
        root: the folder that receives `Annotations`, `JPEGImages`, `ImageSets/Main` and `shapes.json`.
        num_train: images in `train.txt`; `trainval.txt` lists these and those of `val.txt`.
        num_val: images in `val.txt`.
        num_test: images in `test.txt`.
        multi_object_fraction: probability in [0, 1] that an image has two or three objects instead of one.
        min_side: shortest image side, px, at least 32.
        max_side: longest image side, px.
        seed: of everything random, at least 0.

    Returns:
        `root` as a Path.

    Raises:
        BadInput: a setting is out of range, or `root` holds something else than these settings would give.
    """
    settings = {
        "generator": GENERATOR,
        "num_train": num_train,
        "num_val": num_val,
        "num_test": num_test,
        "multi_object_fraction": multi_object_fraction,
        "min_side": min_side,
        "max_side": max_side,
        "seed": seed,
    }
    root = Path(root)
    if min(num_train, num_val, num_test, seed) < 0 or not 0 <= multi_object_fraction <= 1:
        raise BadInput(f"shapes need counts and seed >= 0, multi_object_fraction in [0, 1], got {settings}")
    if not 32 <= min_side <= max_side:
        raise BadInput(f"shapes need 32 <= min_side <= max_side, got {min_side} and {max_side}")
    if _is_written(root, settings):  # before the lock, so that a read-only data set can be used
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if not _is_written(root, settings):
            partial = root.parent / f".{root.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: nobody else holds the lock
            _write_tree(partial, settings)
            os.replace(partial, root)
    return root


class ShapesSource:
    """`write_shapes` as the `source` of a data module: it draws, so it never needs to download.

    Args:
        settings: the arguments of `write_shapes` but `root`.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def __call__(self, root: str, *, download: bool) -> None:
        """Write the data set at `root`, unless it is there already."""
        write_shapes(root, **self._settings)


def _is_written(root: Path, settings: dict[str, Any]) -> bool:
    """Whether `root` holds these settings: False if absent or empty, BadInput if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    remedy = "remove the folder or point data.root elsewhere"
    try:
        found = dict(json.loads((root / "shapes.json").read_text()))
    except (OSError, TypeError, ValueError):
        raise BadInput(f"{root} holds something else than shapes (no valid shapes.json): {remedy}") from None
    if found == settings:
        return True
    keys = [key for key in settings | found if found.get(key) != settings.get(key)]
    differs = ", ".join(f"{key} is {found.get(key)}, not {settings.get(key)}" for key in keys)
    raise BadInput(f"{root} holds shapes with other settings ({differs}): {remedy}")


def _write_tree(folder: Path, settings: dict[str, Any]) -> None:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    train = settings["num_train"]
    trainval = train + settings["num_val"]
    ids = [f"{index:06d}" for index in range(trainval + settings["num_test"])]
    splits = {"train": ids[:train], "val": ids[train:trainval], "test": ids[trainval:]}
    splits["trainval"] = ids[:trainval]
    for split, members in splits.items():
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{member}\n" for member in members))

    def write(index: int) -> None:
        image, objects = draw_sample(index, settings)
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (folder / "JPEGImages" / f"{ids[index]}.jpg").write_bytes(jpeg.tobytes())
        (folder / "Annotations" / f"{ids[index]}.xml").write_text(_xml(ids[index], image, objects))

    with ThreadPoolExecutor(min(8, num_cores())) as pool:  # cv2 lets go of the GIL
        done = pool.map(write, range(len(ids)))
        for _ in progress(done, total=len(ids), description="drawing shapes"):
            pass
    (folder / "shapes.json").write_text(json.dumps(settings, indent=2) + "\n")


def _xml(image_id: str, image: Image, objects: list[Object]) -> str:
    """The VOC annotation, whose coordinates are 1-based and inclusive."""
    marked = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        "</object>\n"
        for name, (x1, y1, x2, y2) in objects
    )
    height, width, depth = image.shape
    return (
        f"<annotation>\n<folder>shapes</folder>\n<filename>{image_id}.jpg</filename>\n"
        f"<source><database>onebox shapes</database></source>\n"
        f"<size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>\n"
        f"<segmented>0</segmented>\n{marked}</annotation>\n"
    )
