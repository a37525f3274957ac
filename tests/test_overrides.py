"""Odd command lines: each is read as it was meant, or refused in one line that says what to type."""

import json
import os
import subprocess
import sys

import pytest

from onebox.overrides import read_arguments

LONG = "name=" + "é" * 128  # 256 bytes
CASES = [
    ("data.batchsize=8", ["data.batchsize", "batch_size"]),
    ("model/backbone=tinycnn", ["model/backbone=tinycnn: no such option; did you mean tiny_cnn? (convnext"]),
    ("lr=1", ["no key lr, did you mean optimizer.lr?"]),
    ("experiment=null,baseline", ["experiment=null,baseline lists several values; a sweep over them needs -m"]),
    ("-m experiment=null,baseline", ["experiment cannot be null", "sweep.jobs='[{},{experiment:...}]'"]),
    (
        "-m optimizer=adam,sgd optimizer.momentum=.9",
        ["optimizer.momentum exists only with optimizer=sgd", "sweep.jobs="],
    ),
    ("seed=1,2", ["needs -m", '"seed=[1,2]"', "\"seed='1,2'\""]),
    ("seed", ["'seed' is no KEY=VALUE; no blanks around ="]),
    ("'data.root=[a'", ["data.root=[a: not understood", "a list is [a,b]", "\"data.root='[a'\""]),
    ("data=folder 'data.root=~/no,ne'", ["not understood", "\"data.root='~/no,ne'\""]),
    ("name=../x", ["name='../x': runs lie in outputs/<name>/"]),
    ("hydra.launcher._target_=my.Launcher -m seed=1", ["'my.Launcher' is no plugin of Hydra's"]),
    ("hydra.run.dir=/proc/none", ["/proc/none", "hydra.run.dir"]),
    ("data=folder 'data.root=~/Größe (1)[a]=b'", ["home/Größe (1)[a]=b: no such folder"]),
    (
        "data.limit=2 model.loc_head._target_=my_project.heads.Mine",
        ["model.loc_head._target_=my_project.heads.Mine: no package my_project", "PYTHONPATH=/path/to/folder"],
    ),
]
RARER = [  # of the same kinds
    ("augment=[flip,crop]", ["augment takes one option, not [flip,crop]", "-m augment=flip,crop"]),
    ("-m model/loc_head=dense,edgs", ["model/loc_head=edgs: no such option; did you mean edges?", "no job was"]),
    ("-m sweep=lr,seeds", ["sweep=lr,seeds: one sweep at a time"]),
    ("~threads", ["~threads: there is nothing to delete"]),
    ("+seed=1", ["+seed=1: seed exists, so it needs no +: seed=1"]),
    ("data.root==/a", ["data.root==/a: not understood", "\"data.root='=/a'\""]),
    ("--lr=1", ["--lr=1: no such flag; a value is given as KEY=VALUE"]),
    (LONG, ["a part of it has 256 bytes", "a file system takes 255"]),
    ("model=tiny_cnn", ["model=tiny_cnn: no such option; did you mean model/backbone=tiny_cnn?"]),
    ("experimnt=baseline", ["no key experimnt, did you mean experiment?"]),
    ("+loss/loc=[l1,giou]", ["loss/loc takes one option, not [l1,giou]; a sum is an option", "loss/loc=l1_giou"]),
    ("-m loss/loc=giou,[l1,giou]", ["loss/loc takes one option, not [l1,giou]; a sum", "no job was started"]),
    ("sede=1 data.batchsize=8 experiment=baseline", ["no key sede", "seed", "data.batchsize"]),
    ("data.splits={trian:[train]} optimizer={weigth_decay:0}", ["data.splits.trian", "optimizer.weigth_decay"]),
    ("scheduler=null", ["scheduler cannot be null; choose", "scheduler=none"]),
    ("~debug=fast", ["~debug=fast: there is nothing to delete"]),
    ("+experiment=baseline", ["experiment exists, so it needs no +: experiment=baseline"]),
    ("'seed: 1'", ["write seed=1"]),
    ("=1", ["'' is no key"]),
    ("data.root[0]=/a", ["'data.root[0]' is no key"]),
    ("data.root=", ["data.root= has no value; none is data.root=null"]),
    ("seed=1 --cfg", ["--cfg/-c: expected one argument"]),
    ("hydra.sweep.subdir=x", ["hydra.sweep.subdir=x: is for a sweep, and this is one run"]),
    ("hydra.job.name=x/y", ["hydra.job.name=x/y: must hold no /"]),
    ("hydra.runn.dir=x", ["no key hydra.runn.dir, did you mean hydra.run.dir"]),
    ("hydra.run.dir=null", ["hydra.run.dir=null: must be a folder"]),
    ("name=${nokey}", ["'nokey' not found"]),
    ("-m seed=1 hydra.sweep.dir=theirs", ["theirs: its multirun.yaml is of no sweep of onebox"]),
    ("-m seed=1 --cfg job", ["--multirun and --cfg exclude each other"]),
    ("--resolve", ["--cfg job --resolve"]),
    ("data=folder data.root=null", ["data.root must be given"]),
    ("name=[a,b]", ["must be a text"]),
    ("hydra.run.dir=$'a\x1bb'", ["a character that is not printed"]),
    (f"-m seed=1 {LONG}", ["a part of it has 256 bytes", "a file system takes 255"]),
    ("hydra.job.chdir=true", ["relative paths would mean other places; leave it false"]),
    ("data=folder", ["data.root"]),
    ("data=folder data.root=1_000", ["1_000: no such folder"]),
    ("data=voc2007 voc_root=nowhere", ["nowhere", "ONEBOX_VOC_ROOT"]),
    ("optimizer.lr=fast data.limit=2", ["optimizer", "'lr': 'fast'"]),
]
FORKS = """
import json, os, shlex, sys
from onebox.train import main
for number, line in enumerate(json.load(sys.stdin)):
    if (child := os.fork()) == 0:
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["onebox-train", *shlex.split(line.replace("$'a\\x1bb'", "'a\x1bb'"))]
        main()
        os._exit(0)
    with open(f"{number}.rc", "w") as file:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=file)
"""


