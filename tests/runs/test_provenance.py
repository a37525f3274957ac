"""What run.json says of code, packages and machine."""

import importlib.metadata
import subprocess

import pytest

from onebox.runs import provenance

KEY = "-----BEGIN RSA " + "PRIVATE KEY-----\n"  # in two, as this file is to be kept itself


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout with one commit, which onebox is made to believe it runs from; and git in it."""
    folder = tmp_path / "code"
    folder.mkdir()

    def git(*arguments, **kwargs):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, **kwargs).stdout

    git("init", "-q", "-b", "trunk")
    (folder / "model.py").write_text("width = 8\n")
    (folder / ".gitignore").write_text("ignored*\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance.onebox, "__file__", str(folder / "__init__.py"))
    return folder, git


def test_the_patch_brings_tracked_and_untracked_source_back(repository, tmp_path):
    folder, git = repository
    (folder / "model.py").write_text("width = 16\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "mit Ümlaut.py").write_text("new = 'ä'")  # and no line end
    for name in ("staged.py", "gone.py"):
        (folder / name).write_text("new = 2\n")
        git("add", name)
    (folder / "gone.py").unlink()
    index = (folder / ".git" / "index").read_bytes()
    state = provenance.git_state(tmp_path)["git"]
    assert state["dirty"] and state["changed"] == ["gone.py", "model.py", "staged.py", "sub/mit Ümlaut.py"]
    assert (folder / ".git" / "index").read_bytes() == index  # the user's index is not touched
    git("worktree", "add", "-q", tmp_path / "again", state["sha"])
    text = provenance.patch(tmp_path)
    subprocess.run(["git", "apply"], cwd=tmp_path / "again", input=text.encode(errors="surrogateescape"), check=True)
    for name in ("model.py", "staged.py", "sub/mit Ümlaut.py"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_secrets_data_and_what_git_ignores_stay_out(repository, tmp_path):
    folder, git = repository
    secret = "AKIA-not-to-be-seen"
    names = [".env", ".env.local", "server.pem", "id_rsa", "secrets.yaml", "my_credentials.py", "api_token.py"]
    for name in [*names, "ignored.py", "notes.txt", "weights.bin"]:
        (folder / name).write_text(secret)
    (folder / "secret").mkdir()
    (folder / "secret" / "x.py").write_text(secret)
    (folder / "inline.py").write_text(KEY + secret)
    (folder / "large.py").write_text(secret * 20_000)
    (folder / "model.py").write_text("# " + KEY + secret)  # git tracks it
    (folder / "tokenizer.py").write_text("kept = 1\n")
    git("add", ".env")  # also when it is tracked
    state = provenance.git_state(tmp_path)["git"]
    text = provenance.patch(tmp_path)
    assert secret not in text and "kept = 1" in text
    assert state["changed"] == ["tokenizer.py"]
    others = {"secret/x.py", "inline.py", "model.py", "large.py", "notes.txt", "weights.bin"}
    assert set(state["left_out"]) >= {*names, *others}
    assert "ignored.py" not in state["left_out"]


def test_no_patch_is_left_by_a_clean_checkout_a_giant_change_or_outside_git(repository, tmp_path, monkeypatch):
    folder, _ = repository
    state = provenance.git_state(tmp_path)["git"]
    assert state["branch"] == "trunk" and len(state["sha"]) == 40 and not state["dirty"]
    monkeypatch.setattr(provenance, "MAX_PATCH_BYTES", 10)
    (folder / "model.py").write_text("width = 16\n")
    assert provenance.git_state(tmp_path)["git"]["patch_too_large"] > 10
    monkeypatch.setattr(provenance.onebox, "__file__", str(tmp_path / "__init__.py"))
    assert provenance.git_state(tmp_path)["git"] is None
    assert provenance.patch(tmp_path) is None


def test_versions_are_those_that_the_packages_say():
    found = provenance.packages()
    for name in ("torch", "hydra-core", "pillow", "onebox"):
        assert found[name] == importlib.metadata.version(name)


def test_only_listed_variables_are_kept_and_no_secret_among_them(monkeypatch):
    kept, secret = {"OMP_NUM_THREADS", "ONEBOX_VOC_ROOT"}, {"ONEBOX_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_OMP_X"}
    for name in kept | secret:
        monkeypatch.setenv(name, "7")
    found = provenance.environment()
    assert kept <= {name for name, value in found.items() if value == "7"} and not secret & set(found)


def test_the_source_is_told_by_folder(tmp_path, monkeypatch):
    package = tmp_path / "onebox"
    for name in ("module.py", "runs/record.py", "runs/reading/diff.py", "cli/runs.py", "conf/train.yaml", "x.txt"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(provenance, "files", lambda name: tmp_path.joinpath(*name.split(".")))
    before, counts = provenance.source_fingerprint(), {}
    for path in package.rglob("*.*"):
        path.write_text("x = 2\n")
        counts[str(path.relative_to(package))] = provenance.source_fingerprint() != before
        path.write_text("x = 1\n")
    assert {name for name, does in counts.items() if does} == {"module.py", "runs/record.py", "conf/train.yaml"}
