import logging
import os
import pickle

import pytest
import torch

from onebox.errors import BadInput
from onebox.runs.checkpoint import FORMAT, AtomicCheckpointIO, checkpoint_to_resume, read_checkpoint

FACTS = {"fingerprint": "abc", "data_fingerprint": {"train": "t"}}


def test_a_failed_write_keeps_the_old_checkpoint_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"epoch": 1}, path)

    class Unwritable:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        writer.save_checkpoint({"epoch": 2, "state": Unwritable()}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["last.ckpt"]


def good(**facts):
    return {"onebox": {"format": FORMAT, **FACTS, **facts}, "epoch": 1, "global_step": 9, "weights": torch.arange(1000)}


def damaged(path, *, cut=0, flip=0):
    torch.save(good(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= flip
    path.write_bytes(content[: len(content) - cut])


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "cut off"),
    "truncated": (lambda path: damaged(path, cut=200), "cut off"),
    "damaged": (lambda path: damaged(path, flip=1), "cannot be read"),
    "text": (lambda path: path.write_text("hello"), "no checkpoint"),
    "foreign": (lambda path: torch.save({"state_dict": {}}, path), "not a checkpoint of onebox"),
    "a tensor": (lambda path: torch.save(torch.zeros(2), path), "not a checkpoint of onebox"),
    "newer": (lambda path: torch.save({"onebox": {"format": FORMAT + 1}}, path), "newer onebox"),
    "of another run": (lambda path: torch.save(good(fingerprint="other"), path), "another config .other, not abc."),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_refused_with_one_line_and_the_previous_one_is_used(tmp_path, kind, caplog):
    write, told = BAD[kind]
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(good(), folder / "previous.ckpt")
    write(folder / "last.ckpt")
    with pytest.raises(BadInput, match=told) as refusal:
        read_checkpoint(folder / "last.ckpt", fingerprint="abc")
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(f"{folder / 'last.ckpt'}: ")
    with caplog.at_level(logging.WARNING):
        assert checkpoint_to_resume(tmp_path, FACTS) == folder / "previous.ckpt"
    assert str(refusal.value) in caplog.text
    with pytest.raises(BadInput, match=r"data have changed since the run began .train."):
        checkpoint_to_resume(tmp_path, {**FACTS, "data_fingerprint": {"train": "u"}})
    (folder / "previous.ckpt").unlink()
    assert checkpoint_to_resume(tmp_path, FACTS) is None


class Payload:
    """What a malicious pickle does when it is loaded: here it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_the_code_in_a_malicious_checkpoint_does_not_run(tmp_path, save):
    path, trace = tmp_path / "last.ckpt", tmp_path / "the payload ran"
    save({**good(), "more": Payload(str(trace))}, path)
    with pytest.raises(BadInput, match=r"was not loaded|no checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()
