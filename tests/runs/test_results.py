"""What a run leaves: its best epoch, and the table of samples with what differs between two."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onebox.callbacks.epoch_csv import best_row
from onebox.errors import BadInput
from onebox.module import Predicted
from onebox.runs import results
from onebox.runs.results import against_floor, bootstrap, compare_samples, write_samples

ROWS = {0: {"val/a": 0.1}, 1: {"val/a": 0.5}, 2: {"val/a": 0.5}, 3: {"val/a": math.nan}, 4: {"train/a": 9.0}}


@pytest.mark.parametrize(("mode", "epoch"), [("max", 1), ("min", 0)])
def test_best_row_is_the_first_of_the_best(mode, epoch):
    assert best_row(ROWS, "val/a", mode) == {"epoch": epoch, **ROWS[epoch]}


def test_without_a_number_there_is_no_best_row():
    assert best_row({0: {"val/a": math.nan}}, "val/a", "max") == {}
    assert best_row({}, "val/a", "max") == {}


NAMES = ["cat", "dog"]


class Index(SimpleNamespace):
    def __len__(self):
        return len(self.ids)


def index(ids="abcd", labels=(0, 1, 0, 1), x1=0.25, stamp=1000):
    count = len(ids)
    return Index(
        ids=tuple(ids),
        labels=torch.tensor(labels[:count]),
        boxes=torch.tensor([[x1, 0.25, 0.75, 0.75]] * count).reshape(count, 4),
        sizes=torch.full((count, 2), 100),
        lengths=np.full(count, stamp),
    )


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (index(), {}),
        (index(ids="abc"), {"removed": ["d"]}),
        (index(ids="abcde", labels=(0, 1, 0, 1, 1)), {"added": ["e"]}),
        (index(labels=(0, 0, 0, 1)), {"relabelled": ["b"]}),
        (index(x1=0.25 + 1 / 500), {"box moved": list("abcd")}),
        (index(stamp=1001), {"other image file": list("abcd")}),
        (index(ids="badc", labels=(1, 0, 1, 0)), {"other order": ["all"]}),
        (index(ids=""), {"removed": list("abcd")}),
    ],
)
def test_differences_are_told_by_name(tmp_path, other, expected):
    write_samples(tmp_path / "a", {"train": index(), "val": index()}, NAMES)
    write_samples(tmp_path / "b", {"train": other, "val": index()}, NAMES)
    assert compare_samples(tmp_path / "a", tmp_path / "b") == ({"train": expected} if expected else {})


def test_labels_are_compared_by_their_names(tmp_path):
    write_samples(tmp_path / "a", {"train": index()}, NAMES)
    write_samples(tmp_path / "b", {"train": index(labels=(1, 2, 1, 2))}, ["background", *NAMES])
    assert compare_samples(tmp_path / "a", tmp_path / "b") == {}


def test_too_many_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MAX_SAMPLES", 3)
    assert not write_samples(tmp_path, {"train": index()}, NAMES)
    assert compare_samples(tmp_path, tmp_path) is None


def test_a_file_that_no_run_has_written_is_refused(tmp_path):
    write_samples(tmp_path / "a", {"train": index()}, NAMES)
    (tmp_path / "b").mkdir()
    np.savez_compressed(tmp_path / "b" / "samples.npz", zeros=np.zeros(2**26, np.int64))
    with pytest.raises(BadInput, match="unpacks to 536,871,040 bytes"):
        compare_samples(tmp_path / "a", tmp_path / "b")
    np.savez_compressed(tmp_path / "b" / "samples.npz", code=np.array([print], dtype=object))
    with pytest.raises(BadInput, match="not the samples of a run"):
        compare_samples(tmp_path / "a", tmp_path / "b")


def shapes_index(labels, boxes):
    ids = [str(number) for number in range(len(labels))]
    return SimpleNamespace(ids=ids, labels=torch.tensor(labels), boxes=torch.tensor(boxes))


@pytest.mark.parametrize(("n", "told"), [(200, True), (19, False)])
def test_each_metric_is_held_against_the_floor_on_the_same_images(n, told):
    """The class is right on two of three images and the floor's on half of them; the box is the floor's."""
    box = [0.25, 0.25, 0.75, 0.75]
    index = shapes_index([0, 1] * (n // 2) + [0] * (n % 2), [box] * n)
    right = torch.arange(n) % 3 > 0
    predicted = torch.where(right, index.labels, 2)
    top = torch.stack([predicted, *(torch.full((n,), label) for label in (3, 4, 5, 6))], dim=1)
    classes = torch.cat([predicted[:, None], top], dim=1)
    tested = Predicted(torch.arange(n), torch.tensor([box] * n), classes, torch.zeros(n, 6))
    found = against_floor(index, index, 7, tested)
    for name in ("acc", "joint_acc"):
        low, high = found[name]["interval"]
        assert found[name]["difference"] == pytest.approx((right.float().mean() - (index.labels == 0).float().mean()).item())  # fmt: skip
        assert low < found[name]["difference"] < high
        assert found[name]["verdict"] == ("better" if told else "cannot tell")
    assert found["iou"] == {"difference": 0, "interval": [0, 0], "verdict": "cannot tell"}
    assert found["joint_acc_top5"]["verdict"] == ("worse" if told else "cannot tell")  # the floor names both classes
    worse = tested._replace(boxes=torch.tensor([[0.2, 0.25, 0.75, 0.75]] * n))
    errors = against_floor(index, index, 7, worse)["loc_l1"]
    assert errors["difference"] == pytest.approx(0.0125) and errors["verdict"] == ("worse" if told else "cannot tell")


def test_the_bootstrap_covers_the_mean_in_95_of_100_cases():
    random = np.random.default_rng(1)
    hits = [low <= 0.3 <= high for low, high in (bootstrap(random.random((100, 1)) < 0.3)[0] for _ in range(150))]
    assert 0.9 < np.mean(hits) < 0.98
