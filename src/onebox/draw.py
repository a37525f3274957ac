"""Pictures with boxes and names on them, and a grid of such pictures. Pillow only: it works without torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

# Blue and orange as in Okabe and Ito's colour-blind-safe palette (2008), lighter, to be seen on photographs.
TRUE_COLOUR = "#4CB5F5"
PREDICTED_COLOUR = "#FFA41B"
LEGEND = [("true", TRUE_COLOUR), ("predicted, with its probability", PREDICTED_COLOUR)]
PAPER, INK, OUTLINE = "#FFFFFF", "#22262B", "#101418"
GAP = 12  # px around the tiles of a grid


class Mark(NamedTuple):
    """A box to draw, with its label."""

    # x1, y1, x2, y2 in [0, 1]; what lies outside is clipped, NaN or an empty box shows only the label
    box: Sequence[float]
    text: str  # the label, shortened when it is wider than the picture
    colour: str  # "#RRGGBB", light, as text on it is dark
    below: bool = False  # whether the label is below the box, not above it


def draw_marks(image: NDArray[np.uint8], marks: Sequence[Mark], *, width: int, frame: str | None = None) -> Image.Image:
    """Draw boxes and their labels, the last on top, on a copy of `image`, [H, W, 3] RGB, resized to `width` px.

    `frame` is the colour of a frame around the picture.

    An image that is more than twice as high as wide is squeezed to that.
    """
    height = min(2 * width, max(1, round(image.shape[0] * width / image.shape[1])))
    canvas = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(min(canvas.size) / 110))
    boxes = [(np.clip(mark.box, 0, 1) * (canvas.size * 2)).round().tolist() for mark in marks]
    for mark, box in zip(marks, boxes, strict=True):
        x1, y1, x2, y2 = box
        if x2 > x1 and y2 > y1:
            pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=OUTLINE, width=line + 2)  # sets it off from any background
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=mark.colour, width=line)
        else:
            box[:] = 0, 0, *canvas.size  # where its label goes

    font: Any = ImageFont.load_default(size=max(1, min(max(12, width / 23), canvas.height / 3)))
    padding, height = round(0.4 * font.size), round(1.45 * font.size)
    lowest = max(0, canvas.height - height)
    placed: list[tuple[float, float, int]] = []  # left, right and top edges of labels
    for mark, (x1, y1, _, y2) in zip(marks, boxes, strict=True):
        text = _shortened(mark.text, font, width - 2 * padding)
        length = font.getlength(text) + 2 * padding
        left = max(0, min(x1, width - length))
        wanted = y2 + 1 if mark.below else y1 - height - 1
        tops = sorted(range(lowest + 1), key=lambda top: abs(top - wanted))
        in_reach = [other for start, end, other in placed if left < end and start < left + length]
        top = next((top for top in tops if all(abs(top - other) >= height for other in in_reach)), tops[0])
        placed.append((left, left + length, top))
        pen.rounded_rectangle((left, top, left + length - 1, top + height - 1), radius=height / 5, fill=mark.colour)
        pen.text((left + padding, top + height / 2), text, fill=INK, font=font, anchor="lm")
    return canvas if frame is None else ImageOps.expand(canvas, max(3, width // 50), frame)


def draw_grid(
    tiles: Sequence[Image.Image], *, columns: int, legend: Sequence[tuple[str, str]], title: str
) -> Image.Image:
    """Lay pictures out in rows of at most `columns`, under a title and a legend of texts and their colours."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    cell = max((tile.width for tile in tiles), default=320)
    width = GAP + (cell + GAP) * max(1, min(columns, len(tiles)))
    font: Any = ImageFont.load_default(size=min(26, max(13, width / 55)))
    line = round(1.6 * font.size)
    sheet = Image.new("RGB", (width, GAP + (1 + len(legend)) * line + sum(height + GAP for height in heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for text, colour in [(title, ""), *legend]:
        left = GAP
        if colour:
            pen.rounded_rectangle((left, top, left + font.size, top + font.size), radius=font.size / 5, fill=colour)
            left += line
        text = _shortened(text, font, width - GAP - left)
        pen.text((left, top + font.size / 2), text, fill=INK, font=font, anchor="lm")
        top += line
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (GAP + column * (cell + GAP), top + (height - tile.height) // 2))
        top += height + GAP
    return sheet


def draw_matrix(counts: NDArray[np.int64], names: Sequence[str], *, title: str) -> Image.Image:
    """Draw a confusion matrix, [K, K] of true (rows) and predicted classes: the darker, the larger a row's share."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = max(4, min(44, 900 // max(1, len(names))))
    font: Any = ImageFont.load_default(size=max(8, min(14, cell // 2)))
    margin = round(min(160, max([font.getlength(name) for name in names], default=0)) + 2 * GAP) if cell >= 12 else GAP
    top, left, side = margin + 2 * GAP, margin, cell * len(names)
    sheet = Image.new("RGB", (left + side + GAP, top + side + GAP), PAPER)
    blue = 255 - shares[..., None] * (255 - np.array([20, 70, 140]))
    squares = Image.fromarray(blue.round().astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    sheet.paste(squares, (left, top))
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), _shortened(title, font, sheet.width - 2 * GAP), fill=INK, font=font)
    if cell < 12:
        return sheet
    for number, name in enumerate(names):
        text, middle = _shortened(name, font, margin - GAP), (number + 0.5) * cell
        pen.text((left - GAP / 2, top + middle), text, fill=INK, font=font, anchor="rm")
        upright = Image.new("RGB", (margin, cell), PAPER)
        ImageDraw.Draw(upright).text((GAP / 2, cell / 2), text, fill=INK, font=font, anchor="lm")
        sheet.paste(upright.rotate(90, expand=True), (round(left + number * cell), top - margin))
    for row, column in np.argwhere(counts):
        place = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        colour = PAPER if shares[row, column] > 0.5 else INK
        pen.text(place, str(counts[row, column]), fill=colour, font=font, anchor="mm")
    return sheet


def _shortened(text: str, font: Any, room: float) -> str:
    """`text` on one line, cut where it is wider than `room` px."""
    text = " ".join(text.split())
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2].rstrip() + "…"
    return text
