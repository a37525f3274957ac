"""A job's result does not depend on the jobs before it, on how many run at once, or on who started it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onebox.data.shapes import write_shapes

COMMAND = Path(sys.executable).parent / "onebox-train"
COMMON = [
    "-m",
    "data.source=null",
    "data.batch_size=8",
    "image_size=24",
    "augment=batched_strong",
    "callbacks/progress=lines",
    "callbacks.pictures=null",
    "model.backbone.dropout=0.2",
    "trainer.max_epochs=2",
    "threads=1",
]
FORWARD = ["seed=0,1", "optimizer.lr=1e-3,1e-2"]
REVERSED = ["optimizer.lr=1e-2,1e-3", "seed=1,0"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Gives metrics.json and the final weights' hash of each job of a sweep, by fingerprint."""
    root = tmp_path_factory.mktemp("order")
    write_shapes(root / "shapes", num_train=24, num_val=8, num_test=8, multi_object_fraction=0.0, min_side=32, max_side=40, seed=0)  # fmt: skip

    def run(name: str, *arguments: str) -> dict[str, tuple[bytes, str]]:
        done = subprocess.run(
            [COMMAND, *COMMON, f"data.root={root / 'shapes'}", f"data.cache_dir={root / 'cache'}", f"name={name}", *arguments],
            cwd=root, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return {
            path.parent.name: (
                (path.parent / "metrics.json").read_bytes(),
                json.loads(path.read_text())["final_weights"],
            )
            for path in (root / "outputs" / "sweeps" / name).glob("*/run.json")
        }

    return run


@pytest.fixture(scope="module")
def forward(results):
    return results("forward", *FORWARD)


@pytest.mark.parametrize(
    "arguments",
    [
        [*REVERSED, "hydra.launcher.n_jobs=2"],
        [*REVERSED, "hydra/launcher=basic"],
    ],
    ids=["reversed, two at once", "reversed, without isolation"],
)
def test_each_job_has_the_same_bits(results, forward, request, arguments):
    found = results(f"other{len(arguments[-1])}", *arguments)
    assert len(found) == 4
    assert found == forward
    assert len({weights for _, weights in found.values()}) == 4
