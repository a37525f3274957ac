import json

import pytest

from onebox.train import train


@pytest.mark.parametrize(("monitor", "epochs"), [("val/joint_acc", 6), ("train/loss", 3)])
def test_only_new_values_count_where_not_every_epoch_validates(composed, tmp_path, monitor, epochs):
    stopping = ["callbacks/early_stopping=default", "callbacks.early_stopping.patience=2"]
    short = ["debug=fast", "callbacks/progress=lines", "callbacks.pictures=null", "trainer.max_epochs=9"]
    mode = [f"monitor={monitor}", f"monitor_mode={'min' if 'loss' in monitor else 'max'}", "optimizer.lr=0"]
    data = ["augment=none", "model.backbone.dropout=0", "data.limit=8"]  # the same loss in each epoch
    train(composed(*short, *stopping, *mode, *data, "trainer.check_val_every_n_epoch=2"))
    told = json.loads((tmp_path / "run" / "run.json").read_text())["stopped_early"]
    assert told.startswith(
        f"stopped after epoch {epochs} of 9: Monitored metric {monitor} did not improve in the last 2"
    )
