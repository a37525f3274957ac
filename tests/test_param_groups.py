import pytest
import torch
from hydra.utils import instantiate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onebox.build import build_data, build_module
from onebox.errors import BadInput
from onebox.train import train


@pytest.fixture
def optimizer(composed):
    """The optimizer and the network that overrides describe."""

    def make(*overrides: str):
        cfg = composed("optimizer=adamw", "optimizer.lr=0.1", "optimizer.weight_decay=0.01", *overrides)
        cfg.model.num_classes = 3
        data = build_data(cfg)
        data.class_names = ["background", "cat", "dog"]
        module = build_module(cfg, data)
        return module.param_groups.optimizer(module.make_optimizer, module.localizer, module.loss), module

    return make


def settings(optimizer) -> dict[str, list[tuple[float, float, int]]]:
    found: dict[str, list[tuple[float, float, int]]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["name"], []).append(
            (group["lr"], group["weight_decay"], sum(parameter.numel() for parameter in group["params"]))
        )
    return found


def count(*modules, dims=(1, 2, 3, 4)) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim in dims)


def test_equal_parts_are_one_group(optimizer):
    made, module = optimizer("param_groups._target_=onebox.param_groups.ParamGroups")  # before it moved
    assert settings(made) == {"all": [(0.1, 0.01, count(module))]}
    assert all(a is b for a, b in zip(made.param_groups[0]["params"], module.parameters(), strict=True))


def test_each_part_has_its_learning_rate_and_weight_decay(optimizer):
    made, module = optimizer(
        "param_groups.lr_factors.backbone=0.1",
        "param_groups.weight_decay_factors.cls_head=3",
        "param_groups.decay_norms_and_biases=false",
    )
    net = module.localizer
    assert settings(made) == {
        "backbone": [
            (pytest.approx(0.01), 0.01, count(net.backbone, dims=(2, 4))),
            (pytest.approx(0.01), 0.0, count(net.backbone, dims=(1,))),
        ],
        "loc_head": [(0.1, 0.01, count(net.loc_head, dims=(2,))), (0.1, 0.0, count(net.loc_head, dims=(1,)))],
        "cls_head": [
            (0.1, pytest.approx(0.03), count(net.cls_head, dims=(2,))),
            (0.1, 0.0, count(net.cls_head, dims=(1,))),
        ],
    }


def test_a_backbone_is_cut_into_pieces_of_its_stages(optimizer):
    made, module = optimizer("param_groups.lr_factors.backbone=[0.01,0.1,1]")
    backbone = module.localizer.backbone
    assert tuple(backbone.stages) == ("blocks.0", "blocks.3", "blocks.6", "blocks.9", "fc")
    found = settings(made)
    assert [found[f"backbone_{n}"][0][0] for n in (1, 2, 3)] == pytest.approx([0.001, 0.01, 0.1])
    blocks = backbone.blocks
    assert found["backbone_1"][0][2] == count(blocks[0], blocks[3])
    assert found["backbone_2"][0][2] == count(blocks[6], blocks[9])
    assert found["backbone_3"][0][2] == count(backbone.fc)


@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle"])
def test_schedules_scale_each_groups_own_rate(optimizer, composed, scheduler):
    made, _ = optimizer("param_groups.lr_factors.backbone=0.1")
    schedule = instantiate(composed(f"scheduler={scheduler}").scheduler, _convert_="all")(made, 20)
    seen = []
    for _ in range(20):
        backbone, *heads = (group["lr"] for group in made.param_groups)
        assert heads == pytest.approx([10 * backbone] * 2)
        seen.append(heads[0])
        made.step()
        schedule.step()
    assert max(seen) == pytest.approx(0.1)
    assert seen[0] < 0.1 > seen[-1]


def test_a_fit_moves_what_has_a_rate_and_logs_it_by_name(composed, tmp_path):
    overrides = ["debug=fast", "param_groups.lr_factors.backbone=[0,1]", "callbacks.pictures=null", "optimizer=sgd"]
    train(composed("callbacks/progress=lines", *overrides))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rates = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"] if tag.startswith("step/lr")}
    assert rates == {
        "step/lr/backbone_1": 0,
        **dict.fromkeys(("step/lr/backbone_2", "step/lr/loc_head", "step/lr/cls_head"), pytest.approx(0.05)),
    }
    cfg = composed(*overrides, "model.num_classes=9")
    torch.manual_seed(0)
    start = instantiate(cfg.model, _convert_="all").backbone.state_dict()
    end = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    moved = {name for name in start if not torch.equal(start[name], end[f"localizer.backbone.{name}"])}
    assert moved == {f"{layer}.{kind}" for layer in ("blocks.9", "fc.2") for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("param_groups.lr_factors.backbone=[1,1,1,1,1,1]", "only the stages blocks.0, .*, fc; name fewer"),
        ("param_groups.lr_factors.backbone=[1,-1]", r"lr_factors.backbone\[1\] must be a number >= 0, not -1"),
        ("param_groups.weight_decay_factors.cls_head=much", "cls_head must be a number"),
    ],
)
def test_what_makes_no_sense_is_refused(composed, override, told):
    with pytest.raises(Exception, match=told) as error:
        train(composed(override, "callbacks.pictures=null"))
    assert isinstance(error.value, BadInput) or isinstance(error.value.__cause__, BadInput)
