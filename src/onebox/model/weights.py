"""Pretrained weights: from a file, from the network, and the hash by which a run tells which ones it had."""

import hashlib
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from onebox.errors import BadInput, check
from onebox.model.features import InputRecord

IN_CHECKPOINT = "localizer.backbone.net."  # before the names of a backbone's weights in a checkpoint of onebox


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load a file into `net`, which has lost its classifier.

    Args:
        net: a network, its parameters named as in the file.
        path: a state dict as torch or safetensors write it, with or without a classifier, or a checkpoint of onebox.

    Raises:
        BadInput: it is not there, cannot be read, holds something else than tensors, or weights of another network.
    """
    given = f"model.backbone.pretrained={path}"
    state = _read(Path(path), given)
    state = {name.removeprefix(IN_CHECKPOINT): value for name, value in state.items()}
    own = net.state_dict()
    ours = {name for name, _ in net.named_children()}
    problems = [f"{name} is missing" for name in own if name not in state and not name.endswith("num_batches_tracked")]
    for name, value in state.items():
        if name not in own and name.partition(".")[0] in ours:
            problems.append(f"{name} is too many")
        elif name in own and own[name].shape != value.shape:
            problems.append(f"{name} is {list(value.shape)}, not {list(own[name].shape)}")
    check(not problems, f"{given}: weights of another network; {'; '.join(problems[:2])} ({len(problems)} such)")
    net.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)


def _read(path: Path, given: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with timm

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadInput(f"{given}: no such file; it must be true, false, or a file of weights") from error
    except ImportError as error:
        raise BadInput(f"{given}: reading it needs safetensors: pip install safetensors") from error
    except Exception as error:  # safetensors and torch have a dozen of them
        raise BadInput(f"{given}: cannot be read; it is cut off, damaged, or holds more than plain tensors") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {name: value for name, value in content["state_dict"].items() if name.startswith(IN_CHECKPOINT)}
    if not isinstance(content, dict) or not content or not all(isinstance(item, Tensor) for item in content.values()):
        raise BadInput(f"{given}: holds neither a state dict nor the backbone of a onebox checkpoint")
    return content


@contextmanager
def fetching(url: str, folder: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a library fetches weights into one line.

    Args:
        url: the file that is needed.
        folder: where the library keeps it.

    Raises:
        BadInput: says what to do.
    """
    try:
        yield
    except Exception as error:  # each library has its own
        reason = textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        raise BadInput(
            f"model.backbone.pretrained=true needs {url}, which did not load ({reason}); go online, or bring that file "
            f"here and set model.backbone.pretrained=FILE, or false for none; a damaged copy in {folder} is to be "
            "deleted"
        ) from error


def check_record(name: str, given: InputRecord, own: InputRecord) -> None:
    """Hold the record in the config against the one that comes with the weights.

    Raises:
        BadInput: names the overrides to paste.
    """
    advice = []
    for key, mine, theirs in ((item.name, getattr(given, item.name), getattr(own, item.name)) for item in fields(own)):
        if key in ("mean", "std") and list(mine) != list(theirs):
            advice.append(f"'model.backbone.input.{key}=[{','.join(map(str, theirs))}]'")
        elif key not in ("mean", "std") and mine != theirs:
            advice.append(f"model.backbone.input.{key}={theirs}")
            advice += [f"image_size={theirs}"] if key == "size" else [f"interpolation={theirs}"]
    check(not advice, f"the weights of {name} were trained on other images; add {' '.join(advice)}")


def weights_hash(module: nn.Module, counts: Callable[[str], bool] = lambda name: True) -> str:
    """Hash of all weights and buffers that a checkpoint keeps, with their names; of those whose name `counts`."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if not counts(name):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
