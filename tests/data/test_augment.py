import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from onebox.train import build_data

OPTIONS = ["flip", "crop", "strong"]


def scene(box=(0.3, 0.2, 0.6, 0.6)):
    """A 100 px image, black but for its object, and the object's box."""
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    x1, y1, x2, y2 = (round(edge * 100) for edge in box)
    image[y1:y2, x1:x2] = 255
    return image, np.array(box, dtype=np.float32)


@pytest.fixture
def transform(composed):
    return lambda *overrides: instantiate(composed(*overrides).augment, _convert_="all")


def test_the_notebooks_pipeline_gives_its_box(transform):
    # 500 x 333 px, xywh (39, 119, 454, 133) becomes (7.8, 35.7357, 90.8, 39.9399) at 100 x 100 px.
    box = np.array([39 / 500, 119 / 333, 493 / 500, 252 / 333], dtype=np.float32)
    pipeline = transform("augment=seed")
    image = pipeline.resize(np.zeros((333, 500, 3), dtype=np.uint8))
    _, after = pipeline.augment(image, box, (0, 0, 0))
    assert image.shape == (100, 100, 3)
    xywh = np.array([after[0], after[1], after[2] - after[0], after[3] - after[1]]) * 100
    np.testing.assert_allclose(xywh, [7.8, 35.73573573573574, 90.8, 39.93993993993994], rtol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_draw_depends_on_its_seed_and_on_nothing_else(transform, option):
    image, box = scene()
    one, other = transform(f"augment={option}"), transform(f"augment={option}")
    for _ in range(5):
        other.augment(image, box, (9, 9, 9))  # what was drawn before must not matter
    first = [one.augment(image, box, (0, 1, row)) for row in range(20)]
    second = [other.augment(image, box, (0, 1, row)) for row in reversed(range(20))][::-1]
    for (image_a, box_a), (image_b, box_b) in zip(first, second, strict=True):
        np.testing.assert_array_equal(image_a, image_b)
        np.testing.assert_array_equal(box_a, box_b)
    assert len({after.tobytes() for _, after in first}) > 1


@pytest.mark.parametrize("option", OPTIONS)
def test_the_box_stays_on_the_object(transform, option):
    image, box = scene()
    pipeline = transform(f"augment={option}")
    for row in range(100):
        after, moved = pipeline.augment(image, box, (0, 0, row))
        assert after.shape == image.shape
        assert (moved >= 0).all()
        assert (moved <= 1).all()
        ys, xs = np.nonzero(after.max(axis=2) > 127)
        seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 100
        np.testing.assert_allclose(moved, seen, atol=0.025)


def test_a_draw_that_loses_the_box_is_drawn_again_and_at_last_given_up(transform):
    image, box = scene((0.0, 0.0, 0.1, 0.1))
    shift = "augment.transforms=[{_target_:albumentations.Affine,translate_percent:{x:[-0.3,%s],y:0},p:1.0}]"
    sometimes = transform("augment=crop", shift % "0.3")
    for row in range(50):
        _, moved = sometimes.augment(image, box, (0, 0, row))
        assert moved[2] - moved[0] > 0.06  # min_visibility 0.7
    always = transform("augment=crop", shift % "-0.2")
    after, moved = always.augment(image, box, (0, 0, 0))
    np.testing.assert_array_equal(after, image)
    np.testing.assert_array_equal(moved, box)


def test_an_argument_that_albumentations_does_not_know_is_refused(composed):
    cfg = composed("augment.transforms=[{_target_:albumentations.HorizontalFlip,probability:0.5}]")
    with pytest.raises(InstantiationException, match=r"(?s)HorizontalFlip.*'probability'.*augment\.transforms"):
        build_data(cfg)
