"""predictions.csv: every metric comes out of it again, and what no run has written is refused."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.runs.test_results import index

from onebox.errors import BadInput
from onebox.metrics import LocalizationMetrics
from onebox.module import Predicted
from onebox.runs.predictions import read_predictions, write_predictions
from onebox.runs.reading.find import read_run
from onebox.train import train

DOCS = Path(__file__).parents[2] / "docs" / "runs.md"
NAMES = ["background", "cat", "dog", "NA", "a,b", 'q"', "no\nline"]
METRICS = ("acc", "iou", "loc_acc", "loc_acc70", "joint_acc", "joint_acc_top5", "joint_acc_50_95", "loc_l1")


def metrics_again(file: Path) -> pd.DataFrame:
    """By the lines that docs/runs.md shows: each metric of each image, and its class as the index."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if '"predictions.csv"' in block)
    names: dict = {"file": file}
    exec(lines.replace('"predictions.csv"', "file"), names)
    return names["table"].set_index(names["p"].true_label)


@pytest.mark.parametrize(
    "overrides", [["augment=none", "data.background_class=false"], ["data.eval_batch_size=7", "data.limit=16"]]
)
def test_every_metric_comes_out_again(composed, tmp_path, overrides):
    train(composed("trainer.max_epochs=1", "callbacks.pictures=null", "callbacks/progress=lines", *overrides))
    run = read_run(tmp_path / "run")
    again = metrics_again(tmp_path / "run/predictions.csv")
    assert set(METRICS) == set(again)
    assert dict(again.mean()) == pytest.approx({name: run.metrics["test"][name] for name in METRICS}, abs=1e-6)
    for label, rows in again.groupby(level=0):
        expected = {name: run.metrics["per_class"][label][name] for name in METRICS}
        assert dict(rows.mean()) == pytest.approx(expected, abs=1e-6)
    assert len(run.predictions) == sum(row["images"] for row in run.metrics["per_class"].values())
    true = run.predictions[["true_x1", "true_y1", "true_x2", "true_y2"]].to_numpy()
    assert np.abs(true - true.round()).max() < 1e-3  # px of the image, whatever the network's size
    assert all(map(os.path.isfile, run.predictions["path"]))
    assert not list((tmp_path / "run").rglob("*.tmp"))


def predicted(boxes, logits):
    classes = torch.cat([logits.argmax(1, keepdim=True), logits.topk(min(5, logits.shape[1])).indices], 1)
    return Predicted(torch.arange(len(boxes)), boxes, classes, logits.softmax(1).gather(1, classes))


def written(folder, true, boxes, labels, logits, names=NAMES):
    images = index(ids=[f"{number:06d}" for number in range(len(labels))], labels=[0] * len(labels))
    images.labels, images.boxes = labels, true
    images.image_paths = tuple(f"images/caf\udce9 {name}.jpg" for name in images.ids)
    write_predictions(folder, images, names, predicted(boxes, logits))
    return folder / "predictions.csv"


def test_boundaries_ties_and_odd_names_come_out_again(tmp_path):
    # IoU is exactly, in float32, what it is compared with; boxes lie outside the image; logits are equal.
    shares = torch.tensor([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0])
    true = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(11, 1)
    boxes = true.clone()
    boxes[:, 2] = shares
    boxes[:, 1] = -0.25
    labels, logits = torch.arange(11) % 7, torch.zeros(11, 7)
    logits[5:] = torch.eye(7)[labels[5:]]
    metrics = LocalizationMetrics(NAMES)
    metrics.update(boxes, logits, true, labels)
    micro = metrics.compute().micro
    file = written(tmp_path, true, boxes, labels, logits)
    assert dict(metrics_again(file).mean()) == pytest.approx({name: micro[name] for name in METRICS}, abs=1e-6)
    found = read_predictions(tmp_path)
    assert found["id"].tolist() == [f"{number:06d}" for number in range(11)]
    assert found["true_label"].tolist() == [NAMES[label] for label in labels]
    assert found["predicted_y1"].tolist() == [-25.0] * 11


def test_fewer_than_five_classes(tmp_path):
    true = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    written(tmp_path, true, true, torch.tensor([0, 1]), torch.eye(2), names=["a", "b"])
    assert [name for name in read_predictions(tmp_path) if name.startswith("top")] == [
        "top1",
        "top1_probability",
        "top2",
        "top2_probability",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "No columns"),
        (lambda text: text.partition("\n")[0] + "\n", "it has no rows"),
        (lambda text: text.replace("predicted_x2", "x"), "it has no column predicted_x2"),
        (lambda text: text.replace("-25.0", "inf", 1), "predicted_y1 of its row 1 is 'inf'"),
        (lambda text: text.replace("-25.0", "nan", 1), "predicted_y1 of its row 1 is 'nan'"),
        (lambda text: text.replace("-25.0", "\x1b[31m", 1), "predicted_y1 of its row 1 is '.x1b"),
        (lambda text: text.replace("0.5,", "1.5,", 1), "iou of its row 1 is '1.5'"),
        (lambda text: text.replace("100,100", "100,0", 1), "height of its row 1 is '0'"),
        (lambda text: text[: len(text) // 2], "of its row .* is"),
        (lambda text: text.replace("\n", ",7\n").replace(",7", "", 1), "of its row 1 is"),
        (lambda text: text.replace("images", "im\udcffages"), "utf-8"),
    ],
)
def test_what_no_run_has_written_is_one_line(tmp_path, change, words):
    true = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    boxes = torch.tensor([[0.0, -0.25, 0.5, 1.0]] * 2)
    file = written(tmp_path, true, boxes, torch.tensor([1, 2]), torch.zeros(2, 7))
    assert len(read_predictions(tmp_path)) == 2
    file.write_bytes(change(file.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(
        BadInput, match=f"(?s)predictions.csv: cannot be read .*{words}.*; not the predictions of a run"
    ):
        read_predictions(tmp_path)
    file.unlink()
    with pytest.raises(BadInput, match="no such file"):
        read_predictions(tmp_path)
    file.symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match="is a link"):
        read_predictions(tmp_path)
