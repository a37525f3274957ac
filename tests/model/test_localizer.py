import pytest
import torch
from hydra.utils import instantiate
from torchvision.transforms.functional import InterpolationMode, resize

from onebox.boxes import mirror
from onebox.model.localizer import cut_out, widened


def test_uint8_and_float_images_are_normalised_by_mean_and_std(composed):
    statistics = ["model.backbone.input.mean=[0.5,0.4,0.3]", "model.backbone.input.std=[0.2,0.2,0.1]"]
    model = instantiate(composed("model.num_classes=5", *statistics).model)
    images = torch.randint(0, 256, (4, 3, 100, 100), dtype=torch.uint8)
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1]))
    torch.testing.assert_close(model(images), model(images.float() / 255))
    torch.testing.assert_close(model(images).logits, model.cls_head(model.backbone((images / 255 - mean) / std)))
    convs = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)


@pytest.mark.parametrize("cls_head", ["linear", "box_pool"])
def test_flip_averaging_gives_an_image_and_its_mirror_the_mirrored_answer(composed, cls_head):
    cfg = composed("model.num_classes=5", "model.flip_average=true", f"model/cls_head={cls_head}").model
    model = instantiate(cfg).eval()
    images = torch.rand(2, 3, 100, 100)
    preds, mirrored = model(images), model(images.flip(-1))
    torch.testing.assert_close(preds.logits, mirrored.logits)
    torch.testing.assert_close(preds.boxes, mirror(mirrored.boxes))
    torch.testing.assert_close(model.box_coder.decode(preds.loc), preds.boxes)
    model.flip_average = False
    plain, other = model(images), model(images.flip(-1))
    torch.testing.assert_close(preds.logits.exp(), (plain.logits.softmax(1) + other.logits.softmax(1)) / 2)
    torch.testing.assert_close(preds.boxes[:, 0], (plain.boxes[:, 0] + 1 - other.boxes[:, 2]) / 2)
    model.flip_average = True
    torch.testing.assert_close(model.train()(images), plain)  # training sees each image as it is


@pytest.mark.parametrize("cls_head", ["linear", "box_pool"])
@pytest.mark.parametrize("flip_average", ["true", "false"])
def test_what_the_first_stages_gave_leads_to_the_same_predictions(composed, flip_average, cls_head):
    overrides = [f"model.flip_average={flip_average}", f"model/cls_head={cls_head}"]
    model = instantiate(composed("model.num_classes=5", *overrides).model).eval()
    images = torch.randint(0, 256, (4, 3, 100, 100), dtype=torch.uint8)
    for stage in model.backbone.stages:
        state = model.prefix(images, until=stage, mirrored=model.flip_average)
        preds = model(state, after=stage)
        for mine, whole in zip(preds, model(images), strict=True):
            torch.testing.assert_close(mine, whole)


def test_flip_averaging_shows_the_box_of_the_class_that_both_looks_together_find_likeliest(composed):
    cfg = composed("model/loc_head=per_class_box", "model.num_classes=3", "model.flip_average=true", "image_size=32")
    model = instantiate(cfg.model).eval()
    logits = iter(torch.tensor([[[0.0, 2.0, 1.9]], [[2.0, 0.0, 1.9]]]))  # one look says 1, the other 0, the mean 2
    model.cls_head.register_forward_hook(lambda *_: next(logits))
    images = torch.rand(1, 3, 32, 32)
    preds = model(images)
    assert preds.logits.argmax(1).tolist() == [2]
    boxes, others = (
        model.box_coder.decode(model.box_coder.activate(model.loc_head(model.backbone(look))[:, 8:]))
        for look in (images, images.flip(-1))
    )
    torch.testing.assert_close(preds.boxes, (boxes + mirror(others)) / 2)


def test_what_is_cut_out_is_the_part_of_the_image_enlarged_and_widened_boxes_stay_inside():
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    cut = cut_out(images, torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]]))
    part = resize(images[:1, :, 20:, 10:30].float() / 255, [40, 40], InterpolationMode.BILINEAR, antialias=False)
    torch.testing.assert_close(cut[:1, :, 1:, 1:-1], part[:, :, 1:, 1:-1])  # beyond the edges of the part there is more
    torch.testing.assert_close(cut[1:], images[1:] / 255)
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.8], [0.5, 0.5, 0.5, 0.5], [0.6, 0.1, 1.3, 0.3], [1.2, 1.3, 1.4, 1.5]])
    expected = [[0.35, 0.3, 0.65, 0.9], [0.375, 0.375, 0.625, 0.625], [0.5, 0.05, 1, 0.35], [0.875, 0.875, 1, 1]]
    torch.testing.assert_close(widened(boxes, 1.5), torch.tensor(expected))


@pytest.mark.parametrize("overrides", [[], ["model/loc_head=cells", "model/box_coder=cells"]])
@pytest.mark.parametrize("flip_average", ["true", "false"])
def test_a_second_look_gives_the_box_in_what_the_first_one_found(composed, overrides, flip_average):
    head = ["image_size=64", "model/cls_head=box_pool", f"model.flip_average={flip_average}", *overrides]
    model = instantiate(composed("model.num_classes=5", "model.second_look=1.5", *head).model).eval()
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    preds = model(images)
    model.second_look = None
    first = model(images)
    (x1, y1, x2, y2), rows = widened(first.boxes, 1.5).unbind(1), torch.arange(3)
    second = model(cut_out(images, torch.stack((x1, y1, x2, y2), dim=1)))
    torch.testing.assert_close(preds.boxes[rows, 0], x1 + second.boxes[:, 0] * (x2 - x1))
    torch.testing.assert_close(preds.boxes[rows, 3], y1 + second.boxes[:, 3] * (y2 - y1))
    torch.testing.assert_close(model.box_coder.decode(preds.loc), preds.boxes)
    torch.testing.assert_close(preds.logits.exp(), (first.logits.softmax(1) + second.logits.softmax(1)) / 2)
    model.second_look = 1.5
    state = model.prefix(images, until=model.backbone.stages[0], mirrored=model.flip_average)
    torch.testing.assert_close(model(state, after=model.backbone.stages[0]).boxes, first.boxes)


@pytest.mark.parametrize("cls_head", ["linear", "box_pool"])
@pytest.mark.parametrize("loc_head", ["linear", "spatial", "dense", "edges", "cells"])
def test_boxes_and_logits_are_float32_whatever_the_precision_of_the_trainer(composed, loc_head, cls_head):
    overrides = [f"model/loc_head={loc_head}", f"model/cls_head={cls_head}", "model.num_classes=3"]
    localizer = instantiate(composed(*overrides).model, _convert_="all").eval()
    images = torch.randint(0, 256, (8, 3, 100, 100), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        preds = localizer(images)
    assert {part.dtype for part in preds} == {torch.float32}
    assert not torch.equal(preds.boxes, preds.boxes.bfloat16().float())  # finer than steps of 1/256
