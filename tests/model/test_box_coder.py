import pytest
import torch
from hydra.utils import instantiate

from onebox.errors import BadInput

BOXES = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.41, 0.42]])
CODES = {  # of the first box
    "xywh": [0.1, 0.2, 0.6, 0.7],
    "cxcywh_sigmoid": [0.4, 0.55, 0.6, 0.7],
    "xyxy": [0.1, 0.2, 0.7, 0.9],
    "ltrb": [0.4, 0.3, 0.2, 0.4],
}


@pytest.mark.parametrize("name", CODES)
def test_codes_mean_a_box_that_a_head_can_learn(name, composed):
    coder = instantiate(composed(f"model/box_coder={name}").model.box_coder)
    torch.testing.assert_close(coder.encode(BOXES)[0], torch.tensor(CODES[name]))
    for boxes in (torch.zeros(0, 4), BOXES):
        torch.testing.assert_close(coder.decode(coder.encode(boxes)), boxes)
    raw = torch.zeros(3, 4, requires_grad=True)
    if name == "cxcywh_sigmoid":
        torch.testing.assert_close(coder.decode(coder.activate(raw))[0], torch.tensor([0.25, 0.25, 0.75, 0.75]))
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (coder.activate(raw) - coder.encode(BOXES)).abs().mean().backward()
        optimizer.step()
    torch.testing.assert_close(coder.decode(coder.activate(raw)), BOXES, atol=0.03, rtol=0)


def test_bins_share_each_side_between_the_coordinates_next_to_it(composed):
    coder = instantiate(composed("model/box_coder=bins", "model.box_coder.bins=5").model.box_coder)
    assert coder.encode(torch.tensor([[0.1, 0.25, 0.5, 1.2]])).tolist() == [
        [[pytest.approx(0.6), pytest.approx(0.4), 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    ]
    for boxes in (torch.zeros(0, 4), BOXES):
        torch.testing.assert_close(coder.decode(coder.encode(boxes)), boxes)


def test_bins_give_boxes_whose_sides_are_in_order_and_learn_from_their_cross_entropy(composed):
    cfg = composed("model/box_coder=bins", "loss/loc=bins")
    coder, criterion = instantiate(cfg.model.box_coder), instantiate(cfg.loss.loc.criterion)
    raw = torch.randn(3, coder.num_outputs, generator=torch.Generator().manual_seed(0), requires_grad=True)
    first = coder.decode(coder.activate(raw))
    assert (first[:, :2] <= first[:, 2:]).all()
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        criterion(coder.activate(raw), coder.encode(BOXES)).backward()
        optimizer.step()
    torch.testing.assert_close(coder.decode(coder.activate(raw)), BOXES, atol=0.01, rtol=0)
    with pytest.raises(BadInput, match="model/box_coder=bins"):
        criterion(BOXES, BOXES)


@pytest.mark.parametrize(
    ("name", "codes", "box"),
    [
        ("xywh", [0.5, 0.5, -0.2, 0.1], [0.5, 0.5, 0.5, 0.6]),  # a negative width
        ("xyxy", [0.5, 0.5, 0.3, 0.6], [0.5, 0.5, 0.5, 0.6]),
        ("ltrb", [0.1, 0.1, -0.3, 0.1], [0.4, 0.4, 0.4, 0.6]),
    ],
)
def test_a_box_turned_inside_out_is_empty(composed, name, codes, box):
    coder = instantiate(composed(f"model/box_coder={name}").model.box_coder)
    torch.testing.assert_close(coder.decode(torch.tensor([codes])), torch.tensor([box]))
