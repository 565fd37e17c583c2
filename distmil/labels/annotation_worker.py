"""The child process that reads annotations: whatever a file holds, it costs this process at most."""

import contextlib
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from distmil.annotations import origin
from distmil.annotations.arrow_file import encode_annotation
from distmil.annotations.coverage import united
from distmil.annotations.outlines import Annotation, is_index_group
from distmil.annotations.reader import TOO_MUCH_MEMORY, read_for
from distmil.annotations.regions import group_key
from distmil.annotations.slide_facts import Bounds, ScannerFrame, SlideFacts
from distmil.errors import AnnotationError, SlideError

MEMORY_BYTES = 4 * 2**30
"""Memory that reading one annotation may take: the largest valid GeoJSON takes three quarters of it."""


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Read an annotation, move it to the slide's level-0 pixels, and write it to a file.

    Args:
        request: ``path`` and ``slide_path``; ``size`` of the slide; ``bounds``, absent where nobody looked yet;
            ``origin``; ``tissue``: file of the tissue mask, or None, and its ``scale``; ``known``: the groups with a
            meaning; ``out``: file that the outlines are written to. Where they are known ``mpp`` and ``slide_id``;
            where they are set ``outline_scale`` and ``affine``.

    Returns:
        ``error``, or the ``unknown`` group names and ``doubts``.
    """
    _limit_memory()
    slide = _facts(request)
    try:
        annotation = origin.scaled(
            read_for(Path(request["path"]), slide),
            slide_size=slide.size,
            bounds=slide.bounds,
            scale=request.get("outline_scale"),
            affine=request.get("affine"),
        )
        placed, doubt = origin.place(
            annotation,
            origin=request["origin"],
            bounds=slide.bounds,
            slide_size=slide.size,
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
    return {"unknown": unknown, "doubts": [*annotation.doubts, *([doubt] if doubt else [])]}


def _without_names(annotation: Annotation, known: set[str]) -> tuple[Annotation, list[str]]:
    """Number the groups without a meaning: their names may name people, and are not stored."""
    sign = "?"
    while any(name.startswith(sign) for name in known):
        sign += "?"
    known = known | {name for name in annotation.regions if is_index_group(name)} | {""}
    unknown = [name for name in annotation.regions if group_key(name) not in known]
    names = {name: f"{sign}{number}" for number, name in enumerate(unknown, start=1)}
    parts: dict[str, list[Any]] = {}
    for name, region in annotation.regions.items():
        parts.setdefault(names.get(name, group_key(name)), []).append(region)
    regions = {name: united(areas) for name, areas in parts.items()}
    shown = [name.encode("utf-8", "replace").decode() for name in unknown]
    return Annotation(**{**vars(annotation), "regions": regions}), shown


def _facts(request: dict[str, Any]) -> SlideFacts:
    """Gather what is known of the slide."""
    names = (request.get("slide_id", ""), Path(request["slide_path"]).name)
    return SlideFacts(
        (request["size"][0], request["size"][1]),
        mpp=request.get("mpp"),
        bounds=_bounds(request),
        names=tuple(name for name in names if name),
        look_up_scanner=partial(_scanner, request["slide_path"]),
    )


def _bounds(request: dict[str, Any]) -> Bounds | None:
    """Return the slide's bounds, looked up in its file where an older record does not hold them."""
    if "bounds" not in request:
        from distmil.slides.reader import read_bounds  # noqa: PLC0415  # a machine that only labels may lack OpenSlide

        try:
            return read_bounds(request["slide_path"])
        except SlideError:
            return None
    found = request["bounds"]
    return (found[0], found[1], found[2], found[3]) if found else None


def _scanner(slide_path: str) -> ScannerFrame | None:
    """Return where a Hamamatsu scanner counts from; None where the slide's file does not say it, or is gone."""
    from distmil.slides.reader import read_scanner_frame  # noqa: PLC0415  # as above

    try:
        found = read_scanner_frame(slide_path)
    except SlideError:
        return None
    return found and ScannerFrame(*found)


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
