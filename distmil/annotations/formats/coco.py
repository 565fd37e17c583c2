"""COCO JSON: outlines, boxes and run-length masks of many images, of which those of one slide are read.

The image is the one whose ``file_name`` or id is the slide's, or the only one. A box counts where an annotation has no
``segmentation``. Pixel (0, 0) covers x from 0 to 1, as in COCO's own tools.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from distmil.annotations.outlines import OTHERS, Outlines, rectangle, to_points, to_size
from distmil.annotations.parsing import listed, name_of, plain
from distmil.annotations.slide_facts import SlideFacts
from distmil.errors import AnnotationError

NAME = "COCO JSON"
MAX_RUNS = 200_000
"""Most runs of a run-length mask: uniting them takes seconds."""


def matches(value: Any) -> bool:
    """Say whether it is COCO's."""
    first = value[0] if isinstance(value, list) and value else value
    keys = set(first) if isinstance(first, dict) else set()
    is_whole = "annotations" in keys and bool({"categories", "images"} & keys)
    return is_whole or "image_id" in keys


def read(value: Any, slide: SlideFacts, outlines: Outlines) -> None:
    """Gather the outlines of the slide's image. Raises: AnnotationError."""
    if not isinstance(value, dict):
        raise AnnotationError(
            "the annotation: a COCO list of results, which are a model's; expected an object with images, categories "
            "and annotations"
        )
    outlines.writer = "coco"
    image = _image(_objects(value, "images"), slide.names)
    outlines.drawn_on = to_size(image.get("width"), image.get("height"))
    names = {category.get("id"): plain(category.get("name")) for category in _objects(value, "categories")}
    for annotation in _objects(value, "annotations"):
        if annotation.get("image_id") == image.get("id"):
            _add(annotation, names.get(annotation.get("category_id"), ""), outlines)


def _objects(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = listed(value, key, of=NAME)
    for item in found:
        if not isinstance(item, dict) or any(isinstance(part, (list, dict)) for part in (item.get("id"),)):
            raise AnnotationError(
                f"the annotation: {key!r} in the COCO JSON holds {name_of(item)}, expected objects with plain ids"
            )
    return found


def _image(images: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Mapping[str, Any]:
    """Find the slide's image. Raises: AnnotationError if there is none, or several."""
    keys = {key for name in names for key in (name, PurePath(name).stem)}
    for key in ("file_name", "id"):
        found = [image for image in images if _is_named(plain(image.get(key)), keys)]
        if len(found) == 1:
            return found[0]
        if found:
            raise AnnotationError(f"the annotation: {len(found)} images of the COCO JSON have the slide's name")
    if len(images) == 1:
        return images[0]
    raise AnnotationError(
        f"the annotation: none of the {len(images)} images of the COCO JSON has the slide's id or its file's name as "
        "file_name; rename them, or the slide_id in the manifest"
    )


def _is_named(text: str, keys: set[str]) -> bool:
    name = PurePath(text.replace("\\", "/"))
    return bool(text) and (name.name in keys or name.stem in keys)


def _add(annotation: Mapping[str, Any], group: str, outlines: Outlines) -> None:
    shape, box = annotation.get("segmentation"), annotation.get("bbox")
    if isinstance(shape, dict):
        outlines.add_area(group, _area_of_runs(shape))
    elif isinstance(shape, list) and shape:
        for ring in shape if isinstance(shape[0], list) else [shape]:
            outlines.add(group, [_pairs(ring)])
    elif isinstance(box, list) and len(box) == 4:
        (x, y), (width, height) = _pairs(box)
        outlines.add(group, [rectangle(np.array([(x, y), (x + width, y + height)]))])
    else:
        outlines.drop(OTHERS)


def _pairs(values: Any) -> NDArray[np.float64]:
    """Pair up x, y, x, y, ... Raises: AnnotationError if they are not numbers in pairs."""
    if not isinstance(values, list) or len(values) % 2:
        raise AnnotationError("the annotation: an outline of the COCO JSON is not x, y, x, y, ...; export it again")
    return to_points(list(zip(values[::2], values[1::2], strict=True)))


def _area_of_runs(shape: Mapping[str, Any]) -> Any:
    """Unite the runs of a mask, which go down its columns. Raises: AnnotationError."""
    try:
        height, width = (int(edge) for edge in shape["size"])
        counts = shape["counts"]
        ends = np.cumsum(list(_decoded(counts)) if isinstance(counts, str) else np.array(counts, dtype=np.int64))
        is_right = not len(ends) or (ends[-1] == height * width and (np.diff(ends, prepend=0) >= 0).all())
    except (KeyError, TypeError, ValueError, OverflowError):
        is_right = False
    if not is_right:
        raise AnnotationError("the annotation: a run-length mask of the COCO JSON is damaged; export it again")
    start_R, end_R = ends[:-1:2], ends[1::2]
    first_R = start_R // height
    counts_R = np.where(end_R > start_R, (end_R - 1) // height - first_R + 1, 0)
    if counts_R.sum() > MAX_RUNS:
        raise AnnotationError(
            f"the annotation: a run-length mask of the COCO JSON has {counts_R.sum()} runs, more than {MAX_RUNS}; save "
            "it as a mask image"
        )
    x = np.repeat(first_R, counts_R) + np.arange(counts_R.sum()) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    top = np.maximum(np.repeat(start_R, counts_R) - x * height, 0)
    bottom = np.minimum(np.repeat(end_R, counts_R) - x * height, height)
    return shapely.union_all(shapely.box(x, top, x + 1, bottom))


def _decoded(text: str) -> Iterator[int]:
    """Decode COCO's compressed counts: groups of 5 bits, the least first, later counts relative to the last but one.

    Source: cocoapi, maskApi.c, rleFrString.
    """
    counts: list[int] = []
    value = shift = 0
    for sign in text.encode("ascii"):
        bits = sign - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    yield from counts
