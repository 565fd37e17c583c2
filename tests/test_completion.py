"""Completion as a shell really does it: the script is loaded, and the shell is asked for the words."""

import shutil
import subprocess

import pytest

from distmil.__main__ import JOBS, SHELLS, TOOLS, run
from distmil.command.arguments import job_parser
from distmil.completion import OPTIONS, script
from distmil.config.root import Config

ASK_BASH = """
complete_line() {
    read -ra COMP_WORDS <<< "$1"
    [[ $1 == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1}
    _distmil distmil
    printf '%s\\n' "${COMPREPLY[@]}"
}
complete_line "$LINE"
"""


def in_bash(line: str) -> list[str]:
    """Return what bash offers; "=" is a word of its own there, written with spaces around it."""
    text = script("bash", JOBS, TOOLS) + ASK_BASH
    done = subprocess.run(["bash", "-c", text], env={"LINE": line}, capture_output=True, text=True, check=True)
    assert "syntax" not in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("distmil t", ["tile", "train", "tune"]),
        ("distmil do", ["doctor"]),
        ("distmil --", ["--help", "--version"]),
        ("distmil completion ", ["bash", "zsh", "fish"]),
        ("distmil train tiling.p", ["tiling.patch_px="]),
        ("distmil train --config x.yaml bags.top", ["bags.top_k=", "bags.top_k_share="]),
        ("distmil train tiling.strategy = ", ["foreground", "crop", "pad", "features"]),
        ("distmil train tiling.strategy =", ["foreground", "crop", "pad", "features"]),  # the cursor right behind "="
        ("distmil train tiling.strategy = c", ["crop"]),
        ("distmil train tiling.strategy=c", ["tiling.strategy=crop"]),
        ("distmil train bags.paired = ", ["true", "false"]),
        ("distmil train bags.n = ", []),
        ("distmil train -", ["--config", "--help", *OPTIONS]),
        ("distmil doctor --", ["--config", "--help", "--ray"]),
        ("distmil store --", ["--config", "--help", "--remove", "--force", "--yes"]),
    ],
)
def test_bash_completes(line: str, words: list[str]) -> None:
    assert in_bash(line) == words


def test_bash_offers_every_key_and_job() -> None:
    assert in_bash("distmil train ") == [f"{key}=" for key in Config().flat()]
    assert in_bash("distmil ") == [*JOBS, *TOOLS, "--help", "--version"]


@pytest.mark.parametrize("line", ["distmil tile --config jobs/con", "distmil tile --config = jobs/con"])
def test_bash_completes_files_after_config(line: str) -> None:
    assert in_bash(line) == ["jobs/configs"]


def test_bash_itself_takes_the_script_and_its_end_of_a_key() -> None:
    text = "set -eu\n" + script("bash", JOBS, TOOLS) + "complete -p distmil"
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "complete -F _distmil distmil\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("distmil ev", ["evaluate"]),
        (
            "distmil train tiling.strat",
            [f"tiling.strategy={word}" for word in ("crop", "features", "foreground", "pad")],
        ),
        ("distmil train --config x bags.top", ["bags.top_k=", "bags.top_k_share="]),
        ("distmil completion ", ["bash", "fish", "zsh"]),
    ],
)
def test_fish_completes(line: str, words: list[str]) -> None:
    text = script("fish", JOBS, TOOLS) + f"complete -C '{line}'"
    done = subprocess.run(["fish", "--no-config", "-c", text], capture_output=True, text=True, check=True)
    assert sorted(line.split("\t")[0] for line in done.stdout.splitlines()) == words


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script() -> None:
    text = "autoload -U compinit; compinit -D -u\n" + script("zsh", JOBS, TOOLS) + "echo $_comps[distmil]"
    done = subprocess.run(["zsh", "-f", "-c", text], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_distmil\n", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell, JOBS, TOOLS)


def test_the_options_are_those_of_the_parser() -> None:
    text = job_parser("train", None).format_help()
    assert [
        option for option in (*OPTIONS, "--config", "--help") if f"  {option}" not in text.replace("-h, ", "  ")
    ] == []


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["completion", "csh"])
    assert "'csh'" in capsys.readouterr().err
