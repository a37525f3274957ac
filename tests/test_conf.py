"""Every file of conf/ composes and instantiates; a misspelt key is an error."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import OmegaConf

from onebox.build import build_data, build_module, build_trainer, fill_in

CONF = Path(__file__).parent.parent / "conf"
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))

# What is handed over when an object is built, not configured.
GIVEN_AT_RUN_TIME = {"self", "transform", "feature_shape", "out_features", "optimizer", "num_steps", "root"}


def choose(file: str) -> list[str]:
    """The overrides that choose a file of conf/ in its group, and what goes with no other option of another one."""
    group, _, option = file.rpartition("/")
    cells = ["model/loc_head=cells", "model/box_coder=cells", "loss/loc=cells"]
    return (cells if f"{group}={option}" in cells[1:] else [f"{group}={option}"]) if group else []


def check_arguments(node):
    """Every argument of our own classes stands in YAML, and has no second default in Python."""
    if isinstance(node, dict):
        target = node.get("_target_")
        ours = isinstance(target, str) and target.startswith("onebox.") and get_object(target)
        # What a class inherits from a library has the library's defaults.
        if ours and getattr(ours.__init__, "__module__", "onebox.").startswith("onebox."):
            parameters = inspect.signature(ours).parameters.values()
            wanted = [item for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
            assert {item.name for item in wanted} <= node.keys() | GIVEN_AT_RUN_TIME, target
            assert not [item.name for item in wanted if item.default is not item.empty], target
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        check_arguments(value)


@pytest.mark.parametrize("file", FILES)
def test_every_file_spells_all_arguments_and_makes_a_module_that_learns_with_all_its_parameters(
    composed, tmp_path, file
):
    cfg = composed(*choose(file), f"data.root={tmp_path}", "data.splits={train:['*']}", small=False)
    check_arguments(OmegaConf.to_container(cfg, resolve=True))
    data = build_data(cfg)
    data.class_names = ["background", "cat", "dog"]
    fill_in(cfg, SimpleNamespace(num_classes=3, class_counts=[0, 5, 2]))
    module = build_module(cfg, data)
    trainer = build_trainer(cfg)
    optimizer = module.param_groups.optimizer(module.make_optimizer, module.localizer, module.loss)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.parameters())) > 0
    preds = module(torch.zeros(2, 3, cfg.image_size, cfg.image_size, dtype=torch.uint8))
    assert preds.boxes.shape == (2, 4)
    assert preds.logits.shape == (2, 3)
    assert len(trainer.loggers) >= 1


@pytest.mark.parametrize("file", FILES)
def test_every_file_says_in_its_first_lines_what_it_is_for(file):
    lines = [line for line in (CONF / f"{file}.yaml").read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 10
    if file.startswith("experiment/"):
        assert lines[0].startswith("# Claim: ")
        assert "# Run:   onebox-train experiment=" in "\n".join(lines)


@pytest.mark.parametrize("key", ["data.batchsize=8", "optimizer.learning_rate=1", "loss.weights.box=3", "sede=1"])
def test_a_misspelt_key_is_an_error(composed, key):
    with pytest.raises(ConfigCompositionException, match=key.partition("=")[0]):
        composed(key)


def test_interpolations_reach_only_top_level_scalars():
    for file in FILES:
        for line in (CONF / f"{file}.yaml").read_text().splitlines():
            if "${" in line and not line.lstrip().startswith(("#", "$", "{")) and not file.startswith("hydra/"):
                for name in line.replace("}", "").split("${")[1:]:
                    assert "." not in name.split(",")[0].split("/")[0] or name.startswith(("oc.env", "hydra")), line
