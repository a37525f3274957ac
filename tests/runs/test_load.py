import numpy as np
import pytest
import torch

import onebox
from onebox.boxes import paired_iou, unnorm
from onebox.build import build_data
from onebox.data.image import read_image
from onebox.errors import BadInput
from onebox.files import read_json
from onebox.train import train


@pytest.fixture
def cfg(composed):
    return composed(
        "trainer.max_epochs=2",
        "callbacks/ema=default",
        "callbacks.ema.decay=0.9",
        "callbacks/progress=lines",
        "callbacks.pictures=null",
        "callbacks.checkpoint_last=null",  # which would be the best one, too, with averaged weights alone
        "optimizer.lr=0.01",
        "data.batch_size=8",
        "image_size=32",
        "model.flip_average=true",
    )


def test_a_loaded_run_predicts_what_the_test_measured_with_averaged_weights(cfg):
    train(cfg)
    run = onebox.load_run(cfg.run_dir)
    data = build_data(cfg)
    data.setup()
    index = data.indexes["test"]
    images = [read_image(path) for path in index.image_paths]
    found = run.predict(images)

    tested = read_json(f"{cfg.run_dir}/metrics.json")["test"]
    right = [one.label == run.class_names[label] for one, label in zip(found, index.labels, strict=True)]
    boxes_px = torch.stack([unnorm(box, image.shape[:2]) for box, image in zip(index.boxes, images, strict=True)])
    iou = paired_iou(torch.from_numpy(np.stack([one.box_px for one in found])), boxes_px)
    kept = run.predictions
    assert kept["id"].tolist() == list(index.ids)
    assert kept["predicted_label"].tolist() == [one.label for one in found]
    assert kept["probability"].to_numpy() == pytest.approx([one.probability for one in found], abs=1e-6)
    assert np.mean(right) == pytest.approx(tested["acc"], abs=1e-6)
    assert float(iou.mean()) == pytest.approx(tested["iou"], abs=1e-5)
    assert found[0].probability == pytest.approx(found[0].probabilities.max())
    assert found[0].probabilities.sum() == pytest.approx(1, abs=1e-5)
    (alone,) = run.predict(images[0])
    assert alone.label == found[0].label

    best = torch.load(f"{cfg.run_dir}/checkpoints/best.ckpt", weights_only=True)
    weights, averaged = best["current_model_state"], best["state_dict"]
    assert any(not torch.equal(weights[name], averaged[name]) for name in weights)
    loaded = run.localizer.state_dict()
    assert all(torch.equal(loaded[name], averaged[f"localizer.{name}"]) for name in loaded)
    assert not run.localizer.training

    with pytest.raises(BadInput, match="uint8"):
        run.predict(images[0].astype(np.float32))


def test_a_folder_without_a_trained_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no trained run"):
        onebox.load_run(tmp_path)
