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

    def run(name: str, *arguments: str, at_once: int = 1) -> dict[str, tuple[bytes, str]]:
        sweeps = [start(name, *arguments) for _ in range(at_once)]
        texts = [sweep.communicate(timeout=300)[0] for sweep in sweeps]
        assert [sweep.returncode for sweep in sweeps] == [0] * at_once, texts
        folder = root / "outputs" / "sweeps" / name
        records = {path.parent: json.loads(path.read_text()) for path in folder.glob("*/run.json")}
        assert not any("attempts" in record for record in records.values())  # none was begun twice
        return {
            path.name: ((path / "metrics.json").read_bytes(), record["final_weights"])
            for path, record in records.items()
        }

    def start(name: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *COMMON, f"data.root={root / 'shapes'}", f"data.cache_dir={root / 'cache'}", f"name={name}", *arguments],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def forward(results):
    return results("forward", *FORWARD)


@pytest.mark.parametrize(
    "arguments, at_once",
    [
        ([*REVERSED, "hydra.launcher.n_jobs=2", "data.num_workers=1"], 1),
        ([*REVERSED, "hydra/launcher=basic"], 1),
        (FORWARD, 2),
    ],
    ids=[
        "reversed, two jobs at once, each with a loader worker",
        "reversed, without isolation",
        "two sweeps share the work",
    ],
)
def test_each_job_has_the_same_bits(results, forward, arguments, at_once):
    found = results(f"other{len(arguments)}", *arguments, at_once=at_once)
    assert len(found) == 4
    assert found == forward
    assert len({weights for _, weights in found.values()}) == 4
