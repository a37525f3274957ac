"""`onebox evaluate`: a trained run on any images."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onebox.cli.reproduce import Json, Outputs, Overrides, Run, Trust, composed, on_stderr
from onebox.errors import check, print_json, printable

if TYPE_CHECKING:
    from onebox.data.datamodule import VocDataModule
    from onebox.runs.reading.reproduce import Recorded

SCHEMA = 1
TAKEN = ("data.", "trainer.", "threads=", "model.flip_average=", "model.second_look=")  # begin overrides, beside data=
SEEN = "the run was trained on it"
EVALUATED = "evaluated"  # folder of what this command writes

Split = Annotated[
    Literal["train", "val", "test", "all"] | None,
    typer.Option(help="Which images. [default: test; all of data=OPTION that names no test list]", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of metrics.json and predictions.csv. [default: outputs/evaluated/RUN/<date>_<time>]",
        file_okay=False,
        show_default=False,
    ),
]


def evaluate(
    run: Run,
    overrides: Overrides = None,
    split: Split = None,
    out: Out = None,
    trust: Trust = None,
    outputs: Outputs = Path("outputs"),
    json_: Json = False,
) -> None:
    """Test a finished run again, on its own test images or on any others.

    Prints all metrics with 95 % intervals (bootstrap over the images) beside the floor of those data, and per class.
    Classes are matched by name; images of classes that the model does not know are counted and left out.
    Without overrides the metrics are those of the run's metrics.json.

    \b
    Examples
      onebox evaluate latest
      onebox evaluate latest --split val
      onebox evaluate RUN data=voc2012
      onebox evaluate RUN data=folder data.root=my_photographs --json
      onebox evaluate RUN data.select=largest        also images with several objects
    """
    from onebox.runs.reading.find import find_run, weights_file
    from onebox.runs.reading.reproduce import Recorded
    from onebox.trust import check_config
    from onebox.validation import told_as_bad_input

    recorded = Recorded.read(Path(run) if Path(run, "run.json").exists() else find_run(run, outputs).path)
    weights = weights_file(recorded.folder)
    check_config(recorded.config, recorded.folder / "config.yaml", trust or [])
    folder = out or outputs / EVALUATED / recorded.folder.resolve().name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    check(not folder.exists() or not any(folder.iterdir()), f"{folder}: holds files already; choose another --out")
    config, which = _config(recorded, folder, split, overrides or [])
    with told_as_bad_input(overrides or []), on_stderr() if json_ else contextlib.nullcontext():
        document = _test(recorded, config, which, weights, folder, is_same=not overrides and which == "test")
    if json_:
        print_json(document)
    else:
        _print(document, folder)


def _config(recorded: "Recorded", folder: Path, split: str | None, overrides: Sequence[str]) -> tuple[Any, str]:
    """The run's config with the data that are asked for and nothing that watches or logs; and the split."""
    from omegaconf import OmegaConf

    from onebox.runs.reading.reproduce import config_again
    from onebox.validation import told_as_bad_input

    is_new = any(text.startswith("data=") for text in overrides)
    typed = [text for text in overrides if is_new and text.startswith(("data=", "data.", "voc_root=", "data_dir="))]
    others = [text for text in overrides if text not in typed]
    wrong = [text for text in others if not text.startswith(TAKEN)]  # it would change nothing, or another network
    check(not wrong, f"{' '.join(wrong)}: a run is evaluated as it is; give data=OPTION, or {', '.join(TAKEN)}")
    cfg = OmegaConf.create(config_again(recorded, folder.resolve(), steps=None, force=True, overrides=others))
    if is_new:
        data = composed(*typed, f"seed={cfg.seed}").data
        missing = ", ".join(f"data.{key}" for key in sorted(OmegaConf.missing_keys(data)))
        check(not missing, f"{missing} must be given (KEY=VALUE)")
        with told_as_bad_input(typed):
            cfg.data = OmegaConf.to_container(data, resolve=True)
    split = split or ("test" if not is_new or cfg.data.splits.get("test") else "all")
    cfg.data.only_train = split == "all" or cfg.data.only_train
    for key, usual in (("select", "single"), ("limit", None)):
        if split == "all" and OmegaConf.is_dict(cfg.data[key]):  # that of the test, not of training
            cfg.data[key] = cfg.data[key].get("test", usual)
    cfg.callbacks, cfg.logger = {}, {}
    cfg.trainer.update(devices=1, num_nodes=1, strategy="auto")
    if overrides or split != "test":
        cfg.trainer.limit_test_batches = None
    return cfg, "train" if split == "all" else split


