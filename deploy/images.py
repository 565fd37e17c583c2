"""Compare the images of a cluster with each other, and their Ray with the project's."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from problems import Problem

ROOT = Path(__file__).parents[1]
_RAY = re.compile(r"(?<![a-z])ray[-:]?(\d+\.\d+\.\d+)")


def image_problems(images: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with the nodes' images, given by the places that name them."""
    if not images:
        yield Problem("docker.image", None, "expected the image that deploy/Dockerfile makes")
        return
    first_place, first = next(iter(images.items()))
    for place, image in images.items():
        if image != first:
            yield Problem(place, image, f"expected {first}, as in {first_place}: nodes of one cluster run one image")
    version = ray_of_image(first)
    if first.rpartition("/")[2].partition(":")[2] in ("", "latest"):
        yield Problem(first_place, first, "expected a tag that stays: a node that joins later would run another image")
    elif version is None:
        expected = f"names no Ray version to compare with ray{pinned_ray()}"
        yield Problem(first_place, first, expected, is_error=False)
    else:
        yield from ray_problems(first_place, first, version)


def ray_of_image(image: str) -> str | None:
    """Read the version of Ray from an image's name; None if it names none."""
    found = _RAY.search(image.rpartition("/")[2])
    return found[1] if found else None


def ray_problems(place: str, value: str, version: str) -> Iterator[Problem]:
    """Yield the problem of a Ray version that pyproject.toml does not allow."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or version not in pinned_ray():
        yield Problem(place, value, f"expected ray{pinned_ray()}, as pyproject.toml pins it")


@cache
def pinned_ray() -> SpecifierSet:
    """Read the versions of Ray that the project allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(found.specifier for text in project["dependencies"] if (found := Requirement(text)).name == "ray")
