"""A picture with its boxes and names, and a grid of such pictures. Pillow only: it works without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

# Blue and orange as in Okabe and Ito's colour-blind-safe palette (2008), lighter, to be seen on photographs.
TRUE_COLOUR = "#4CB5F5"
PREDICTED_COLOUR = "#FFA41B"

PAPER, LETTERBOX, INK = "#FFFFFF", "#EEF0F2", "#22262B"
SMOOTH = 4  # rounded shapes are drawn this much larger and averaged down: anti-aliased corners

Picture = NDArray[np.uint8]  # [H, W, 3], RGB
Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in px, end exclusive


@dataclass(frozen=True)
class Mark:
    """A box to draw, with its label.

    Attributes:
        box: x1, y1, x2, y2 in [0, 1]; what lies outside is clipped, NaN or an empty box shows only the label.
        text: the label, on one line; "" for none.
        colour: any Pillow colour name or "#RRGGBB".
        label: whether the label wants to sit above the box or below it.
    """

    box: Sequence[float]
    text: str
    colour: str
    label: Literal["top", "bottom"] = "top"


def draw_marks(image: Picture, marks: Sequence[Mark], *, width: int | None) -> Picture:
    """Draw boxes and their labels on a copy of one picture.

    A label keeps to the picture (it is shortened when too long) and off the other labels where there is room.

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
    if width is not None and width != canvas.width:
        height = max(1, round(canvas.height * width / canvas.width))
        canvas = canvas.resize((width, height), Image.Resampling.LANCZOS)
    line = max(2, round(min(canvas.size) / 110))
    corners = [_corners(mark.box, canvas.width, canvas.height, line) for mark in marks]
    for mark, corner in zip(marks, corners, strict=True):
        if corner is not None:
            _draw_box(canvas, corner, mark.colour, line)
    placed: list[Rect] = []
    size = min(max(12.0, canvas.width / 23), canvas.height / 3)  # by width: equal in all tiles of a grid
    for mark, corner in zip(marks, corners, strict=True):
        font, text = _fit(" ".join(mark.text.split()), size, canvas.width - 2 * _padding(size))
        if text:
            want = round(font.getlength(text)) + 2 * _padding(size), round(size * 1.45)
            placed.append(_free_place(want, corner, mark.label, placed, canvas.size, line))
            _draw_label(canvas, placed[-1], text, font, mark.colour)
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
    columns = max(1, min(columns, len(tiles)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    cell = max((tile.shape[1] for tile in tiles), default=320)
    gap, margin = max(6, cell // 30), max(14, cell // 16)
    width = 2 * margin + columns * cell + (columns - 1) * gap
    size = float(np.clip(width / 55, 13, 26))
    head, top = Image.new("RGB", (width, 4000), PAPER), margin  # cut to what it needs below
    font, text = _fit(title, size * 1.35, width - 2 * margin)
    if text:
        ImageDraw.Draw(head).text((margin, top), text, fill=INK, font=font)
        top += round(size * 2)
    if legend:
        top = _draw_legend(head, legend, size, margin, top) + round(size * 0.8)
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    height = top + sum(heights) + gap * max(0, len(rows) - 1) + margin
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(head.crop((0, 0, width, top)))
    for row, row_height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = margin + column * (cell + gap)
            sheet.paste(LETTERBOX, (left, top, left + cell, top + row_height))
            corner = left + (cell - tile.shape[1]) // 2, top + (row_height - tile.shape[0]) // 2
            sheet.paste(Image.fromarray(tile), corner)
        top += row_height + gap
    return np.array(sheet)


def _corners(box: Sequence[float], width: int, height: int, line: int) -> Rect | None:
    """The box in px inside the picture, inset so that a line on the border shows; None if nothing is left."""
    edges = np.asarray(box, dtype=float)
    if edges.shape != (4,) or np.isnan(edges).any():
        return None
    x1, y1, x2, y2 = np.rint(np.clip(edges, 0, 1) * (width, height, width, height)).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return None
    x1, y1 = min(x1, width - line), min(y1, height - line)
    return max(x1, 0), max(y1, 0), min(max(x2, x1 + line), width), min(max(y2, y1 + line), height)


def _draw_box(canvas: Image.Image, corner: Rect, colour: str, line: int) -> None:
    """The outline inside `corner`, between thin dark lines that set it off from any background."""
    x1, y1, x2, y2 = corner
    halo = Image.new("L", canvas.size, 0)
    pen = ImageDraw.Draw(halo)
    pen.rectangle((x1 - 1, y1 - 1, x2, y2), outline=140, width=line + 2)
    canvas.paste(Image.new("RGB", canvas.size, "#101418"), mask=halo)
    ImageDraw.Draw(canvas).rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=line)


def _padding(size: float) -> int:
    return max(1, round(size * 0.4))


def _fit(text: str, size: float, room: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font, up to a quarter smaller if `text` then fits into `room` px, and the text, cut if not."""
    for factor in (1.0, 0.9, 0.8, 0.75):
        font = _font(size * factor)
        if font.getlength(text) <= room:
            return font, text
    while text and font.getlength(text + "…") > room:
        text = text[:-1].rstrip()
    return font, text + "…" if text else ""


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=max(1.0, size))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType: reinstall it from a wheel")
    return font


def _free_place(
    want: tuple[int, int],
    corner: Rect | None,
    label: Literal["top", "bottom"],
    placed: Sequence[Rect],
    room: tuple[int, int],
    line: int,
) -> Rect:
    """Where a label of size `want` goes: the best place that no other label has, else the best place."""
    width, height = want
    x1, y1, x2, y2 = corner or (0, 0, *room)
    above, below = y1 - height - 1, y2 + 1
    inside_top, inside_bottom = y1 + line + 2, y2 - line - 2 - height
    ys = (above, inside_top, below, inside_bottom) if label == "top" else (below, inside_bottom, above, inside_top)
    tries = [(x, y) for y in ys if 0 <= y <= room[1] - height for x in (x1, x2 - width)]
    anywhere = [(x, y) for y in range(0, room[1] - height + 1, height + 1) for x in (0, room[0] - width)]
    anywhere.sort(key=lambda place: abs(place[1] - ys[0]))
    rects = []
    for x, y in [*tries, *anywhere, (x1, ys[0])]:
        x, y = max(0, min(x, room[0] - width)), max(0, min(y, room[1] - height))
        rects.append((x, y, x + width, y + height))
    for rect in rects:
        if not any(rect[0] < b[2] and b[0] < rect[2] and rect[1] < b[3] and b[1] < rect[3] for b in placed):
            return rect
    return rects[0]


def _draw_label(canvas: Image.Image, rect: Rect, text: str, font: ImageFont.FreeTypeFont, colour: str) -> None:
    x1, y1, x2, y2 = rect
    _draw_pill(canvas, rect, colour, round((y2 - y1) / 5))
    ink = INK if sum(ImageColor.getrgb(colour)[:3]) > 360 else PAPER
    # Middle of a letter's height, so that the text does not jump with its descenders.
    ImageDraw.Draw(canvas).text(((x1 + x2) / 2, (y1 + y2) / 2), text, fill=ink, font=font, anchor="mm")


def _draw_pill(canvas: Image.Image, rect: Rect, colour: str, radius: int) -> None:
    width, height = rect[2] - rect[0], rect[3] - rect[1]
    mask = Image.new("L", (width * SMOOTH, height * SMOOTH), 0)
    edge = (0, 0, width * SMOOTH - 1, height * SMOOTH - 1)
    ImageDraw.Draw(mask).rounded_rectangle(edge, radius=radius * SMOOTH, fill=255)
    mask = mask.resize((width, height), Image.Resampling.BOX)
    canvas.paste(Image.new("RGB", (width, height), colour), rect[:2], mask)


def _draw_legend(sheet: Image.Image, legend: Sequence[tuple[str, str]], size: float, margin: int, top: int) -> int:
    """Draw swatches and their texts, on further lines when the first is full; returns the lower end, px."""
    swatch, left = round(size), margin
    for text, colour in legend:
        font, text = _fit(text, size, sheet.width - 2 * margin - 2 * swatch)
        width = swatch + round(size * 0.5 + font.getlength(text))
        if left > margin and left + width > sheet.width - margin:
            left, top = margin, top + round(size * 1.6)
        _draw_pill(sheet, (left, top, left + swatch, top + swatch), colour, round(size / 5))
        place = left + swatch + round(size * 0.5), top + swatch / 2
        ImageDraw.Draw(sheet).text(place, text, fill=INK, font=font, anchor="lm")
        left += width + round(size * 1.4)
    return top + swatch
