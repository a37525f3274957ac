import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageColor

from onebox.draw import PREDICTED_COLOUR, TRUE_COLOUR, Mark, draw_grid, draw_marks

GREY = np.full((160, 200, 3), 90, np.uint8)
MIDDLE = (0.3, 0.35, 0.7, 0.75)


def count(picture: NDArray[np.uint8], colour: str) -> int:
    return int((picture == ImageColor.getrgb(colour)).all(axis=2).sum())


def changed(picture: NDArray[np.uint8], original: NDArray[np.uint8] = GREY) -> tuple[int, int, int, int] | None:
    """Extent x1, y1, x2, y2 (px, end exclusive) of what differs from the original."""
    ys, xs = np.nonzero((picture != original).any(axis=2))
    return (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if len(xs) else None


def label_extent(mark: Mark, shape: tuple[int, int] = (160, 200)) -> tuple[int, int, int, int]:
    """Where the label of a mark is: what differs from the same picture without its text."""
    image = np.full((*shape, 3), 90, np.uint8)
    bare = draw_marks(image, [Mark(mark.box, "", mark.colour, mark.label)], width=None)
    extent = changed(draw_marks(image, [mark], width=None), bare)
    assert extent is not None
    return extent


def test_box_is_drawn_where_it_says() -> None:
    picture = draw_marks(GREY, [Mark(MIDDLE, "", TRUE_COLOUR)], width=None)
    assert changed(picture) == (59, 55, 141, 121)  # 60..140, 56..120 and one dark pixel around
    assert (picture[80, 60] == ImageColor.getrgb(TRUE_COLOUR)).all()
    assert (picture[80, 100] == 90).all()  # only the outline


@pytest.mark.parametrize("paper", [TRUE_COLOUR, "#FFFFFF", "#000000"])
def test_box_is_visible_on_any_background(paper: str) -> None:
    image = np.full((160, 200, 3), ImageColor.getrgb(paper), np.uint8)
    picture = draw_marks(image, [Mark(MIDDLE, "", TRUE_COLOUR)], width=None)
    row = picture[80, 50:70].astype(int)
    assert abs(row - row[0]).sum(axis=1).max() > 150


def test_image_given_is_not_changed() -> None:
    image = GREY.copy()
    draw_marks(image, [Mark(MIDDLE, "dog", TRUE_COLOUR)], width=None)
    assert (image == GREY).all()


@pytest.mark.parametrize("width, shape", [(None, (160, 200, 3)), (100, (80, 100, 3)), (300, (240, 300, 3))])
def test_width_keeps_the_proportions(width: int | None, shape: tuple[int, ...]) -> None:
    picture = draw_marks(GREY, [Mark(MIDDLE, "dog", TRUE_COLOUR)], width=width)
    assert picture.shape == shape
    assert picture.dtype == np.uint8


def test_top_label_is_above_and_bottom_label_below() -> None:
    assert label_extent(Mark(MIDDLE, "dog", TRUE_COLOUR, "top"))[3] <= 56
    assert label_extent(Mark(MIDDLE, "dog", TRUE_COLOUR, "bottom"))[1] >= 120


@pytest.mark.parametrize("label", ["top", "bottom"])
@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 1, 1),
        (0, 0, 0.2, 0.1),
        (0.9, 0.9, 1, 1),
        (-0.5, -0.4, 1.6, 1.5),
        (0.95, 0, 1.2, 0.05),
        (-math.inf, 0.4, math.inf, 0.6),
    ],
)
def test_label_is_whole_also_at_the_border(box: tuple[float, ...], label: str) -> None:
    free = label_extent(Mark(MIDDLE, "dog 0.93", TRUE_COLOUR))
    x1, y1, x2, y2 = label_extent(Mark(box, "dog 0.93", TRUE_COLOUR, label))  # type: ignore[arg-type]
    # A label cut by the border would be smaller; under it the box's own outline may be of its colour.
    assert (x2 - x1, y2 - y1) == pytest.approx((free[2] - free[0], free[3] - free[1]), abs=3)


def test_box_beyond_the_border_shows_its_four_sides() -> None:
    picture = draw_marks(GREY, [Mark((-0.5, -0.5, 1.5, 1.5), "", TRUE_COLOUR)], width=None)
    for side in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert count(side[None], TRUE_COLOUR) == len(side)


def test_long_text_stays_inside_and_is_shortened() -> None:
    words = "a very long class name that no picture has room for " * 3
    x1, _, x2, _ = label_extent(Mark(MIDDLE, words, TRUE_COLOUR))
    assert 100 < x2 - x1 <= 200
    long, longer = (draw_marks(GREY, [Mark(MIDDLE, text, TRUE_COLOUR)], width=None) for text in (words, words * 2))
    assert (long == longer).all()  # both are cut at the same letter


