"""What the images of the embedded data set show: one textured shape or several on clutter, and the boxes of them."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SHAPE_CLASSES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross", "crescent", "hexagon")

TILT = 0.25  # radians: the most an object leans to either side; a full turn makes the classes much harder to tell
SUPERSAMPLE = 4  # a mask is drawn this much larger and averaged down: anti-aliased edges
VISIBLE = 32  # of 255: pixels that an object covers less than this stay background and out of its box
CANDIDATES = 12  # colours drawn for an object, to find one that stands out

Image = NDArray[np.uint8]  # [H, W, 3], BGR as cv2 writes it
Object = tuple[str, tuple[int, int, int, int]]  # class, box (x1, y1, x2, y2) in px, 0-based, end exclusive


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
    """Paint one object, wholly inside `image` and clear of the `taken` boxes where there is room.

    Args:
        rng: where class-independent looks (rotation, place, colour, texture) come from.
        image: [H, W, 3], changed in place.
        name: one of SHAPE_CLASSES.
        size: longer side of the object's box, px.
        taken: boxes of the objects painted before.

    Returns:
        The tight box of the painted pixels, 0-based, end exclusive.
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
