"""A picture with its boxes and names, and a grid of such pictures. Pillow only: it works without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

# Blue and orange as in Okabe and Ito's colour-blind-safe palette (2008), lighter, to be seen on photographs.
TRUE_COLOUR = "#4CB5F5"
PREDICTED_COLOUR = "#FFA41B"
PAPER, LETTERBOX, INK, OUTLINE = "#FFFFFF", "#EEF0F2", "#22262B", "#101418"

Picture = NDArray[np.uint8]  # [H, W, 3], RGB
Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in px, end exclusive


@dataclass(frozen=True)
class Mark:
    """A box to draw, with its label.

    Attributes:
        box: x1, y1, x2, y2 in [0, 1]; what lies outside is clipped, NaN or an empty box shows only the label.
        text: the label, on one line; "" for none.
        colour: any Pillow colour name or "#RRGGBB".
        label: whether the label sits at the upper edge of the box or at the lower one.
    """

    box: Sequence[float]
    text: str
    colour: str
    label: Literal["top", "bottom"] = "top"


def draw_marks(image: Picture, marks: Sequence[Mark], *, width: int | None) -> Picture:
    """Draw boxes and their labels on a copy of one picture; a label is shortened when it is too long.

    Args:
        image: [H, W, 3] uint8, RGB.
        marks: drawn in this order, the last on top.
        width: width of the result, px, the height in proportion; None keeps the size.

    Returns:
        [H', W', 3] uint8, RGB.

    Raises:
        ValueError: `image` is not [H, W, 3] uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"need an image [H, W, 3] uint8, got {image.shape} {image.dtype}")
    canvas = Image.fromarray(image)
    if width is not None:
        height = max(1, round(canvas.height * width / canvas.width))
        canvas = canvas.resize((width, height), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(min(canvas.size) / 110))
    size = min(max(12.0, canvas.width / 23), canvas.height / 3)  # by width: equal in all tiles of a grid
    corners = [_corners(mark.box, *canvas.size) for mark in marks]
    for mark, corner in zip(marks, corners, strict=True):
        if corner is not None:
            x1, y1, x2, y2 = corner  # between dark lines, which set it off from any background
            pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=OUTLINE, width=line + 2)
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=mark.colour, width=line)
    placed: list[Rect] = []
    for mark, corner in zip(marks, corners, strict=True):
        _draw_label(pen, mark, corner or (0, 0, *canvas.size), size, canvas.size, placed)
    return np.array(canvas)


def draw_grid(tiles: Sequence[Picture], *, columns: int, legend: Sequence[tuple[str, str]], title: str) -> Picture:
    """Lay pictures out in rows, under a title and a legend.

    Args:
        tiles: each [H, W, 3] uint8, RGB, of any sizes; a smaller one is centred in its cell.
        columns: cells in a row, at least 1; fewer when there are fewer tiles.
        legend: (text, colour) of each entry, left to right.
        title: one line above everything; "" for none.

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        ValueError: `columns` is below 1.
    """
    if columns < 1:
        raise ValueError(f"need at least one column, got {columns}")
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    cell = max((tile.shape[1] for tile in tiles), default=320)
    gap, margin = max(6, cell // 30), max(14, cell // 16)
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    width = 2 * margin + max(1, min(columns, len(tiles))) * (cell + gap) - gap
    size = min(26.0, max(13.0, width / 55))
    lines = [(text, colour) for text, colour in [(title, ""), *legend] if text]
    top = margin + round(len(lines) * size * 1.6) + (margin if lines else 0)
    sheet = Image.new("RGB", (width, top + sum(heights) + gap * max(0, len(rows) - 1) + margin), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(lines):
        y, left = margin + number * size * 1.6, margin
        if colour:
            pen.rounded_rectangle((left, y, left + size, y + size), radius=size / 5, fill=colour)
            left += round(1.5 * size)
        font, text = _fit(text, size, width - margin - left)
        pen.text((left, y + size / 2), text, fill=INK, font=font, anchor="lm")
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = margin + column * (cell + gap)
            sheet.paste(LETTERBOX, (left, top, left + cell, top + height))
            corner = left + (cell - tile.shape[1]) // 2, top + (height - tile.shape[0]) // 2
            sheet.paste(Image.fromarray(tile), corner)
        top += height + gap
    return np.array(sheet)


def _corners(box: Sequence[float], width: int, height: int) -> Rect | None:
    """The box in px inside the picture; None if nothing is left of it."""
    edges = np.asarray(box, dtype=float)
    if edges.shape != (4,) or np.isnan(edges).any():
        return None
    x1, y1, x2, y2 = np.rint(np.clip(edges, 0, 1) * (width, height, width, height)).astype(int).tolist()
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def _draw_label(
    pen: ImageDraw.ImageDraw, mark: Mark, corner: Rect, size: float, room: tuple[int, int], placed: list[Rect]
) -> None:
    """A label outside of its box where there is room, else inside, and off the labels in `placed`, which it joins."""
    padding, height = max(1, round(size * 0.4)), round(size * 1.45)
    font, text = _fit(" ".join(mark.text.split()), size, room[0] - 2 * padding)
    if not text:
        return
    width = round(font.getlength(text)) + 2 * padding
    x, lowest = max(0, min(corner[0], room[0] - width)), max(0, room[1] - height)
    ys = [corner[1] - height - 1, corner[1] + 3, corner[3] + 1, corner[3] - height - 3]
    ys = ys if mark.label == "top" else ys[2:] + ys[:2]
    ys = [y for y in (*ys, *range(0, lowest, height + 1)) if 0 <= y <= lowest] or [0]
    free = (y for y in ys if not any(x < b[2] and b[0] < x + width and y < b[3] and b[1] < y + height for b in placed))
    y = next(free, ys[0])
    placed.append((x, y, x + width, y + height))
    pen.rounded_rectangle((x, y, x + width - 1, y + height - 1), radius=height / 5, fill=mark.colour)
    ink = INK if sum(ImageColor.getrgb(mark.colour)[:3]) > 360 else PAPER
    pen.text((x + width / 2, y + height / 2), text, fill=ink, font=font, anchor="mm")


def _fit(text: str, size: float, room: float) -> tuple[Any, str]:
    """The font, a quarter smaller if `text` then fits into `room` px, and the text, cut if it does not."""
    for factor in (1.0, 0.75):
        font: Any = ImageFont.load_default(size=max(1.0, size * factor))
        if font.getlength(text) <= room:
            return font, text
    while text and font.getlength(text + "…") > room:
        text = text[:-1].rstrip()
    return font, text + "…" if text else ""