@pytest.mark.parametrize("top", ["top", "bottom"])
@pytest.mark.parametrize("box", [MIDDLE, (0, 0, 1, 1), (0, 0, 0.1, 0.1), (0.9, 0.9, 1, 1)])
def test_labels_do_not_cover_each_other(box: tuple[float, ...], top: str) -> None:
    first = Mark(box, "dog", TRUE_COLOUR, top)  # type: ignore[arg-type]
    second = Mark(box, "dog 0.41", PREDICTED_COLOUR, "top")
    alone = draw_marks(GREY, [first], width=None)
    both = draw_marks(GREY, [first, second], width=None)
    x1, y1, x2, y2 = label_extent(first)
    # The second box's outline may pass under the first label, so only the label itself must be the same.
    inner = np.s_[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
    assert (alone[inner] == both[inner]).all()
    assert count(both, PREDICTED_COLOUR) > 300  # and the second has a label of its own


@pytest.mark.parametrize(
    "box",
    [
        (math.nan,) * 4,
        (0.2, 0.2, math.nan, 0.5),
        (0.8, 0.2, 0.3, 0.9),
        (0.3, 0.9, 0.8, 0.2),
        (0.4, 0.4, 0.4, 0.4),
        (1.5, 1.5, 2, 2),
        (),
    ],
)
def test_invalid_box_shows_only_its_label(box: tuple[float, ...]) -> None:
    assert changed(draw_marks(GREY, [Mark(box, "", PREDICTED_COLOUR)], width=None)) is None
    picture = draw_marks(GREY, [Mark(box, "cat 0.41", PREDICTED_COLOUR, "bottom")], width=None)
    x1, y1, x2, y2 = changed(picture) or (0, 0, 200, 160)
    assert y2 - y1 < 30 and x2 - x1 < 120
    assert count(picture, PREDICTED_COLOUR) > 300


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (9, 9)])
def test_tiny_pictures_do_not_raise(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    marks = [
        Mark((0, 0, 1, 1), "dog", TRUE_COLOUR),
        Mark((0.5, 0.5, 0.51, 0.51), "dog", PREDICTED_COLOUR, "bottom"),
    ]
    assert draw_marks(image, marks, width=None).shape == image.shape


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_other_arrays_are_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_marks(image, [], width=None)


def test_true_and_predicted_differ_in_lightness_or_blue_yellow() -> None:
    # Red-green blindness leaves blue against yellow: that difference must be large.
    true, predicted = (np.array(ImageColor.getrgb(colour), float) for colour in (TRUE_COLOUR, PREDICTED_COLOUR))
    blueness = [colour[2] - colour[:2].mean() for colour in (true, predicted)]
    assert blueness[0] - blueness[1] > 200


def tile(height: int, width: int, value: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def test_grid_shows_every_tile_whole_and_in_order() -> None:
    tiles = [tile(60 + 10 * i, 100 - 5 * i, 20 + i) for i in range(5)]
    grid = draw_grid(tiles, columns=2, legend=[("true", TRUE_COLOUR)], title="epoch 3")
    places = []
    for i, each in enumerate(tiles):
        ys, xs = np.nonzero((grid == 20 + i).all(axis=2))
        assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == each.shape[:2]
        assert len(ys) >= each.shape[0] * each.shape[1]
        places.append((ys.mean(), xs.mean()))
    assert places[0][1] < places[1][1] and places[0][0] < places[2][0] and places[2][0] < places[4][0]
    assert places[0][1] == pytest.approx(places[2][1], abs=1)


def test_grid_shows_title_and_legend_above_the_tiles() -> None:
    tiles = [tile(60, 300, 10)]
    legend = [("true", TRUE_COLOUR), ("predicted", PREDICTED_COLOUR)]
    plain = draw_grid(tiles, columns=4, legend=[], title="")
    grid = draw_grid(tiles, columns=4, legend=legend, title="epoch 3")
    assert count(grid, TRUE_COLOUR) > 50 and count(grid, PREDICTED_COLOUR) > 50
    assert grid.shape[0] > plain.shape[0] and grid.shape[1] == plain.shape[1]
    assert (grid[-plain.shape[0] // 2 :] == plain[-plain.shape[0] // 2 :]).all()


def test_grid_header_fits_a_narrow_grid() -> None:
    legend = [("a long explanation of a colour", TRUE_COLOUR), ("another one", PREDICTED_COLOUR)]
    grid = draw_grid([tile(90, 90, 10)], columns=1, legend=legend, title="a title longer than the grid is wide")
    assert count(grid, TRUE_COLOUR) > 50 and count(grid, PREDICTED_COLOUR) > 50
    assert (grid[:, -8:] == 255).all()  # the margin stays free


def test_grid_without_tiles_still_has_its_title() -> None:
    assert (draw_grid([], columns=3, legend=[], title="nothing yet") < 100).any()


def test_grid_needs_a_column() -> None:
    with pytest.raises(ValueError, match="column"):
        draw_grid([], columns=0, legend=[], title="")


def test_drawing_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, onebox.draw; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
