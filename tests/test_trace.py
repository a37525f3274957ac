"""The trace file: what it tells apart, and that a kill or a resume leaves no mark."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onebox.callbacks.trace import _chunks, _integers, _Rows
from onebox.errors import BadInput
from onebox.trace import CHECKSUM, LOSS, RATE, Trace, TraceWriter, checksums, first_divergence

FIELDS = [("batch boxes", CHECKSUM), ("loss", LOSS), ("lr", RATE), ("weight", CHECKSUM)]


def write(path, boxes, losses, keep=0):
    """A trace with these checksums and losses."""
    writer = TraceWriter(path, FIELDS, {"weight": 7}, keep=keep)
    count = np.arange(keep, keep + len(boxes))
    writer.append([count // 2, count % 2, boxes, losses, np.full(len(boxes), 1e-3), np.zeros(len(boxes))])
    return path


def checksum(tensor: torch.Tensor) -> int:
    values, lengths = _integers([tensor])
    return int(checksums(values, lengths)[0])


def test_a_torn_record_is_passed_over_and_going_on_leaves_no_mark(tmp_path):
    straight = write(tmp_path / "straight", [1, 2, 3, 4], [0.5, 0.4, 0.3, 0.2])
    killed = write(tmp_path / "killed", [1, 2, 3], [0.5, 0.4, 0.3])
    killed.write_bytes(killed.read_bytes()[:-5])
    assert len(Trace.read(killed)) == 2
    write(killed, [2, 3, 4], [0.4, 0.3, 0.2], keep=1)  # the checkpoint was of step 1
    assert killed.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize(
    ("boxes", "losses", "told"),
    [
        ([1, 2, 3], [0.5, 0.4, 0.3], None),
        ([1, 2, 3], [0.5, np.nextafter(np.float32(0.4), np.float32(1)), 0.3], (1, "loss", (0.4, 0.40000004))),
        ([1, 2, 9], [0.5, 0.4, 0.2], (2, "batch boxes", ("00000003", "00000009"))),
        ([1, 2], [0.5, 0.4], (2, "end", None)),
    ],
)
def test_the_first_difference_is_named_with_both_values(tmp_path, boxes, losses, told):
    one = Trace.read(write(tmp_path / "one", [1, 2, 3], [0.5, 0.4, 0.3]))
    found = first_divergence(one, Trace.read(write(tmp_path / "other", boxes, losses)))
    if told is None:
        assert found is None
    else:
        assert (found.step, found.name, found.values.get(found.name)) == told
        assert (found.epoch, found.batch) == divmod(found.step, 2)


def test_a_file_that_is_no_trace_is_refused(tmp_path):
    for content in (b"", b'{"schema":1,"fie', b"\x00\xff\n", b"[]\n", b'{"schema":2,"fields":[],"initial":{}}\n'):
        (tmp_path / "trace.bin").write_bytes(content)
        with pytest.raises(BadInput, match=r"trace\.bin"):
            Trace.read(tmp_path / "trace.bin")


@given(st.data())
def test_a_checksum_sees_every_change_and_every_exchange(data):
    shape = data.draw(st.sampled_from([(7,), (4, 9), (8, 3, 3, 3)]))
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    place = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
    changed = weights.clone()
    changed[place] = torch.nextafter(changed[place], torch.tensor(9.0))
    assert checksum(_Rows(changed)()) != checksum(_Rows(weights)())
    assert checksum(_Rows(weights.flip(0))()) != checksum(_Rows(weights)())
    if len(shape) == 4:
        assert checksum(_Rows(weights.to(memory_format=torch.channels_last))()) == checksum(_Rows(weights)())


@pytest.mark.parametrize("side", [1, 7, 64])
def test_a_checksum_of_images_sees_every_pixel(side):
    images = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    changed = images.clone()
    changed[-1, -1, -1, -1] += 1
    assert checksum(_chunks(changed)) != checksum(_chunks(images))
    assert checksum(_chunks(images.contiguous())) == checksum(_chunks(images))  # whatever the memory format
    offset = torch.zeros(images.numel() + 1, dtype=torch.uint8)[1:].view(3, side, side, 3).permute(0, 3, 1, 2)
    assert checksum(_chunks(offset.copy_(images))) == checksum(_chunks(images))
