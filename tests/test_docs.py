"""README and docs: links lead somewhere, commands are ones that exist, and the README's own way is walked."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distmil.cli import STAGES
from distmil.config.loading import load_config
from distmil.demo.cohort import make_cohort
from docs.generate import PAGE, configuration_page
from tests.support.scale import IS_FULL

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICK = "training.epochs=2 model.feature_dim=16 model.attention_dim=8 tracking.uri=none prediction.map_px=128"
COMMANDS = ("store", "encoders", "doctor", "completion")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    """Every command line of a page, with continued lines joined, without comments."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [
        line.split("  #")[0].strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")
    ]


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_and_their_keys_are_right(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in commands(page):
        words = shlex.split(line.rpartition(" -- ")[2], comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        job = job_of(words)
        if job is None:
            continue
        assert job in {*STAGES, *COMMANDS}, line
        files = {i + 1 for i, word in enumerate(words) if word == "--config"}
        given = [word for i, word in enumerate(words[1:], 1) if "=" in word and i not in files]
        if job in STAGES and "$" not in line and "..." not in line:
            load_config(None, given)


def job_of(words: list[str]) -> str | None:
    """Find the job that a command starts, None if it starts none."""
    if words[:1] == ["distmil"]:
        return None if words[1].startswith("-") else words[1]
    if len(words) > 1 and words[0].endswith("python") and words[1].startswith("jobs/"):
        return Path(words[1]).stem
    return None


def test_the_paths_that_contributing_names_are_there() -> None:
    named = re.findall(r"`((?:distmil|tests|benchmarks|jobs|deploy)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_page_of_the_configuration_is_the_configuration() -> None:
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), "run `python docs/generate.py`"


def test_every_page_has_its_place_in_the_site() -> None:
    places = re.findall(r"[\w/]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(places) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/reference/configuration/index.html").stat().st_size > 10_000


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not IS_FULL, reason="three jobs as processes: make test-all; make test runs each job once")
def test_the_readmes_way_from_slides_to_python(tmp_path: Path) -> None:
    """The commands and the Python of the README, letter by letter, on a small cohort; only made quick."""
    store = tmp_path / "store"
    make_cohort(tmp_path / "slides", num_slides=8)
    shutil.copytree(tmp_path / "slides", tmp_path / "new")
    first = sorted((tmp_path / "new").rglob("*.tif"))[0]
    shutil.copy(first, tmp_path / "new/case-17.tif")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    walked = 0
    for line in commands(ROOT / "README.md"):
        words = shlex.split(line)
        if words[0] != "distmil":
            continue
        extra = QUICK if words[1] == "train" else "tracking.uri=none"
        done = subprocess.run(
            ["bash", "-c", f"{line.replace('/data/distmil', str(store))} {extra}"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
        walked += 1
    assert walked == 3
    (code,) = blocks(ROOT / "README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("/data/distmil", str(store))],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "case-17.png").stat().st_size > 1000
