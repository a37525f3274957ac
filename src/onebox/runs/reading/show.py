"""A picture of what a run predicted of its test images."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from onebox.data.image import read_image
from onebox.draw import LEGEND, PREDICTED_COLOUR, TRUE_COLOUR, Mark, draw_grid, draw_marks
from onebox.errors import check, is_integer
from onebox.runs.predictions import BOXES, SIZES

TILE = 240  # px


def draw_predictions(rows: pd.DataFrame, folder: Path, *, upright: bool, num_images: int, columns: int) -> Image.Image:
    """See `Run.show`; `rows` are of predictions.csv of the run in `folder`."""
    for name, value in {"num_images": num_images, "columns": columns}.items():
        check(is_integer(value, 1), f"{name} must be a number >= 1, not {value}")
    check(len(rows) > 0, "there are no rows to show")
    some = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, num_images).round().astype(int))]
    sides = some[[*SIZES, *SIZES]].to_numpy()
    true, predicted = (some[list(names)].to_numpy() / sides for names in (BOXES[:4], BOXES[4:]))
    tiles = []
    for row, *boxes in zip(some.to_dict("records"), true, predicted, strict=True):
        # A relative path is one from where the run was started, mostly a folder above that of the run.
        places = [base / row["path"] for base in (Path(), *folder.absolute().parents)]
        image = read_image(next(filter(Path.is_file, places), places[0]), upright=upright)
        answer = f"{row['predicted_label']} {row['probability']:.0%}"
        marks = [
            Mark(boxes[0], row["true_label"], TRUE_COLOUR),
            Mark(boxes[1], answer, PREDICTED_COLOUR, below=True),
        ]
        tiles.append(draw_marks(image, marks, width=TILE))
    title = f"{len(tiles)} of {len(rows)} test images of {folder.name}"
    return draw_grid(tiles, columns=columns, legend=LEGEND, title=title)
