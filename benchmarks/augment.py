"""Speed of augmentation alone: `python -m benchmarks.augment`, with kornia in it where that is installed.

Batches of 64 RGB images of 100 px with a box each, uint8 in and out, two threads: mirror and colour, and mirror, zoom
and shift, by the batched path, by albumentations image by image, and by kornia, which draws a batch at once as well.
Rounds go through all of them in turn; images per second are given as the median, the least and the most over rounds.
"""

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from onebox.data.augment import AlbumentationsTransform
from onebox.data.resize import Resize

SIZE, BATCH_SIZE, THREADS = 100, 64, 2
Step = Callable[[int], Any]  # augments the batch whose number is given


def batched(option: str, *overrides: str) -> Step:
    """What `augment=OPTION` does."""
    with initialize_config_module("onebox.conf", version_base="1.3"):
        cfg = compose("train", overrides=[f"augment={option}", f"image_size={SIZE}", *overrides])
    return step(instantiate(cfg.augment, _convert_="all"))


def per_sample(*transforms: A.BasicTransform) -> Step:
    """The same with albumentations."""
    resize = Resize(SIZE, "area")
    return step(AlbumentationsTransform(resize, transforms, min_area=0, min_visibility=0.1, max_redraws=10))


def step(transform: Any) -> Step:
    images, boxes = data(transform.resize_before_augment.size)
    rows = list(range(BATCH_SIZE))
    return lambda epoch: transform.augment(images, boxes, 0, epoch, rows)


def kornia(*transforms: Any) -> Step:
    """The same with kornia, which takes float images and boxes in px, and redraws nothing."""
    from kornia.augmentation import AugmentationSequential

    sequence = AugmentationSequential(*transforms, data_keys=["input", "bbox_xyxy"])
    images, boxes = (torch.from_numpy(column) for column in data(SIZE))

    def run(epoch: int) -> Any:
        floats = images.permute(0, 3, 1, 2).float() / 255
        painted, moved = sequence(floats, boxes[:, None] * SIZE)
        return (painted * 255).round().to(torch.uint8), moved[:, 0].clamp(0, SIZE) / SIZE

    return run


def kornia_functions(*, moves: bool) -> Step:
    """kornia without its augmentation classes: only the functions that paint, with parameters drawn by us."""
    from kornia.enhance import adjust_brightness_accumulative, adjust_contrast_with_mean_subtraction, adjust_saturation
    from kornia.geometry.transform import get_affine_matrix2d, warp_affine

    images, _ = (torch.from_numpy(column) for column in data(SIZE))
    centre = torch.full((BATCH_SIZE, 2), SIZE / 2)

    def run(epoch: int) -> Any:
        draw = torch.Generator().manual_seed(epoch)
        shift, zoom = (
            torch.rand(BATCH_SIZE, 2, generator=draw) * width + low for width, low in ((30, -15), (0.5, 0.8))
        )
        brightness, contrast, saturation = 0.8 + 0.4 * torch.rand(3, BATCH_SIZE, generator=draw)
        flip = torch.rand(BATCH_SIZE, generator=draw) < 0.5
        floats = images.permute(0, 3, 1, 2).float() / 255
        floats = torch.where(flip[:, None, None, None], floats.flip(-1), floats)
        if moves:
            matrix = get_affine_matrix2d(shift, centre, zoom, torch.zeros(BATCH_SIZE))
            floats = warp_affine(floats, matrix[:, :2], (SIZE, SIZE))
        else:
            floats = adjust_saturation(floats, saturation)
            floats = adjust_contrast_with_mean_subtraction(floats, contrast)
            floats = adjust_brightness_accumulative(floats, brightness)
        return (floats * 255).round().to(torch.uint8)

    return run


def data(size: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (BATCH_SIZE, size, size, 3), dtype=np.uint8)
    low = draw.uniform(0.1, 0.4, (BATCH_SIZE, 2))
    return images, np.concatenate([low, low + 0.4], axis=1).astype(np.float32)


def contestants() -> dict[str, dict[str, Step]]:
    colour = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 0.0}
    found = {
        "flip and colour": {
            "batched": batched("batched_flip"),
            "albumentations": per_sample(A.HorizontalFlip(p=0.5), A.ColorJitter(**colour, p=1.0)),
        },
        "affine": {
            "batched": batched("batched_affine"),
            "batched, margin 1": batched("batched_affine", "augment.margin=1"),
            "albumentations": per_sample(
                A.HorizontalFlip(p=0.5),
                A.Affine(scale=(0.8, 1.3), translate_percent=(-0.15, 0.15), keep_ratio=False, p=1.0),
            ),
        },
    }
    if find_spec("kornia"):
        import kornia.augmentation as K

        found["flip and colour"]["kornia"] = kornia(K.RandomHorizontalFlip(p=0.5), K.ColorJitter(**colour, p=1.0))
        found["affine"]["kornia"] = kornia(
            K.RandomHorizontalFlip(p=0.5),
            K.RandomAffine(degrees=0.0, translate=(0.15, 0.15), scale=(0.8, 1.3, 0.8, 1.3), p=1.0),
        )
        found["flip and colour"]["kornia, functions"] = kornia_functions(moves=False)
        found["affine"]["kornia, functions"] = kornia_functions(moves=True)
    else:
        print("kornia is not installed: no comparison with it (pip install kornia)")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augment")
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    for what, steps in contestants().items():
        speeds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds + 1):  # the first one warms up
            for name, run in steps.items():
                start, batches = time.perf_counter(), 0
                while time.perf_counter() - start < 0.3:
                    run(number * 1000 + batches)
                    batches += 1
                speeds[name].append(batches * BATCH_SIZE / (time.perf_counter() - start))
        for name, row in speeds.items():
            ratio = median(mine / other for mine, other in zip(speeds["batched"][1:], row[1:], strict=True))
            row = row[1:]
            print(
                f"{what:16} {name:18} {median(row):7.0f} images/s ({min(row):.0f} to {max(row):.0f}), "
                f"batched is {ratio:.1f} times as fast"
            )


if __name__ == "__main__":
    main()
