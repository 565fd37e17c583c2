"""Which code made a result: a digest that follows the files, and the commit where there is one."""

import shutil
import subprocess

import pytest

import distmil
from distmil.tracking.provenance import code_tags, git_tags, source_digest


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "inner" / "b.py").write_text("b = 2\n")
    return folder


def test_the_digest_follows_what_files_hold_and_their_names(package, tmp_path):
    before = source_digest(package)
    shutil.copytree(package, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_text("not code")
    assert source_digest(tmp_path / "elsewhere") == before
    (package / "inner" / "b.py").write_text("b = 3\n")
    edited = source_digest(package)
    (package / "inner" / "b.py").rename(package / "inner" / "c.py")
    assert len({before, edited, source_digest(package)}) == 3


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_checkout_has_its_commit_and_says_when_files_differ(package):
    assert git_tags(package) == {}
    git(package, "init", "--quiet")
    assert git_tags(package) == {}  # no commit yet
    git(package, "add", ".")
    git(package, "commit", "--quiet", "-m", "first")
    commit = git(package, "rev-parse", "HEAD")
    assert git_tags(package / "inner") == {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": "false"}
    (package / "a.py").write_text("a = 2\n")
    assert git_tags(package)["mlflow.source.git.dirty"] == "true"


def test_without_git_the_code_is_still_named(package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_tags(package) == {"distmil.version": distmil.__version__, "distmil.source_digest": source_digest()}


def test_a_git_that_fails_says_nothing(package, monkeypatch):
    def fail(*arguments, **options):
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", fail)
    assert git_tags(package) == {}
