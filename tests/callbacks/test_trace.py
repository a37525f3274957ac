import numpy as np
import pytest
import torch

from onebox.callbacks.trace import StepTrace
from onebox.errors import BadInput, Preempted
from onebox.train import train

SHORT = ["debug=fast", "callbacks/progress=lines", "callbacks.pictures=null"]


class Trainer:
    is_global_zero = True
    current_epoch = 0


class Module:
    log_every_n_steps = 2


def make_steps(trace: StepTrace, losses: list[float]) -> None:
    trace.on_train_start(Trainer, Module)
    for number, loss in enumerate(losses):
        Module.last_step = ({"loss": torch.tensor(loss), "loss_cls": torch.tensor(loss / 3)}, None, None)
        trace.on_train_batch_end(Trainer, Module, None, None, number)
    trace.on_train_epoch_end(Trainer, Module)


def test_a_resumed_fit_leaves_the_rows_of_one_that_was_never_stopped(tmp_path):
    losses = [0.1, 1e-9, float("nan"), 3.0]
    make_steps(StepTrace(str(tmp_path / "straight"), None), losses)
    straight = (tmp_path / "straight").read_text()
    rows = [line.split(",") for line in straight.splitlines()]
    assert rows[0] == ["step", "epoch", "loss", "loss_cls"]
    assert np.float32(rows[1][3]) == np.float32(0.1) / np.float32(3)  # to the last bit
    killed = tmp_path / "killed"
    killed.write_text(straight[:-5])  # torn
    resumed = StepTrace(str(killed), None)
    resumed.load_state_dict({"steps": 1})  # the checkpoint was of the first step
    make_steps(resumed, losses[1:])
    assert killed.read_text() == straight


def test_it_ends_a_fit_after_the_steps_that_were_asked_for(composed, tmp_path):
    with pytest.raises(Preempted, match="stopped after 2 steps"):
        train(composed(*SHORT, "callbacks.trace.stop_after=2"))
    assert len((tmp_path / "run" / "trace.csv").read_text().splitlines()) == 1 + 2


def test_a_link_is_not_written_through(composed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / "trace.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(BadInput, match=r"trace\.csv"):
        train(composed(*SHORT))
    assert (tmp_path / "precious").read_text() == "mine"
