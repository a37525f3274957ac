"""The embedded data set: textured shapes in a PASCAL VOC tree, so that every command runs without a download.

It stands in for photographs: cluttered backgrounds, objects of many sizes, colours and rotations, and some
images with several objects for the "exactly one object" selection to drop. Image `i` is a function of
(seed, i) alone, so images are made in parallel and the same settings give the same bytes.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from onebox.data.layout import Labelled, put
from onebox.data.processes import thread_map
from onebox.data.tree import write_voc
from onebox.errors import BadInput, check
from onebox.files import alone, read_json

GENERATOR = 1  # raise it whenever the same settings would give other images or boxes

SHAPE_CLASSES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross", "crescent", "hexagon")

TILT = 0.25  # radians: the most an object leans to either side; a full turn makes the classes much harder to tell
SUPERSAMPLE = 4  # a mask is drawn this much larger and averaged down: anti-aliased edges
VISIBLE = 32  # of 255: pixels that an object covers less than this stay background and out of its box
CANDIDATES = 12  # colours drawn for an object, to find one that stands out

Image = NDArray[np.uint8]  # [H, W, 3], BGR as cv2 writes it
Object = tuple[str, tuple[int, int, int, int]]  # class, box (x1, y1, x2, y2) in px, 0-based, end exclusive


@dataclass(frozen=True, kw_only=True)
class ShapesSource:
    """Draws the data set as a VOC tree: the `source` of a data module, which needs no network."""

    num_train: int  # images in `train.txt`; `trainval.txt` lists these and those of `val.txt`
    num_val: int  # images in `val.txt`
    num_test: int  # images in `test.txt`
    multi_object_fraction: float  # probability in [0, 1] that an image has two or three objects instead of one
    min_side: int  # shortest image side, px, at least 32
    max_side: int  # longest image side, px
    seed: int  # of everything random, at least 0

    def __call__(self, root: str | Path, *, download: bool = False) -> None:
        """Write the tree at `root`, unless it is there already.

        It appears under its name only when it is complete: a killed run leaves `.<name>.partial` beside it, which the
        next call replaces. Several processes may call this at once; one writes, the others wait.

        Raises:
            BadInput: a setting is out of range, or `root` holds something else than these settings would give.
        """
        root, settings = Path(root), {"generator": GENERATOR, **asdict(self)}
        check(
            min(self.num_train, self.num_val, self.num_test, self.seed) >= 0 and 0 <= self.multi_object_fraction <= 1,
            f"shapes need counts and seed >= 0, multi_object_fraction in [0, 1], got {settings}",
        )
        sides = f"{self.min_side} and {self.max_side}"
        check(32 <= self.min_side <= self.max_side, f"shapes need 32 <= min_side <= max_side, got {sides}")
        if _is_written(root, settings):  # before the lock, so that a read-only data set can be used
            return
        with alone(root.parent / f".{root.name}.lock", waiting=f"Waiting for another process that draws {root}"):
            if not _is_written(root, settings):
                partial = root.parent / f".{root.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: nobody else holds the lock
                _write_tree(partial, settings)
                os.replace(partial, root)


def write_shapes(root: str | Path, **settings: Any) -> Path:
    """Have the data set of `ShapesSource(**settings)` at `root`, which is returned."""
    ShapesSource(**settings)(root)
    return Path(root)


def _is_written(root: Path, settings: dict[str, Any]) -> bool:
    """Whether `root` holds these settings: False if absent or empty, BadInput if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    remedy = "remove the folder or point data.root elsewhere"
    try:
        found = read_json(root / "shapes.json", shape=dict)
    except (FileNotFoundError, BadInput):
        raise BadInput(f"{root} holds something other than shapes (no valid shapes.json): {remedy}") from None
    if found == settings:
        return True
    keys = [key for key in settings | found if found.get(key) != settings.get(key)]
    differs = ", ".join(f"{key} is {found.get(key)}, not {settings.get(key)}" for key in keys)
    raise BadInput(f"{root} holds shapes with other settings ({differs}): {remedy}")


