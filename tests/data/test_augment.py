import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from onebox.train import build_data

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
    images, boxes = pipeline.augment(image[None], box[None], seed, epoch, [row])
    return images[0], boxes[0]


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
    images, boxes = one.augment(np.stack([image] * 20), np.stack([box] * 20), 0, 1, rows)
    for row in reversed(rows):
        image_b, box_b = augment(other, image, box, 0, 1, row)
        np.testing.assert_array_equal(images[row], image_b)
        np.testing.assert_array_equal(boxes[row], box_b)
    assert len({after.tobytes() for after in images}) > 1
    for key in [(1, 1), (0, 2)]:  # another seed, another epoch
        again, _ = one.augment(np.stack([image] * 20), np.stack([box] * 20), *key, rows)
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


NO_COLOUR = ["augment.brightness=0", "augment.contrast=0", "augment.saturation=0"]


def test_mirroring_twice_gives_the_image_back(transform):
    image, box = scene()
    pipeline = transform("augment=batched_flip", "augment.flip=1", *NO_COLOUR)
    once, moved = augment(pipeline, image, box, 0, 0, 0)
    np.testing.assert_array_equal(once, image[:, ::-1])
    np.testing.assert_allclose(moved, [0.4, 0.2, 0.7, 0.6], atol=1e-6)
    twice, back = augment(pipeline, once, moved, 0, 0, 0)
    np.testing.assert_array_equal(twice, image)
    np.testing.assert_allclose(back, box, atol=1e-6)


def test_mirroring_by_the_affine_painter_is_exact(transform):
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    box = np.array([0.1, 0.2, 0.4, 0.9], dtype=np.float32)
    # A shift too small to see takes the way through the affine painter.
    still = ["augment.scale=[1,1]", "augment.stretch=1", "augment.translate=1e-9"]
    after, _ = augment(transform("augment=batched_affine", "augment.flip=1", *still), image, box, 0, 0, 0)
    np.testing.assert_array_equal(after, image[:, ::-1])


def test_batched_and_albumentations_paint_the_same_zoom(transform):
    import albumentations as A

    image, box = scene((0.3, 0.2, 0.6, 0.7))
    zoom = ["augment.flip=0", "augment.scale=[1.25,1.25]", "augment.stretch=1", "augment.translate=0", "augment.fill=0"]
    mine, my_box = augment(transform("augment=batched_affine", *zoom), image, box, 0, 0, 0)
    params = A.BboxParams(format="albumentations", label_fields=[])
    theirs = A.Compose([A.Affine(scale=1.25, p=1.0)], bbox_params=params)(image=image, bboxes=box[None])
    assert np.abs(mine.astype(int) - theirs["image"].astype(int)).mean() < 2  # half a pixel at the edges
    np.testing.assert_allclose(my_box, theirs["bboxes"][0], atol=0.011)


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
    from onebox.data.augment import _uniform

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
