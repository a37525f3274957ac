import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from onebox.metrics import LocalizationMetrics, floor_prediction

CLASSES = ["background", "cat", "dog", "bird", "car", "sofa", "train"]


def random_batch(num_images: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_images, 2, generator=generator) * 0.5
    true = torch.cat([corner, corner + 0.1 + 0.4 * torch.rand(num_images, 2, generator=generator)], 1)
    boxes = true + 0.05 * torch.randn(num_images, 4, generator=generator)
    logits = torch.randn(num_images, len(CLASSES), generator=generator)
    labels = torch.randint(1, len(CLASSES) - 1, (num_images,), generator=generator)  # no image of the last class
    return boxes, logits, true, labels


def measure(*batches):
    metrics = LocalizationMetrics(CLASSES)
    for batch in batches:
        metrics.update(*batch)
    return metrics.compute()


def logits_of(*classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), len(CLASSES)).float()


def test_values_of_four_known_images():
    true = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4)
    # IoU 1, 0.72, 0.5 and 0.25
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.9, 0.8], [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.5, 0.5]])
    micro = measure((boxes, logits_of(1, 2, 2, 2), true, torch.tensor([1, 1, 2, 2]))).micro
    assert micro["acc"] == 0.75
    assert micro["iou"] == pytest.approx((1 + 0.72 + 0.5 + 0.25) / 4)
    assert micro["loc_acc"] == 0.75
    assert micro["loc_acc70"] == 0.5
    assert micro["joint_acc"] == 0.5
    # Right class: 10 of 10 thresholds at IoU 1, one at IoU .5, none at IoU .25.
    assert micro["joint_acc_50_95"] == pytest.approx((1 + 0.1) / 4)
    assert micro["loc_l1"] == pytest.approx((0 + 0.3 / 4 + 0.5 / 4 + 1.0 / 4) / 4)
    assert (micro["error_cls"], micro["error_loc"], micro["error_both"]) == (0.25, 0.25, 0.0)


def test_accuracies_agree_with_torchmetrics():
    boxes, logits, true, labels = batch = random_batch(500)
    results = measure(batch)
    micro = multiclass_accuracy(logits, labels, len(CLASSES), average="micro").item()
    each = multiclass_accuracy(logits, labels, len(CLASSES), average="none")[1:6].tolist()
    assert results.micro["acc"] == pytest.approx(micro)
    assert {name: values["acc"] for name, values in results.per_class.items()} == pytest.approx(
        dict(zip(CLASSES[1:6], each, strict=True))
    )
    assert results.macro["acc"] == pytest.approx(sum(each) / 5)


def test_batches_give_the_same_as_one_batch():
    batch = random_batch(90)
    parts = [tuple(column[start : start + 40] for column in batch) for start in (0, 40, 80)]
    micro = measure(batch).micro
    assert measure(*parts).micro == pytest.approx(micro)
    assert sum(micro[name] for name in ("joint_acc", "error_cls", "error_loc", "error_both")) == pytest.approx(1)


def test_a_box_outside_the_image_is_cut_before_iou_but_not_before_l1():
    true = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    micro = measure((torch.tensor([[0.5, 0.5, 1.4, 1.4]]), logits_of(1), true, torch.tensor([1]))).micro
    assert micro["iou"] == 1
    assert micro["loc_l1"] == pytest.approx(0.2)


def test_a_diverged_network_shows_as_nan_not_as_zero():
    true = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    micro = measure((torch.full((1, 4), torch.nan), logits_of(1), true, torch.tensor([1]))).micro
    assert micro["iou"] != micro["iou"]
    assert micro["joint_acc"] == 0


def test_floor_is_median_box_and_majority_class():
    train_boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.2, 0.2, 0.6, 0.7], [0.3, 0.0, 0.9, 0.9]])
    boxes, logits = floor_prediction(train_boxes, torch.tensor([2, 2, 1]), len(CLASSES), 5)
    torch.testing.assert_close(boxes, torch.tensor([[0.2, 0.1, 0.6, 0.7]]).expand(5, 4))
    assert logits.argmax(1).tolist() == [2] * 5


def test_sums_are_exact_whatever_the_precision_of_the_trainer():
    batches = [random_batch(33, seed) for seed in range(30)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = measure(*batches)
    assert lowered == measure(*batches)
