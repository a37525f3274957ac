import functools
from unittest import mock

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from onebox.build import build_data
from onebox.data.shapes import SHAPE_CLASSES, VISIBLE, _mask

PER_SAMPLE = ["flip", "crop", "strong"]
BATCHED = ["batched_flip", "batched_affine", "batched_strong"]


def scene(box=(0.3, 0.2, 0.6, 0.6)):
    """A 100 px image, black but for its object, and the object's box."""
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    x1, y1, x2, y2 = (round(edge * 100) for edge in box)
    image[y1:y2, x1:x2] = 255
    return image, np.array(box, dtype=np.float32)


@pytest.fixture
def transform(composed):
    return lambda *overrides: instantiate(composed(*overrides).augment, _convert_="all")


def augment(pipeline, image, box, seed, epoch, row):
    """One sample through the interface for batches."""
    after = pipeline.augment(image[None], box[None], seed, epoch, [row])
    return after.images[0], after.boxes[0]


def extent(image):
    """The visible object's box, at half brightness."""
    ys, xs = np.nonzero(image.max(axis=2) > 150)
    return np.array([xs.min() / 100, ys.min() / 100, (xs.max() + 1) / 100, (ys.max() + 1) / 100])


def test_the_notebooks_pipeline_gives_its_box(transform):
    # 500 x 333 px, xywh (39, 119, 454, 133) becomes (7.8, 35.7357, 90.8, 39.9399) at 100 x 100 px.
    box = np.array([39 / 500, 119 / 333, 493 / 500, 252 / 333], dtype=np.float32)
    pipeline = transform("augment=seed")
    image = pipeline.resize(np.zeros((333, 500, 3), dtype=np.uint8))
    _, after = augment(pipeline, image, box, 0, 0, 0)
    assert image.shape == (100, 100, 3)
    xywh = np.array([after[0], after[1], after[2] - after[0], after[3] - after[1]]) * 100
    np.testing.assert_allclose(xywh, [7.8, 35.73573573573574, 90.8, 39.93993993993994], rtol=1e-5)


@pytest.mark.parametrize("option", PER_SAMPLE + BATCHED)
def test_a_draw_depends_on_its_key_and_on_nothing_else(transform, option):
    image, box = scene()
    one, other = transform(f"augment={option}"), transform(f"augment={option}")
    for _ in range(5):
        augment(other, image, box, 9, 9, 9)  # what was drawn before must not matter
    rows = list(range(20))
    images, boxes, *_ = one.augment(np.stack([image] * 20), np.stack([box] * 20), 0, 1, rows)
    for row in reversed(rows):
        image_b, box_b = augment(other, image, box, 0, 1, row)
        np.testing.assert_array_equal(images[row], image_b)
        np.testing.assert_array_equal(boxes[row], box_b)
    assert len({after.tobytes() for after in images}) > 1
    for key in [(1, 1), (0, 2)]:  # another seed, another epoch
        again, *_ = one.augment(np.stack([image] * 20), np.stack([box] * 20), *key, rows)
        assert not np.array_equal(images, again)


@pytest.mark.parametrize("option", PER_SAMPLE + BATCHED)
def test_the_box_stays_on_the_object(transform, option):
    image, box = scene()
    pipeline = transform(f"augment={option}")
    for row in range(200):
        after, moved = augment(pipeline, image, box, 0, 0, row)
        assert after.shape == image.shape
        assert (moved >= 0).all()
        assert (moved <= 1).all()
        if np.any(after.max(axis=2) > 150):  # not when colour made it too dark to find
            np.testing.assert_allclose(moved, extent(after), atol=0.025)


@pytest.mark.parametrize("option", ["crop", "batched_affine"])
def test_most_of_the_object_stays_in_the_image(transform, option):
    image, box = scene((0.0, 0.0, 0.1, 0.1))  # in the corner, where shifts lose it
    pipeline = transform(f"augment={option}")
    kept = []
    for row in range(200):
        _, moved = augment(pipeline, image, box, 0, 0, row)
        kept.append((moved[2] - moved[0]) * (moved[3] - moved[1]))
    assert min(kept) > 0.7 * 0.01 * 0.8**2 * 0.99  # min_visibility of the object at the smallest zoom
    assert max(kept) < 0.01 * 1.3**2 * 1.01


