import pytest
import torch
from hydra.utils import instantiate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onebox.build import build_data, build_module
from onebox.errors import BadInput
from onebox.optim import cosine, one_cycle, slanted_triangular
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


def settings(optimizer) -> list[tuple[str, float, float, int]]:
    """Of each group the name, learning rate, weight decay, and number of parameters."""
    groups = optimizer.param_groups
    return [(group["name"], group["lr"], group["weight_decay"], count(group["params"])) for group in groups]


def count(parameters, dims=(1, 2, 3, 4)) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.ndim in dims)


def test_equal_parts_are_one_group(optimizer):
    made, module = optimizer("param_groups._target_=onebox.param_groups.ParamGroups")  # before it moved
    assert settings(made) == [("all", 0.1, 0.01, count(module.parameters()))]
    assert all(a is b for a, b in zip(made.param_groups[0]["params"], module.parameters(), strict=True))


def test_each_part_has_its_learning_rate_and_weight_decay(optimizer):
    made, module = optimizer(
        "param_groups.lr_factors.backbone=0.1",
        "param_groups.weight_decay_factors.cls_head=3",
        "param_groups.decay_norms_and_biases=false",
    )
    expected = []
    for part, lr, decay in [("backbone", 0.01, 0.01), ("loc_head", 0.1, 0.01), ("cls_head", 0.1, 0.03)]:
        parameters = list(getattr(module.localizer, part).parameters())
        expected.append((part, pytest.approx(lr), pytest.approx(decay), count(parameters, dims=(2, 4))))
        expected.append((part, pytest.approx(lr), 0.0, count(parameters, dims=(1,))))
    assert settings(made) == expected


def test_a_backbone_is_cut_into_pieces_of_its_stages(optimizer):
    made, module = optimizer("param_groups.lr_factors.backbone=[0.01,0.1,1]")
    backbone = module.localizer.backbone
    assert tuple(backbone.stages) == ("blocks.0", "blocks.3", "blocks.6", "blocks.9", "fc")
    blocks = backbone.blocks
    assert settings(made)[:3] == [
        ("backbone_1", pytest.approx(0.001), 0.01, count((*blocks[0].parameters(), *blocks[3].parameters()))),
        ("backbone_2", pytest.approx(0.01), 0.01, count((*blocks[6].parameters(), *blocks[9].parameters()))),
        ("backbone_3", pytest.approx(0.1), 0.01, count(backbone.fc.parameters())),
    ]


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
    ("override", "message"),
    [
        ("param_groups.lr_factors.backbone=[1,1,1,1,1,1]", "only the stages blocks.0, .*, fc; name fewer"),
        ("param_groups.lr_factors.backbone=[1,-1]", r"lr_factors.backbone\[1\] must be a number >= 0, not -1"),
        ("param_groups.weight_decay_factors.cls_head=much", "cls_head must be a number"),
    ],
)
def test_what_makes_no_sense_is_refused(composed, override, message):
    with pytest.raises(Exception, match=message) as error:
        train(composed(override, "callbacks.pictures=null"))
    assert isinstance(error.value, BadInput) or isinstance(error.value.__cause__, BadInput)


def rates(schedule, num_steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler = schedule(optimizer, num_steps, **options)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_rises_holds_the_optimizers_rate_and_falls_to_the_final_one():
    seen = rates(cosine, 100, warmup=0.1, hold_steps=0, final_factor=0.1)
    assert max(seen) == seen[10] == pytest.approx(0.5)
    assert seen[0] < 0.1
    assert seen[-1] == pytest.approx(0.05, abs=1e-3)
    assert seen[55] == pytest.approx((0.5 + 0.05) / 2, rel=1e-6)  # half-way down
    seen = rates(cosine, 100, warmup=0.0, hold_steps=30, final_factor=0.0)
    assert seen[:31] == [0.5] * 31
    assert seen[31] < 0.5
    assert seen[65] == pytest.approx(0.25)
    assert rates(cosine, 30, warmup=0.0, hold_steps=30, final_factor=0.0) == [0.5] * 30


def test_one_cycle_starts_peaks_and_ends_where_it_is_told():
    seen = rates(one_cycle, 100, warmup=0.3, initial_factor=0.1, final_factor=0.001)
    assert (seen[0], max(seen), seen[-1]) == pytest.approx((0.05, 0.5, 0.0005))
    short = rates(one_cycle, 4, warmup=0.25, initial_factor=0.1, final_factor=0.001)  # it rises in a single step
    assert (short[0], short[-1]) == pytest.approx((0.05, 0.0005))


def test_slanted_triangular_rises_and_falls_in_each_cycle():
    cycles = [{"length": 3, "factor": 1.0, "rise": 0.2}, {"length": 7, "factor": 0.1, "rise": 0.5}]
    seen = rates(slanted_triangular, 100, cycles=cycles, initial_factor=0.1)
    assert (seen[0], seen[6], seen[18]) == pytest.approx((0.05, 0.5, 0.275))  # begins, peaks, is half-way down
    assert max(seen[30:]) == seen[65] == pytest.approx(0.05)
    assert seen[30] == pytest.approx(0.005)
    assert seen[99] < 0.01


COSINE = {"warmup": 0.1, "hold_steps": 0, "final_factor": 0.1}
ONE_CYCLE = {"warmup": 0.1, "initial_factor": 0.1, "final_factor": 0.1}
TRIANGLE = {"cycles": [{"length": 1, "factor": 1, "rise": 0}], "initial_factor": 0.1}


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (cosine, COSINE | {"warmup": 1.5}, r"warmup must be in \[0, 1\), not 1.5"),
        (cosine, COSINE | {"hold_steps": -1}, "hold_steps must be a number >= 0, not -1"),
        (cosine, COSINE | {"final_factor": "x"}, "final_factor must be a number >= 0, not x"),
        (one_cycle, ONE_CYCLE | {"warmup": 0}, r"warmup must be in \(0, 1\), not 0"),
        (one_cycle, ONE_CYCLE | {"initial_factor": 0}, "initial_factor must be a number > 0, not 0"),
        (slanted_triangular, TRIANGLE | {"initial_factor": -1}, "initial_factor must be a number >= 0, not -1"),
        (slanted_triangular, TRIANGLE | {"cycles": []}, r"scheduler\.cycles must be like"),
        (slanted_triangular, TRIANGLE | {"cycles": [{"length": 1, "factor": 1.0}]}, "must be like"),
        (slanted_triangular, TRIANGLE | {"cycles": [{"length": 0, "factor": 1.0, "rise": 0.1}]}, "must be like"),
    ],
)
def test_a_number_out_of_its_range_is_refused(schedule, options, message):
    with pytest.raises(BadInput, match=message):
        rates(schedule, 10, **options)