def _write_tree(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "JPEGImages").mkdir(parents=True)
    ends = np.cumsum([settings[f"num_{split}"] for split in ("train", "val", "test")]).tolist()

    def write(index: int) -> Labelled:
        image, objects = draw_sample(index, settings)
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        name = f"{index:06d}.jpg"
        (folder / "JPEGImages" / name).write_bytes(jpeg.tobytes())
        height, width, _ = image.shape
        return Labelled(name, width, height, [(name, False, *box) for name, box in objects])

    images = list(thread_map(write, range(ends[-1]), description="drawing shapes"))
    write_voc(folder, {"train": images[: ends[0]], "val": images[ends[0] : ends[1]], "test": images[ends[1] :]}, ())
    put(folder / "ImageSets" / "Main" / "trainval.txt", "".join(f"{image.id}\n" for image in images[: ends[1]]))
    (folder / "shapes.json").write_text(json.dumps(settings, indent=2) + "\n")


def draw_sample(index: int, settings: dict[str, Any]) -> tuple[Image, list[Object]]:
    """Image `index` of the data set and the objects on it."""
    seed = settings["seed"]
    rng = np.random.default_rng([seed, index])
    sides = rng.integers(settings["min_side"], settings["max_side"], size=2, endpoint=True)
    height, width = int(sides[0]), int(sides[1])
    image = _background(rng, height, width)
    several = rng.random() < settings["multi_object_fraction"]
    count = int(rng.integers(2, 4)) if several else 1
    # Every run of len(SHAPE_CLASSES) images shows each class once: small splits are balanced too.
    block, place = divmod(index, len(SHAPE_CLASSES))
    first = int(np.random.default_rng([seed, block, 1]).permutation(len(SHAPE_CLASSES))[place])
    names = [SHAPE_CLASSES[i] for i in (first, *rng.integers(len(SHAPE_CLASSES), size=count - 1))]
    objects: list[Object] = []
    for name in names:
        size = rng.uniform(0.2, 0.45 if several else 0.75) * min(height, width)
        objects.append((name, _paint_object(rng, image, name, size, [box for _, box in objects])))
    return image, objects


