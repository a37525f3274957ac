import pytest
import torch

from onebox.runs.reading.load import load_run
from onebox.train import train


@pytest.mark.parametrize("best_is_last", [True, False])
def test_a_finished_run_keeps_nothing_twice(composed, tmp_path, best_is_last):
    # The loss falls, so that the highest one is that of the first epoch.
    monitor = ["monitor=train/loss", f"monitor_mode={'min' if best_is_last else 'max'}", "optimizer=adam"]
    train(
        composed(
            *monitor, "trainer.max_epochs=3", "callbacks/progress=lines", "callbacks.checkpoint_last.epoch_seconds=0"
        )
    )
    folder = tmp_path / "run" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    best, last = folder / "best.ckpt", folder / "last.ckpt"
    assert best.samefile(last) == best_is_last
    if not best_is_last:
        assert best.stat().st_size < last.stat().st_size / 2  # without the optimizer
    weights = torch.load(best, weights_only=True)["state_dict"]
    loaded = load_run(tmp_path / "run").localizer.state_dict()
    assert all(torch.equal(weights[f"localizer.{name}"], value) for name, value in loaded.items())
    in_run = {path.name for path in (tmp_path / "run").iterdir()}
    assert "report.html" in in_run
    assert not in_run & {"predictions.jpg", "predictions.png"}  # the report has the picture
    events = sum(path.stat().st_size for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert events < 1_000_000
