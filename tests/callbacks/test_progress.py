from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer

from onebox.train import train


def test_the_bar_counts_epochs_from_1(composed):
    bar = instantiate(composed().callbacks.progress)
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[bar])
    bar.setup(trainer, LightningModule(), "fit")
    assert [bar._get_train_description(epoch).strip() for epoch in (0, 1)] == ["Epoch 1/2", "Epoch 2/2"]


def test_lines_name_each_finished_epoch_and_pass_over_what_was_not_logged(composed, capsys):
    lines = ["callbacks/progress=lines", "callbacks.progress.tags=[train/loss_loc,val/iou]"]
    train(composed("debug=fast", *lines, "trainer.check_val_every_n_epoch=2", "callbacks.pictures=null"))
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert [line[1] for line in printed] == ["1/2", "2/2"]
    assert [line[2::2] for line in printed] == [["loss_loc"], ["loss_loc", "iou"]]
