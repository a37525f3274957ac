import numpy as np
import pytest
from PIL import Image

from onebox.data.resize import INTERPOLATIONS, Resize
from onebox.errors import BadInput

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("height, width", [(375, 500), (20, 10), (64, 64), (1, 1), (5, 300)])
def test_every_image_becomes_a_square(interpolation, height, width):
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = Resize(64, interpolation)(image)
    assert (resized.shape, resized.dtype, resized.flags.c_contiguous) == ((64, 64, 3), np.uint8, True)
    flat = Resize(64, interpolation)(np.full_like(image, 77))
    assert (flat == 77).all()


@pytest.mark.parametrize("name, method", [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("size", [100, 224, 640])
def test_antialiased_is_what_pretrained_weights_saw(name, method, size):
    noise = RNG.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    for image in (SMOOTH, noise):
        wanted = np.asarray(Image.fromarray(image).resize((size, size), method))
        apart = np.abs(Resize(size, name)(image).astype(int) - wanted)
        assert apart.max() <= 3 and apart.mean() < 0.2  # both round in between


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_only_filters_see_all_pixels(interpolation):
    noise = RNG.integers(0, 256, (640, 640, 3), dtype=np.uint8)
    spread = Resize(64, interpolation)(noise).std()  # 74 before; over the 100 pixels of each of the result, 7
    assert (spread < 15) == (interpolation in ("area", "bilinear", "bicubic"))


def test_an_unknown_interpolation_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match=r"^interpolation must be one of area, bilinear, .*, not lanczos$"):
        Resize(64, "lanczos")
