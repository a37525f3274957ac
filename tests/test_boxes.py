import pytest
import torch

from onebox import boxes

EMPTY = torch.zeros(0, 4)


@pytest.mark.parametrize(
    ("move", "given", "expected"),
    [
        (boxes.mirror, EMPTY, EMPTY),
        (boxes.mirror, torch.tensor([[0.1, 0.2, 0.6, 0.9]]), torch.tensor([[0.4, 0.2, 0.9, 0.9]])),
        (boxes.clip, torch.tensor([[-0.1, 0.2, 1.5, 0.9]]), torch.tensor([[0.0, 0.2, 1.0, 0.9]])),
    ],
)
def test_boxes_are_mirrored_and_clipped(move, given, expected):
    torch.testing.assert_close(move(given), expected)


def test_unnorm_gives_the_notebooks_pixels_of_boxes_one_box_and_none():
    normed, shape = torch.tensor([[0.078, 0.35735736, 0.908, 0.3993994]]), (333, 500)
    xywh_px = torch.tensor([[39.0, 119.0, 454.0, 133.0]])  # of the notebook's one aeroplane
    torch.testing.assert_close(boxes.unnorm(normed, shape), xywh_px)
    torch.testing.assert_close(boxes.unnorm(normed[0], shape), xywh_px[0])
    assert boxes.unnorm(EMPTY, shape).shape == (0, 4)


def test_paired_iou_compares_row_by_row():
    left = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.1, 0.1]])
    right = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(boxes.paired_iou(left, right), torch.tensor([1.0, 0.5, 0.0]))
    assert boxes.paired_iou(EMPTY, EMPTY).shape == (0,)