def _test(recorded: "Recorded", cfg: Any, split: str, weights: Path, folder: Path, *, is_same: bool) -> dict[str, Any]:
    """Test on what the run was not trained on, and leave metrics.json and predictions.csv in `folder`."""
    import lightning.pytorch as L
    import numpy as np
    import torch

    from onebox.build import Built, build_module, build_trainer, read_data
    from onebox.files import write_json
    from onebox.lightning_setup import quieten, use_threads
    from onebox.runs.checkpoint import read_checkpoint
    from onebox.runs.fingerprint import changed_parts
    from onebox.runs.predictions import per_image, read_predictions
    from onebox.runs.results import bootstrap
    from onebox.train import tested

    quieten()
    torch.set_num_threads(recorded.record.get("hardware", {}).get("threads", torch.get_num_threads()))
    use_threads(cfg, capped=False)
    L.seed_everything(cfg.seed, verbose=False)
    data = read_data(cfg)
    changed = changed_parts(recorded.record.get("data_fingerprint", {}), data.fingerprint()) if is_same else []
    differ = f"{recorded.folder}: the data have changed since ({', '.join(changed)}); name them, as in data.root=FOLDER"
    check(not changed, differ)
    unknown = _match_classes(data, read_checkpoint(weights)["onebox"]["class_names"], split)
    trained_on = _digests_trained_on(recorded.folder, data) if split != "train" else frozenset()
    index = data.indexes[split]
    data.test_on(index.where(np.array([digest not in (trained_on or ()) for digest in index.digests], bool), SEEN))
    sizes = {name: len(data.indexes[name]) for name in ("train", "test")}
    check(all(sizes.values()), f"no image to evaluate ({split}: {data.indexes['test']}); choose another --split")
    module = build_module(cfg, data)
    results = tested(Built(data, module, build_trainer(cfg), None), weights, folder)
    table = per_image(read_predictions(folder))
    facts = {"run": str(recorded.folder), "weights": weights.name, "split": split, "images": len(table)}
    intervals = dict(zip(table, bootstrap(table.to_numpy(float)).tolist(), strict=True))
    found = {**results._asdict(), "intervals": intervals, "per_class": module.test_per_class}
    seen = None if trained_on is None else data.indexes["test"].dropped.get(SEEN, 0)
    document = {"schema": SCHEMA, **facts, "trained_on": seen, "unknown_classes": unknown, **found}
    write_json(folder / "metrics.json", document)
    return document


def _digests_trained_on(run: Path, data: "VocDataModule") -> frozenset[bytes] | None:
    """Digests of the images of all splits that a run was trained on, by their names and the lengths of their files.

    None when the run keeps no table of its images, as it had too many.
    """
    from onebox.runs.results import read_samples

    trained_on = (read_samples(run) or {}).get("train")
    if trained_on is None:
        return None
    seen = set(zip(trained_on["ids"].tolist(), trained_on["bytes"].tolist(), strict=True))
    images = ((index, zip(index.ids, index.lengths.tolist(), strict=True)) for index in data.indexes.values())
    return frozenset(index.digests[row] for index, keys in images for row, key in enumerate(keys) if key in seen)


def _match_classes(data: "VocDataModule", names: Sequence[str], evaluated: str) -> dict[str, int]:
    """Number classes as the model does; images of others are left out, and counted in one split."""
    import numpy as np
    import torch

    if data.class_names == list(names):
        return {}
    label_of = {name: label for label, name in enumerate(names)}
    new = np.array([label_of.get(name, -1) for name in data.class_names])
    unknown: Counter[str] = Counter()
    for split, index in data.indexes.items():
        labels = new[index.labels.numpy()]
        if split == evaluated:
            unknown.update(data.class_names[label] for label in index.labels[labels < 0].tolist())
        kept = index.where(labels >= 0, "of classes that the model does not know")
        data.indexes[split] = replace(kept, labels=torch.from_numpy(labels[labels >= 0]))
    data.class_names = list(names)
    return dict(unknown.most_common())


def _print(document: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from onebox.runs.results import SHOWN

    console = Console()
    table = Table(title=f"{document['images']:,} images ({document['split']}), {document['weights']}")
    for column in ("", "result", "95 % interval", "floor", "is"):
        table.add_column(column, justify="right" if column else "left")
    for name in SHOWN:
        low, high = document["intervals"].get(name, (None, None))
        spread = "" if low is None else f"{low:.3f} to {high:.3f}"
        values = f"{document['test'][name]:.3f}", spread, f"{document['floor'][name]:.3f}"
        table.add_row(name, *values, document["against_floor"][name]["verdict"])
    console.print(table)
    classes = Table("class", "images", "joint_acc", "acc", "iou", "loc_acc")
    for name, row in sorted(document["per_class"].items(), key=lambda item: -item[1]["images"]):
        shares = [f"{row[metric]:.3f}" for metric in ("joint_acc", "acc", "iou", "loc_acc")]
        classes.add_row(printable(name), str(row["images"]), *shares)
    console.print(classes)
    if document["trained_on"] is None:
        print("the run keeps no samples.npz: whether it was trained on some of these images is not known")
    elif document["trained_on"]:
        print(f"left out: {document['trained_on']:,} images that the run was trained on")
    for name, count in document["unknown_classes"].items():
        print(printable(f"left out: {count:,} images of {name}, a class that the model does not know"))
    print(printable(f"metrics.json and predictions.csv are in {folder}"))
