"""Checkpoint files: whole or not there, plain data, and known to belong to a run."""

import io
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from onebox.errors import BadInput, check
from onebox.files import file_hash, opened, replacing
from onebox.model.localizer import Localizer
from onebox.runs.fingerprint import changed_parts
from onebox.runs.record import read_record, why_no_checkpoint

log = logging.getLogger(__name__)

FORMAT = 1  # grows when older code would misread a checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames: it is the old one or the new one, never a piece of it.

    Lightning writes to the folder of temporary files, where what a killed process leaves is never removed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()  # torch hides what a full disk says
        torch.save(checkpoint, buffer)
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class CheckpointFacts(Callback):
    """Stores in each checkpoint which run it belongs to, as `checkpoint["onebox"]`; stops ranks of different runs.

    The `facts` are config, fingerprint, data_fingerprint and class_names. They may be completed until the fit.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise `BadInput` on all ranks alike, which names the first rank that was started differently, and how."""
        if trainer.world_size == 1:
            return
        mine = {name: self._facts[name] for name in ("fingerprint", "data_fingerprint")}
        mine |= {"run_dir": self._facts["config"]["run_dir"], "checkpoint": trainer.ckpt_path}
        everyone: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, mine)
        for rank, theirs in enumerate(everyone):
            differs = [f"{name} {theirs[name]}, not {is_}" for name, is_ in everyone[0].items() if theirs[name] != is_]
            check(
                not differs,
                f"rank {rank} was started with another config, data or state than rank 0 ({', '.join(differs)}); "
                "start all ranks by the same command, with the same files and hydra.run.dir",
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["onebox"] = {"format": FORMAT, **self._facts}


def read_checkpoint(path: Path, *, fingerprint: str | None = None) -> dict[str, Any]:
    """A checkpoint of onebox, its tensors in main memory. No code in it is ever run.

    Raises:
        BadInput: it is not there, not whole, not plain data, not of onebox, of a newer onebox or, unless that is None,
            of a run with another `fingerprint`.
    """
    try:
        with opened(path, None) as file:
            with zipfile.ZipFile(file) as packed:
                # torch packs without compressing, so what is more than the file would fill the memory; and it ignores
                # the check sums.
                is_whole = sum(item.file_size for item in packed.infolist()) <= os.fstat(file.fileno()).st_size
                check(is_whole and packed.testzip() is None, f"{path}: cannot be read; it is damaged")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise BadInput(f"{path}: holds something other than plain data, so it was not loaded") from error
    except BadInput:
        raise
    except Exception as error:  # torch raises a dozen kinds
        raise BadInput(f"{path}: cannot be read; it is cut off, damaged or no checkpoint") from error
    facts: Any = checkpoint.get("onebox") if isinstance(checkpoint, dict) else None
    is_ours = isinstance(facts, dict) and isinstance(facts.get("format"), int)
    check(is_ours, f"{path}: not a checkpoint of onebox")
    newer = f"{path}: written by a newer onebox (format {facts['format']}, this one reads {FORMAT})"
    check(facts["format"] <= FORMAT, newer)
    theirs = facts.get("fingerprint")
    check(fingerprint in (None, theirs), f"{path}: belongs to a run of another config ({theirs}, not {fingerprint})")
    return checkpoint


def checkpoint_to_resume(run_dir: Path, facts: Mapping[str, Any]) -> Path | None:
    """The last usable checkpoint of a run, None to start from the beginning; logs which ones are unusable.

    Raises:
        BadInput: the data are not those that the run began with.
    """
    for path in (run_dir / "checkpoints" / "last.ckpt", run_dir / "checkpoints" / "previous.ckpt"):
        if not path.exists():
            continue
        try:
            content = read_checkpoint(path, fingerprint=facts["fingerprint"])
        except BadInput as error:
            log.warning("%s; skipped", error)
            continue
        begun, now = content["onebox"]["data_fingerprint"], facts["data_fingerprint"]
        changed = changed_parts(begun, now)
        check(
            not changed,
            f"{run_dir}: the data have changed since the run began ({', '.join(changed)}); restore them, or "
            "choose another hydra.run.dir",
        )
        log.info("resumes after %s epochs, %s steps", content["epoch"], content["global_step"])
        return path
    attempts = (read_record(run_dir) or {}).get("attempts") or [{}]
    log.info("starts again: %s", why_no_checkpoint(attempts[-1]) or "there is no checkpoint to resume from")
    return None


def begin_with(localizer: Localizer, init: Mapping[str, str], class_names: Sequence[str]) -> None:
    """Give a network the weights of the best checkpoint of another run, as `init=RUN` asks for.

    Layers of the heads whose size follows from the number of classes stay as they were drawn, if that has changed.

    Raises:
        BadInput: other layers do not fit, or the checkpoint is not the one that was named.
    """
    from onebox.runs.reading.find import weights_file

    path = weights_file(Path(init["run"]))
    check(
        file_hash(path) == init["weights"], f"{path}: has been replaced since init={init['run']} was given; repeat it"
    )
    checkpoint = read_checkpoint(path)
    old_names, prefix = checkpoint["onebox"]["class_names"], "localizer."
    old = {key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    new = localizer.state_dict()
    misfits = [
        f"{key} {[*old[key].shape] if key in old else 'absent'} -> {[*new[key].shape] if key in new else 'absent'}"
        for key in [*new, *(key for key in old if key not in new)]
        if not (key in old and key in new and old[key].shape == new[key].shape)
    ]
    drawn = [
        text
        for text in misfits
        if (key := text.partition(" ")[0]) in old
        and key in new
        and key.startswith(("cls_head.", "loc_head."))
        and len(old[key]) * len(class_names) == len(new[key]) * len(old_names)
        and old[key].shape[1:] == new[key].shape[1:]
        and len(old_names) != len(class_names)
    ]
    others = [text for text in misfits if text not in drawn]
    check(
        not others,
        f"init={init['run']}: {len(others)} layers do not fit: {', '.join(others[:5])}; choose the model and "
        "image_size of that run, as like=RUN does",
    )
    names = {text.partition(" ")[0] for text in drawn}
    localizer.load_state_dict({key: new[key] if key in names else old[key] for key in new})
    if drawn:
        log.info("init: %d classes in place of %d; drawn anew: %s", len(class_names), len(old_names), ", ".join(drawn))
    elif list(old_names) != list(class_names):
        log.info("init: the classes have other names or another order than in %s; all weights are taken", init["run"])


def load_weights(module: nn.Module, path: Path, *, are_trained: bool = False) -> None:
    """Load a checkpoint's weights; where they were averaged, the averages or, `are_trained`, what is trained on."""
    checkpoint = read_checkpoint(path)
    try:
        module.load_state_dict((are_trained and checkpoint.get("current_model_state")) or checkpoint["state_dict"])
    except RuntimeError as error:
        raise BadInput(f"{path}: the weights are of another network ({error})") from error