@pytest.mark.parametrize("cases", [CASES, pytest.param(RARER, marks=pytest.mark.long)], ids=["common", "rarer"])
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, shapes_root, cases):
    """All from one process, as most of the time goes to imports."""
    folder = tmp_path
    (folder / "forks.py").write_text(FORKS)
    lines = [
        f"data.root={shapes_root} data.source=null {line}" if "data.limit=2" in line else line for line, _ in cases
    ]
    (folder / "theirs").mkdir()
    (folder / "theirs/multirun.yaml").write_text("mine: 1")
    environment = {**os.environ, "HOME": str(folder / "home")}
    command = [sys.executable, str(folder / "forks.py")]
    subprocess.run(command, input=json.dumps(lines), text=True, cwd=folder, env=environment, check=True, timeout=400)
    for number, (line, told) in enumerate(cases):
        out, err, code = ((folder / f"{number}.{name}").read_text() for name in ("out", "err", "rc"))
        assert int(code) == 2, (line, err)
        assert len(err.strip().splitlines()) == 1, (line, err)
        assert err.startswith("onebox-train: ")
        assert "Traceback" not in out + err
        for text in told:
            assert text in err, line
    assert (folder / "theirs/multirun.yaml").read_text() == "mine: 1"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["a=1", "-m", "b=2"], ["-m", "a=1", "b=2"]),
        (["data.root=/a b(c)"], ["data.root='/a b(c)'"]),
        (["data.root=/a/[b]"], ["data.root='/a/[b]'"]),
        (["data.root=a=b"], ["data.root='a=b'"]),
        (["data.root=it's"], [r"data.root='it\'s'"]),
        (["data.root=007", "name=true"], ["data.root=007", "name='true'"]),
        (["data.root=C:\\x", "seed=1", "data.classes=[a b,c]"], ["data.root=C:\\x", "seed=1", "data.classes=[a b,c]"]),
        (["-m", "optimizer=adam,adamw", "optimizer.eps=1"], ["-m", "optimizer=adam,adamw", "optimizer.eps=choice(1)"]),
        (["-m", "optimizer=adam,sgd", "loss.x=1"], ["-m", "optimizer=adam,sgd", "loss.x=1"]),
    ],
)
def test_arguments_are_read_as_they_were_meant(given, read):
    assert read_arguments(given) == read
