from onebox.callbacks.epoch_csv import EpochCsvLogger


def test_one_row_an_epoch_with_all_tags_and_nothing_logged_by_step(tmp_path):
    logger = EpochCsvLogger(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"step/loss": 9.0}, step=3)
    logger.log_metrics({"val/iou": 0.5, "epoch": 0}, step=10)
    logger.log_metrics({"train/loss": 1.5, "epoch": 0}, step=10)
    logger.save()
    logger.log_metrics({"train/loss": 1.25, "epoch": 1}, step=20)
    logger.log_metrics({"test/iou": 0.1, "epoch": 1}, step=20)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text() == "epoch,train/loss,val/iou\n0,1.5,0.5\n1,1.25,\n"
