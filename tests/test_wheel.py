"""What a user who installs the wheel gets: the commands with all their YAML, in an environment without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of executables of an environment that has the wheel and the locked packages, and no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Building leaves files behind: build a copy.
    ignore = shutil.ignore_patterns(".*", "outputs", "data", "build", "tests", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=lambda path, names: ignore(path, names) if Path(path) == ROOT else set())

    def uv(*arguments: str) -> None:
        subprocess.run([str(UV), *arguments], check=True, cwd=folder, capture_output=True, text=True)

    python, packages = sys.executable, sysconfig.get_path("purelib")
    subprocess.run(
        [python, "-c", "from setuptools.build_meta import build_wheel; build_wheel('..')"],
        check=True,
        cwd=source,
        capture_output=True,
    )
    (wheel,) = folder.glob("onebox-*.whl")
    uv("venv", "--python", python, "fresh")
    uv("pip", "install", "--python", str(folder / "fresh/bin/python"), "--no-deps", str(wheel))
    # The packages are those that are locked, and this file has no effect in another folder than one of packages: so
    # what leads to the checkout, a file of the same kind, has none.
    (site,) = (folder / "fresh").glob("lib/*/site-packages")
    (site / "locked.pth").write_text(packages + "\n")
    return folder / "fresh/bin"


def run(folder: Path, *command: str, **variables: str) -> str:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = plain | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_conf_and_finds_it(installed, tmp_path):
    assert "pkg://onebox.conf" in run(tmp_path, str(installed / "onebox-train"), "--info", "searchpath")
    code = "import onebox.conf, pathlib; print(*pathlib.Path(onebox.conf.__file__).parent.rglob('*.yaml'), sep='\\n')"
    shipped = run(tmp_path, str(installed / "python"), "-c", code).split()
    assert all("site-packages" in path for path in shipped)
    here = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.split("onebox/conf/")[1] for path in shipped} == here


def test_the_wheel_trains_and_reports(installed, tmp_path):
    sizes = ["data.source.num_train=30", "data.source.num_val=10", "data.source.num_test=10"]
    out = run(tmp_path, str(installed / "onebox-train"), "debug=fast", *sizes)
    assert "report.html" in out
    (report,) = tmp_path.glob("outputs/default/*/report.html")
    assert report.stat().st_size > 10_000


@pytest.mark.long
def test_an_exported_file_predicts_the_same_in_an_environment_without_torch(installed, tmp_path):
    sizes = ["data.source.num_train=30", "data.source.num_val=10", "data.source.num_test=10"]
    run(tmp_path, str(installed / "onebox-train"), "debug=fast", *sizes, "hydra.run.dir=run")
    trained = tmp_path / "run"
    run(tmp_path, str(installed / "onebox"), "export", str(trained), "--out", "model.onnx")
    photo = str(next(tmp_path.glob("data/shapes/JPEGImages/*.jpg")))
    expected = run(tmp_path, str(installed / "onebox"), "predict", str(trained), photo)
    (wheel,) = installed.parent.parent.glob("onebox-*.whl")
    needed = ("filelock", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "rich", "typer")
    for arguments in (
        ("venv", "--python", sys.executable, "bare"),
        ("pip", "install", "--python", "bare/bin/python", "--no-deps", str(wheel)),
        ("pip", "install", "--python", "bare/bin/python", "-c", str(ROOT / "requirements.lock"), *needed),
    ):
        subprocess.run([str(UV), *arguments], check=True, cwd=tmp_path, capture_output=True, text=True)
    bare = tmp_path / "bare/bin"
    assert "True" in run(
        tmp_path, str(bare / "python"), "-c", "import importlib.util as u; print(u.find_spec('torch') is None)"
    )
    assert run(tmp_path, str(bare / "onebox"), "predict", "model.onnx", photo) == expected


@pytest.mark.long
def test_the_wheel_makes_a_project_in_which_the_next_command_trains(installed, tmp_path):
    """Both take 10 to 20 s after the install, most of it the import of torch and the drawing of the data."""
    home = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    told = run(tmp_path, str(installed / "onebox"), "new", "somewhere/my thesis", **home)
    folder = tmp_path / "somewhere/my thesis"
    template = ROOT / "src/onebox/cli/project"
    shipped = {path.relative_to(template) for path in template.rglob("*.*") if path.is_file() and path.suffix != ".pyc"}
    made = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert made == shipped | {Path(name) for name in (".gitignore", ".onebox", "my_project/__init__.py")}
    (command,) = [line for line in told.splitlines() if "debug=fast" in line]
    words = command.partition("#")[0].split()
    assert "report.html" in run(folder, str(installed / words[0]), *words[1:], **home)
    (config,) = folder.glob("outputs/mine/*/config.yaml")
    assert "my_project.heads.AxesHead" in config.read_text()
