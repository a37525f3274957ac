"""predictions.csv: what was predicted of each test image, from which every metric can be computed again."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from onebox.files import read_file, replacing
from onebox.trust import stored_file

if TYPE_CHECKING:
    import pandas as pd

    from onebox.data.index import Index
    from onebox.module import Predicted

PREDICTIONS = "predictions.csv"
REMEDY = "not the predictions of a run, or those of one whose loss was no number"
MAX_BYTES = 2**28  # of a file that is read
EDGES = ("x1", "y1", "x2", "y2")
TEXTS = ("id", "path", "true_label", "predicted_label", "top1")
SIZES = ("width", "height")
BOXES = tuple(f"{which}_{edge}" for which in ("true", "predicted") for edge in EDGES)  # px of the image
SHARES = ("iou", "probability", "top1_probability")


def write_predictions(run_dir: Path, index: "Index", class_names: Sequence[str], tested: "Predicted") -> None:
    """Write `PREDICTIONS`, a row an image of `index` that was tested.

    Predicted boxes are not cut at the image's border, IoU is taken after that. Shares have the shortest digits that
    give their float32 back, so that comparing them with 0.5 or 0.7 gives what training's metrics say.
    """
    import numpy as np

    from onebox.boxes import clip, paired_iou

    rows, num_top = tested.rows, tested.classes.shape[1] - 1
    true, sizes = index.boxes[rows], index.sizes[rows]
    px = [np.round((boxes.double() * sizes[:, [1, 0, 1, 0]]).numpy(), 4) for boxes in (true, tested.boxes)]
    names = np.array(class_names, dtype=object)
    true_labels, classes = names[index.labels[rows].numpy()], names[tested.classes.numpy()]
    shares = tested.probabilities.numpy()
    columns = {
        "id": [index.ids[row] for row in rows.tolist()],
        "path": [index.image_paths[row] for row in rows.tolist()],
        **dict(zip(SIZES, sizes[:, [1, 0]].T.tolist(), strict=True)),
        "true_label": true_labels,
        **dict(zip(BOXES[:4], px[0].T.tolist(), strict=True)),
        "predicted_label": classes[:, 0],
        **dict(zip(BOXES[4:], px[1].T.tolist(), strict=True)),
        "iou": paired_iou(clip(tested.boxes), true).numpy(),
        "probability": shares[:, 0],
    }
    for number in range(1, num_top + 1):
        columns |= {f"top{number}": classes[:, number], f"top{number}_probability": shares[:, number]}
    with (
        replacing(run_dir / PREDICTIONS) as temporary,
        # What is no text in a file's name is escaped, as pandas reads nothing but UTF-8.
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def read_predictions(run_dir: Path) -> "pd.DataFrame":
    """The table of `write_predictions`, which someone else may have made: checked, in the order of the file.

    Raises:
        BadInput: there is none, or it is not that of a run whose predictions are numbers.
    """
    path = stored_file(run_dir, PREDICTIONS)
    return read_file(path, _table, remedy=REMEDY, max_bytes=MAX_BYTES)


def per_image(predictions: "pd.DataFrame") -> "pd.DataFrame":
    """The metrics of each image, from what `read_predictions` gives; their names are those of `onebox.metrics`."""
    cls, iou = predictions["true_label"] == predictions["predicted_label"], predictions["iou"]
    loc, top5 = iou >= 0.5, predictions.filter(regex=r"^top\d$").eq(predictions["true_label"], axis=0).any(axis=1)
    table = predictions[["iou"]].assign(acc=cls, loc_acc=loc, loc_acc70=iou >= 0.7, joint_acc=cls & loc)
    table["joint_acc_top5"] = top5 & loc
    table["joint_acc_50_95"] = sum((cls & (iou >= t / 100)).astype(float) for t in range(50, 100, 5)) / 10
    sides = dict(zip(EDGES, SIZES * 2, strict=True))
    errors = [
        (predictions[f"true_{e}"] - predictions[f"predicted_{e}"]).abs() / predictions[s] for e, s in sides.items()
    ]
    return table.assign(loc_l1=sum(errors) / len(errors)).astype(float)


def _table(file: IO[bytes]) -> "pd.DataFrame":
    import numpy as np
    import pandas as pd

    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    tops = [name for number in range(2, 6) for name in (f"top{number}", f"top{number}_probability") if name in frame]
    shares = [*SHARES, *tops[1::2]]
    numbers = [*SIZES, *BOXES, *shares]
    if missing := [name for name in (*TEXTS, *numbers) if name not in frame]:
        raise ValueError(f"it has no column {missing[0]}")
    if not len(frame):
        raise ValueError("it has no rows")
    values = frame[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    low = [1.0] * len(SIZES) + [-np.inf] * len(BOXES) + [0.0] * len(shares)
    high = [np.inf] * (len(SIZES) + len(BOXES)) + [1 + 1e-6] * len(shares)
    wrong = np.argwhere(~(np.isfinite(values) & (values >= low) & (values <= high)).to_numpy())
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(f"{numbers[column]} of its row {row + 1} is {frame[numbers[column]].iloc[row]!r:.40}")
    frame[numbers] = values
    return frame