def test_a_draw_that_always_loses_the_box_is_given_up(transform):
    image, box = scene((0.0, 0.0, 0.1, 0.1))
    away = "[{_target_:albumentations.Affine,translate_percent:{x:[-0.3,-0.2],y:0},p:1.0}]"
    for pipeline in (
        transform("augment=crop", f"augment.transforms={away}"),
        # A zoom of 20 leaves no draw in which a tenth of the box is to be seen.
        transform("augment=batched_affine", "augment.flip=0", "augment.scale=[20,20]", "augment.translate=0"),
    ):
        after, moved = augment(pipeline, image, box, 0, 0, 0)
        np.testing.assert_array_equal(after, image)
        np.testing.assert_allclose(moved, box, atol=1e-6)
        counts = pipeline.augment(image[None], box[None], 0, 0, [0])[2:]
        assert counts == (0, 1)  # redrawn, fallback


NO_COLOUR = ["augment.brightness=0", "augment.contrast=0", "augment.saturation=0"]


def floats(low, high):
    return st.floats(low, high, width=32, allow_subnormal=False)


@st.composite
def boxes(draw):
    """A box of at least 5 % of the image's side."""
    (x1, x2), (y1, y2) = (sorted(draw(st.tuples(floats(0, 0.9375), floats(0, 0.9375)))) for _ in "xy")
    return np.array([x1, y1, x2 + 0.0625, y2 + 0.0625], dtype=np.float32)


def noise(size=100):
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


@functools.cache
def built(*overrides):
    with initialize_config_module("onebox.conf", version_base="1.3"):
        return instantiate(compose("train", overrides=list(overrides)).augment, _convert_="all")


MIRRORS = {
    "per sample": ("augment=flip", "augment.transforms=[{_target_:albumentations.HorizontalFlip,p:1.0}]"),
    "batched": ("augment=batched_flip", "augment.flip=1", *NO_COLOUR),
}


@pytest.mark.parametrize("kind", MIRRORS)
@given(box=boxes())
@settings(deadline=None)  # the first example builds the transforms
def test_mirroring_twice_gives_image_and_box_back(kind, box):
    pipeline, image = built(*MIRRORS[kind]), noise()
    once, moved = augment(pipeline, image, box, 0, 0, 0)
    np.testing.assert_array_equal(once, image[:, ::-1])
    np.testing.assert_allclose(moved, [1 - box[2], box[1], 1 - box[0], box[3]], atol=1e-6)
    twice, back = augment(pipeline, once, moved, 0, 0, 0)
    np.testing.assert_array_equal(twice, image)
    np.testing.assert_allclose(back, box, atol=1e-6)


@pytest.mark.parametrize("option", PER_SAMPLE + BATCHED)
@given(box=boxes(), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000), row=st.integers(0, 10**7))
@settings(deadline=None)  # the first example builds the transforms
def test_every_box_stays_inside_the_image_and_keeps_an_area(option, box, seed, epoch, row):
    pipeline = built(f"augment={option}")
    image = noise(pipeline.resize_before_augment.size)
    after, moved = augment(pipeline, image, box, seed, epoch, row)
    assert after.shape == (100, 100, 3)
    assert (moved >= 0).all() and (moved <= 1).all() and (moved[2:] > moved[:2]).all()


@pytest.mark.parametrize("option", PER_SAMPLE + BATCHED)
@given(
    name=st.sampled_from(SHAPE_CLASSES),
    size=floats(0.25, 0.75),
    x=floats(0, 1),
    y=floats(0, 1),
    row=st.integers(0, 10**6),
)
@settings(max_examples=50, deadline=None)
def test_the_box_covers_the_pixels_of_its_shape(option, name, size, x, y, row):
    black = {"augment.fill=0"} if option in BATCHED else {}
    pipeline = built(f"augment={option}", *black)
    side = pipeline.resize_before_augment.size
    cover = (_mask(name, size * side, 0.2, 1.1) >= VISIBLE) * np.uint8(255)  # solid: a faint tip is to be seen as well
    height, width = cover.shape
    left, top = int(x * (side - width)), int(y * (side - height))
    image = np.zeros((side, side, 3), dtype=np.uint8)
    image[top : top + height, left : left + width] = cover[..., None]
    box = np.array([left, top, left + width, top + height], dtype=np.float32) / side
    after, moved = augment(pipeline, image, box, 0, 0, row)
    ys, xs = np.nonzero(after.max(axis=2) > 80)  # above black after any change of contrast
    seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    moved = moved * 100
    assert (seen[:2] >= moved[:2] - 1.5).all() and (seen[2:] <= moved[2:] + 1.5).all()
    if (moved > 0).all() and (moved < 100).all():  # nothing was cut off: the box is tight, but for thin tips
        np.testing.assert_allclose(seen, moved, atol=2.5)


