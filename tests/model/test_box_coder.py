import pytest
import torch
from hydra.utils import instantiate

CODERS = ["xywh", "cxcywh_sigmoid", "xyxy", "ltrb"]
BOXES = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.41, 0.42]])


@pytest.fixture(params=CODERS)
def coder(request, composed):
    return instantiate(composed(f"model/box_coder={request.param}").model.box_coder)


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), BOXES])
def test_decode_undoes_encode(coder, boxes):
    torch.testing.assert_close(coder.decode(coder.encode(boxes)), boxes)


def test_a_head_can_learn_a_box_through_the_coder(coder):
    raw = torch.zeros(3, 4, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (coder.activate(raw) - coder.encode(BOXES)).abs().mean().backward()
        optimizer.step()
    torch.testing.assert_close(coder.decode(coder.activate(raw)), BOXES, atol=0.03, rtol=0)


def test_sigmoid_coder_starts_in_the_middle(composed):
    coder = instantiate(composed("model/box_coder=cxcywh_sigmoid").model.box_coder)
    box = coder.decode(coder.activate(torch.zeros(1, 4)))
    torch.testing.assert_close(box, torch.tensor([[0.25, 0.25, 0.75, 0.75]]))


def test_raw_coder_makes_negative_sizes_empty(composed):
    coder = instantiate(composed("model/box_coder=xywh").model.box_coder)
    box = coder.decode(torch.tensor([[0.5, 0.5, -0.2, 0.1]]))
    torch.testing.assert_close(box, torch.tensor([[0.5, 0.5, 0.5, 0.6]]))
