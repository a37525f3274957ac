from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer


def test_epochs_are_counted_from_1(composed):
    bar = instantiate(composed().callbacks.progress)
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[bar])
    bar.setup(trainer, LightningModule(), "fit")
    assert [bar._get_train_description(epoch).strip() for epoch in (0, 1)] == ["Epoch 1/2", "Epoch 2/2"]