@given(
    box=boxes(),
    flip=st.booleans(),
    zoom=floats(0.75, 1.5),
    stretch=floats(-0.5, 0.5),
    shift=st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
)
@settings(deadline=None)  # the first example builds the transforms
def test_batched_and_albumentations_agree_on_the_same_draw(box, flip, zoom, stretch, shift):
    import albumentations as A

    pipeline = built(
        "augment=batched_affine", f"augment.flip={int(flip)}", "augment.scale=[0.5,2]", "augment.margin=1",
        "augment.stretch=1.2", "augment.translate=0.25", "augment.min_visibility=0.3", "augment.max_redraws=0",
    )  # fmt: skip
    share = np.array(shift) / 100
    draw = [0, 0, 0, 0, np.log(zoom / 0.5) / np.log(4), stretch + 0.5, *(share / 0.25 + 1) / 2]
    image = cv2.GaussianBlur(noise(), (5, 5), 0)
    with mock.patch("onebox.data.batched._uniform", return_value=np.array([draw])):
        mine = pipeline.augment([image], box[None], 0, 0, [0])
    zooms = {"x": float(zoom * 1.2**stretch), "y": float(zoom * 1.2**-stretch)}
    theirs = A.Compose(
        [
            A.HorizontalFlip(p=float(flip)),
            A.Affine(
                scale={axis: (value, value) for axis, value in zooms.items()},
                translate_px={"x": (shift[0], shift[0]), "y": (shift[1], shift[1])},
                keep_ratio=False, fill=114, p=1.0,
            ),
        ],
        bbox_params=A.BboxParams(format="albumentations", label_fields=[], min_visibility=0.3, clip=True),
    )(image=image, bboxes=box[None])  # fmt: skip
    if mine.fallback:
        assert len(theirs["bboxes"]) == 0
        return
    np.testing.assert_allclose(mine.boxes, theirs["bboxes"], atol=1e-5)
    difference = np.abs(mine.images[0].astype(int) - theirs["image"])
    assert difference.mean() < 1.5 and np.percentile(difference, 99) <= 12


def test_mirroring_by_the_affine_painter_is_exact(transform):
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    box = np.array([0.1, 0.2, 0.4, 0.9], dtype=np.float32)
    # A shift too small to see takes the way through the affine painter.
    still = ["augment.scale=[1,1]", "augment.stretch=1", "augment.translate=1e-9"]
    after, _ = augment(transform("augment=batched_affine", "augment.flip=1", *still), image, box, 0, 0, 0)
    np.testing.assert_array_equal(after, image[:, ::-1])


def test_colour_keeps_the_picture_and_changes_its_tone(transform):
    image = np.random.default_rng(0).integers(60, 190, (100, 100, 3), dtype=np.uint8)
    box = np.array([0.1, 0.2, 0.4, 0.9], dtype=np.float32)
    pipeline = transform("augment=batched_flip", "augment.flip=0")
    means = []
    for row in range(30):
        after, same = augment(pipeline, image, box, 0, 0, row)
        np.testing.assert_array_equal(same, box)
        assert np.corrcoef(after.ravel(), image.ravel())[0, 1] > 0.9
        means.append(after.mean())
    assert np.std(means) > 3


def test_uniform_numbers_are_uniform_and_independent():
    from onebox.data.batched import _uniform

    drawn = _uniform(0, 0, range(2000), 12)
    assert 0 <= drawn.min() < drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(drawn.var(0), 1 / 12, atol=0.005)
    correlation = np.corrcoef(np.concatenate([drawn, _uniform(0, 1, range(2000), 12)], axis=1).T)
    assert np.abs(correlation - np.eye(24)).max() < 0.1


def test_an_argument_that_albumentations_does_not_know_is_refused(composed):
    cfg = composed("augment.transforms=[{_target_:albumentations.HorizontalFlip,probability:0.5}]")
    with pytest.raises(InstantiationException, match=r"(?s)HorizontalFlip.*'probability'.*augment\.transforms"):
        build_data(cfg)
