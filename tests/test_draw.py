import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageColor

from onebox.draw import PREDICTED_COLOUR, TRUE_COLOUR, Mark, draw_grid, draw_marks

MIDDLE = (0.3, 0.35, 0.7, 0.75)


def drawn(*marks, size=(160, 200), paper="#5A5A5A"):
    """A picture of one colour, with marks, as [H, W, 3]."""
    image = np.full((*size, 3), ImageColor.getrgb(paper), np.uint8)
    return np.array(draw_marks(image, marks, width=size[1]))


def count(picture, colour) -> int:
    return int((picture == ImageColor.getrgb(colour)).all(axis=2).sum())


def extent(mask):
    """x1, y1, x2, y2 (px, end exclusive) of what is true."""
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("paper", [TRUE_COLOUR, "#FFFFFF", "#000000"])
def test_a_box_is_drawn_where_it_says_and_seen_on_any_background(paper):
    picture = drawn(Mark(MIDDLE, "", TRUE_COLOUR), paper=paper)
    assert (picture[80, 60] == ImageColor.getrgb(TRUE_COLOUR)).all()  # the box is 60..140, 56..120
    assert (picture[80, 63:137] == ImageColor.getrgb(paper)).all()
    row = picture[80, 50:70].astype(int)
    assert abs(row - row[0]).sum(axis=1).max() > 150


def test_a_box_beyond_the_border_shows_its_four_sides():
    picture = drawn(Mark((-0.5, -math.inf, 1.5, 1.5), "", TRUE_COLOUR))
    for side in (picture[-1], picture[30:, 0], picture[30:, -1]):
        assert count(side[None], TRUE_COLOUR) == len(side)


@pytest.mark.parametrize(
    "box", [(math.nan,) * 4, (0.2, 0.2, math.nan, 0.5), (0.8, 0.2, 0.3, 0.9), (0.4, 0.4, 0.4, 0.4), (1.5, 1.5, 2, 2)]
)
def test_an_invalid_box_shows_only_its_label(box):
    x1, y1, x2, y2 = extent((drawn(Mark(box, "cat 0.41", PREDICTED_COLOUR, below=True)) != 90).any(axis=2))
    assert y2 - y1 < 30 and x2 - x1 < 120


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("box", [MIDDLE, (0, 0, 1, 1), (0, 0, 0.2, 0.1), (0.9, 0.9, 1, 1), (-0.5, -0.4, 1.6, 1.5)])
def test_labels_are_whole_and_do_not_cover_each_other(box, below):
    first, second = Mark(box, "dog", TRUE_COLOUR, below), Mark(box, "dog 0.41", PREDICTED_COLOUR)
    free = [count(drawn(mark._replace(box=(math.nan,) * 4)), mark.colour) for mark in (first, second)]
    both = drawn(first, second)
    assert count(both, TRUE_COLOUR) >= free[0] and count(both, PREDICTED_COLOUR) >= free[1]


def test_labels_are_above_or_below_their_box():
    above, below = (extent((drawn(Mark(MIDDLE, "dog", TRUE_COLOUR, it)) != 90).any(axis=2)) for it in (False, True))
    assert above[1] < 45 and above[3] == 121
    assert below[1] == 55 and below[3] > 131


def test_long_text_stays_inside_and_is_shortened():
    words = "a very long class name that no picture has room for " * 3
    assert (drawn(Mark(MIDDLE, words, TRUE_COLOUR)) == drawn(Mark(MIDDLE, words * 2, TRUE_COLOUR))).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (9, 9), (16, 3000), (3000, 16)])
def test_a_picture_of_any_shape_is_drawn_no_higher_than_twice_its_width(size):
    marks = [Mark((0, 0, 1, 1), "dog", TRUE_COLOUR), Mark((0.5, 0.5, 0.51, 0.51), "dog", PREDICTED_COLOUR, below=True)]
    height, width = size
    assert drawn(*marks, size=size).shape == (min(height, 2 * width), width, 3)


def test_a_grid_shows_title_legend_and_every_tile_whole_and_in_order():
    tiles = [Image.new("RGB", (100, 60 + 10 * i), (20 + i,) * 3) for i in range(5)]
    legend = [("a long explanation of a colour", TRUE_COLOUR), ("predicted", PREDICTED_COLOUR)]
    grid = np.array(draw_grid(tiles, columns=2, legend=legend, title="a title longer than the grid is wide" * 2))
    places = [extent((grid == 20 + i).all(axis=2)) for i in range(5)]
    assert [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in places] == [tile.size for tile in tiles]
    assert places[0][0] == places[2][0] == places[4][0] < places[1][0] == places[3][0]
    assert places[0][3] < places[2][1] and places[2][3] < places[4][1]
    for colour in (TRUE_COLOUR, PREDICTED_COLOUR):
        assert extent((grid == ImageColor.getrgb(colour)).all(axis=2))[3] < places[0][1]
    assert (grid[:, -8:] == 255).all()  # the margin stays free


def test_a_grid_without_tiles_still_has_its_title():
    assert (np.array(draw_grid([], columns=3, legend=[], title="nothing yet")) < 100).any()


def test_drawing_needs_neither_torch_nor_matplotlib():
    code = "import sys, onebox.draw; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