def _background(rng: np.random.Generator, height: int, width: int) -> Image:
    """A smooth random texture [height, width, 3] under lines, open arcs and speckles."""

    def waves(cells: int, channels: int, strength: float) -> NDArray[np.float32]:
        grid = rng.uniform(-strength, strength, (cells, cells, channels)).astype(np.float32)
        smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(smooth, np.float32).reshape(height, width, channels)

    def point() -> tuple[int, int]:
        return int(rng.integers(width)), int(rng.integers(height))

    def colour() -> tuple[float, ...]:  # that of some place, altered: clutter is softer than objects
        x, y = point()
        return tuple(np.clip(image[y, x] + rng.uniform(-40, 40, 3), 0, 255).tolist())

    light = rng.uniform(50, 205) + waves(int(rng.integers(2, 5)), 1, rng.uniform(10, 50))
    light += waves(int(rng.integers(8, 25)), 1, rng.uniform(0, 25))
    light += rng.integers(0, 256, (height, width, 1), dtype=np.uint8) * np.float32(rng.uniform(0, 0.12))
    tint = rng.uniform(-25, 25, 3).astype(np.float32) + waves(int(rng.integers(2, 5)), 3, rng.uniform(5, 25))
    image = np.clip(light + tint, 0, 255).astype(np.uint8)
    side = min(height, width)
    for _ in range(rng.integers(2, 7)):
        cv2.line(image, point(), point(), colour(), int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(rng.integers(1, 5)):  # open: at most 200 degrees
        radii = (int(rng.uniform(0.05, 0.4) * side), int(rng.uniform(0.05, 0.4) * side))
        turn, start, extent = rng.uniform(0, 360), rng.uniform(0, 360), rng.uniform(40, 200)
        thickness = int(rng.integers(1, 3))
        cv2.ellipse(image, point(), radii, turn, start, start + extent, colour(), thickness, cv2.LINE_AA)
    specks = int(rng.integers(0, 60))
    ys, xs = rng.integers(height, size=specks), rng.integers(width, size=specks)
    image[ys, xs] = rng.integers(256, size=(specks, 3))
    return image


def _paint_object(
    rng: np.random.Generator, image: Image, name: str, size: float, taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Paint one object of a class, wholly inside `image` and clear of the `taken` boxes where there is room.

    The longer side of its box is `size` px. Returns the tight box of the painted pixels, 0-based, end exclusive.
    """
    angle, stretch = rng.uniform(-TILT, TILT), np.exp(rng.uniform(-0.15, 0.15))
    for _ in range(40):
        cover = _mask(name, size, angle, stretch)
        height, width = cover.shape
        x1 = int(rng.integers(image.shape[1] - width, endpoint=True))
        y1 = int(rng.integers(image.shape[0] - height, endpoint=True))
        x2, y2 = x1 + width, y1 + height
        if not any(x1 < b[2] and b[0] < x2 and y1 < b[3] and b[1] < y2 for b in taken):
            break
        size = max(size * 0.95, 0.2 * min(image.shape[:2]))
    patch = image[y1:y2, x1:x2]
    alpha = (cover / np.float32(255))[..., None]
    patch[:] = np.rint(patch + alpha * (_texture(rng, patch) - patch))
    return x1, y1, x2, y2


def _mask(name: str, size: float, angle: float, stretch: float) -> NDArray[np.uint8]:
    """Coverage of a shape, 0 to 255, [h, w] cut to the visible pixels; the longer side is near `size` px."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outlines = [outline * (stretch, 1 / stretch) @ turn for outline in _OUTLINES[name]]
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    scale = size / (high - low).max()
    width, height = (int(side) + 1 for side in (high - low) * scale)
    canvas = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    for outline, ink in zip(outlines, (255, 0), strict=False):
        cv2.fillPoly(canvas, [((outline - low) * scale * SUPERSAMPLE).astype(np.int32)], (ink,))
    cover = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    cover[cover < VISIBLE] = 0
    x, y, w, h = cv2.boundingRect(cover)
    return np.asarray(cover[y : y + h, x : x + w], np.uint8)


def _texture(rng: np.random.Generator, patch: Image) -> NDArray[np.float32]:
    """Colours [h, w, 3] for an object on `patch`: stripes, checks, noise or plain, shaded."""
    height, width = patch.shape[:2]
    around = patch.mean(axis=(0, 1))
    choices = rng.uniform(10, 245, (CANDIDATES, 3))
    distance = np.abs(choices - around).mean(axis=1)
    enough = np.flatnonzero(distance > 75)  # the first that a person sees, not the best: some stay hard
    base = choices[enough[0] if enough.size else distance.argmax()]
    second = base + (base - around) * rng.uniform(-0.35, 0.35) + rng.uniform(-20, 20, 3)
    angle, side = rng.uniform(0, 2 * np.pi), max(height, width)
    x, y = np.arange(width, dtype=np.float32) / side, np.arange(height, dtype=np.float32)[:, None] / side
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind, pitch = rng.integers(4), rng.uniform(12, 30)
    if kind == 0:  # stripes
        weight = np.sin(across * pitch) * 2
    elif kind == 1:  # checks
        weight = np.sin(across * pitch) * np.sin(along * pitch) * 4
    elif kind == 2:  # noise
        cells = rng.uniform(-2, 2, (9, 9)).astype(np.float32)
        weight = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        weight = np.full((height, width), -1.0)
    mix = np.clip(weight / 2 + 0.5, 0, 1)[..., None]
    shade = 1 + (across - across.mean())[..., None] * rng.uniform(-0.4, 0.4)
    return np.asarray(np.clip((base + mix * (second - base)) * shade, 0, 255), np.float32)


def _star(tips: int, inner: float) -> NDArray[np.float64]:
    """Outline [2 * tips, 2]: radius 1 at the tips, `inner` between them."""
    angle = np.arange(2 * tips) * np.pi / tips
    radius = np.where(np.arange(2 * tips) % 2, inner, 1.0)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


_CIRCLE = _star(32, 1.0)
_ARM = np.array([(-1, -0.3), (-1, 0.3), (-0.3, 0.3)])  # a quarter of the cross
_QUARTER = np.array([(0, -1), (1, 0)])
# Class -> outlines [N, 2] of any scale; a second one is cut out of the first.
_OUTLINES: dict[str, list[NDArray[np.float64]]] = {
    "circle": [_CIRCLE],
    "crescent": [_CIRCLE, _CIRCLE * 0.85 + (0.5, 0)],
    "cross": [np.concatenate([_ARM @ np.linalg.matrix_power(_QUARTER, turns) for turns in range(4)])],
    "hexagon": [_star(3, 1.0)],
    "ring": [_CIRCLE, _CIRCLE * 0.55],
    "square": [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])],
    "star": [_star(5, 0.42)],
    "triangle": [_star(3, 0.5)],
}
