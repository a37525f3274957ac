import pytest
import torch

from onebox import boxes

EMPTY = torch.zeros(0, 4)
# The notebook's image: 500 x 333 px, one aeroplane at xywh (39, 119, 454, 133).
XYWH_PX = torch.tensor([[39.0, 119.0, 454.0, 133.0]])
SHAPE = (333, 500)


@pytest.mark.parametrize(
    ("move", "given", "expected"),
    [
        (boxes.mirror, EMPTY, EMPTY),
        (boxes.mirror, torch.tensor([[0.1, 0.2, 0.6, 0.9]]), torch.tensor([[0.4, 0.2, 0.9, 0.9]])),
        (boxes.clip, torch.tensor([[-0.1, 0.2, 1.5, 0.9]]), torch.tensor([[0.0, 0.2, 1.0, 0.9]])),
    ],
)
def test_moved_boxes_lie_where_they_should(move, given, expected):
    torch.testing.assert_close(move(given), expected)


def test_unnorm_gives_the_notebooks_pixels_of_boxes_one_box_and_none():
    normed = torch.tensor([[0.078, 0.35735736, 0.908, 0.3993994]])
    torch.testing.assert_close(boxes.unnorm(normed, SHAPE), XYWH_PX)
    torch.testing.assert_close(boxes.unnorm(normed[0], SHAPE), XYWH_PX[0])
    assert boxes.unnorm(EMPTY, SHAPE).shape == (0, 4)


def test_paired_iou_compares_row_by_row():
    left = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.1, 0.1]])
    right = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(boxes.paired_iou(left, right), torch.tensor([1.0, 0.5, 0.0]))
    assert boxes.paired_iou(EMPTY, EMPTY).shape == (0,)
