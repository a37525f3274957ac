import pytest
import torch

from onebox.runs.checkpoint import AtomicCheckpointIO


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
