"""The child process that reads annotations: whatever a file holds, it costs this process at most."""

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from distmil.annotations import origin
from distmil.annotations.arrow_file import encode_annotation
from distmil.annotations.coverage import united
from distmil.annotations.outlines import Annotation
from distmil.annotations.reader import TOO_MUCH_MEMORY, read_annotation
from distmil.annotations.regions import group_key
from distmil.errors import AnnotationError, SlideError

MEMORY_BYTES = 4 * 2**30
"""Memory that reading one annotation may take: the largest valid GeoJSON takes three quarters of it."""


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Read an annotation, move it to the slide's level-0 pixels, and write it to a file.

    Args:
        request: ``path`` and ``slide_path``; ``size`` of the slide; ``bounds``, absent where nobody looked yet;
            ``origin``; ``tissue``: file of the tissue mask, or None, and its ``scale``; ``known``: the groups with a
            meaning; ``out``: file that the outlines are written to.

    Returns:
        ``error``, or the ``unknown`` group names and ``doubts``.
    """
    _limit_memory()
    size = (request["size"][0], request["size"][1])
    try:
        annotation = read_annotation(Path(request["path"]), slide_size=size)
        placed, doubt = origin.place(
            annotation,
            origin=request["origin"],
            bounds=_bounds(request),
            slide_size=size,
            tissue=origin.Tissue(np.load(request["tissue"]), request["scale"]) if request["tissue"] else None,
        )
        kept, unknown = _without_names(placed, set(request["known"]))
        Path(request["out"]).write_bytes(encode_annotation(kept))
    except AnnotationError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": TOO_MUCH_MEMORY}
    except shapely.errors.GEOSException:
        return {"error": "the annotation: its outlines cannot be moved to the slide; simplify them"}
    return {"unknown": unknown, "doubts": [doubt] if doubt else []}


def _without_names(annotation: Annotation, known: set[str]) -> tuple[Annotation, list[str]]:
    """Number the groups without a meaning: their names may name people, and are not stored."""
    sign = "?"
    while any(name.startswith(sign) for name in known):
        sign += "?"
    unknown = [name for name in annotation.regions if group_key(name) and group_key(name) not in known]
    names = {name: f"{sign}{number}" for number, name in enumerate(unknown, start=1)}
    parts: dict[str, list[Any]] = {}
    for name, region in annotation.regions.items():
        parts.setdefault(names.get(name, group_key(name)), []).append(region)
    regions = {name: united(areas) for name, areas in parts.items()}
    shown = [name.encode("utf-8", "replace").decode() for name in unknown]
    return Annotation(**{**vars(annotation), "regions": regions}), shown


def _bounds(request: dict[str, Any]) -> origin.Bounds | None:
    """Return the slide's bounds, looked up in its file where an older record does not hold them."""
    if "bounds" not in request:
        from distmil.slides.reader import read_bounds  # noqa: PLC0415  # a machine that only labels may lack OpenSlide

        try:
            return read_bounds(request["slide_path"])
        except SlideError:
            return None
    found = request["bounds"]
    return (found[0], found[1], found[2], found[3]) if found else None


def _limit_memory() -> None:
    """Let this process take ``MEMORY_BYTES`` more than it has, where the system can tell how much that is."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        used = int(next(line for line in lines if line.startswith("VmData")).split()[1]) * 1024
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = used + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
