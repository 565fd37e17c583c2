"""What an annotation marks, sorted by what its groups mean, and how much of each patch every class covers.

Two forms with one face: outlines, and a mask image whose values are classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from distmil.errors import AnnotationError
from distmil.slides.annotations import Annotation
from distmil.slides.coverage import mask_shares, polygon_shares, polygonal, united

TOUCH = 1e-6
"""Smallest covered share that counts: an outline that runs along a patch's edge does not mark the neighbour."""
_SLIVER_PX2 = 1e-6

Size = tuple[int, int]
Grid = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
"""x, y and extent_px of the patches, N each, level-0 pixels."""
Cover = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Per patch the share of every class (N x C, column 0: marked normal), and whether unmapped groups touch it (N)."""


class Marks(Protocol):
    """What label rules ask of an annotation in either form."""

    @property
    def has_target(self) -> bool:
        """Say whether any target is left once carve-outs are taken away."""

    @property
    def unmapped(self) -> tuple[str, ...]:
        """Return the groups whose meaning is unknown."""

    @property
    def num_mapped(self) -> int:
        """Return the number of groups whose meaning is known."""

    def check(self, *, num_classes: int, slide_id: str, slide_size: Size) -> None:
        """Refuse marks that cannot belong to this slide and these classes."""

    def cover(self, grid: Grid, *, num_classes: int, slide_size: Size) -> Cover:
        """Return what covers each patch."""


def group_key(name: str) -> str:
    """Return a group's or class's name as it is compared: without case, "" for ungrouped."""
    key = name.strip().casefold()
    return "" if key == "none" else key


def read_marks(annotation: Annotation, *, values: Mapping[str, int | None], exclude: int) -> Marks:
    """Sort an annotation by what its groups mean; a mask has no groups, its values are classes.

    Args:
        annotation: What the file marks.
        values: Group -> class index, ``exclude``, or None for unmapped; case does not matter.
        exclude: The value that stands for a carve-out.
    """
    if annotation.mask is not None:
        return MaskMarks(annotation.mask, annotation.mask_scale)
    meaning = {group_key(name): value for name, value in values.items()}
    by_value: dict[int | None, list[BaseGeometry]] = {}
    unmapped = []
    for name, region in annotation.regions.items():
        value = meaning.get(group_key(name))
        by_value.setdefault(value, []).append(region)
        unmapped += [name] if value is None else []
    carved = united(by_value.pop(exclude, []))
    unclear = united(by_value.pop(None, []))
    normal = united(by_value.pop(0, []))
    taken = [carved, normal]
    targets = {}
    for value in sorted((value for value in by_value if value is not None), reverse=True):
        target = united(by_value[value])
        targets[value] = _without(target, taken)
        taken.append(target)
    return OutlineMarks(
        targets={value: target for value, target in targets.items() if target.area > _SLIVER_PX2},
        normal=_without(normal, [carved]),
        unclear=unclear,
        unmapped=tuple(unmapped),
        num_mapped=len(annotation.regions) - len(unmapped),
    )


def _without(area: BaseGeometry, others: Sequence[BaseGeometry]) -> BaseGeometry:
    """Take others away; empty ones cost nothing, and a large outline that nothing touches is left as it is."""
    for other in others:
        if not other.is_empty:
            area = polygonal(shapely.difference(area, other))
    return area


@dataclass(frozen=True)
class OutlineMarks:
    """Outlines by class; no two of the targets overlap."""

    targets: Mapping[int, BaseGeometry]
    normal: BaseGeometry
    unclear: BaseGeometry
    unmapped: tuple[str, ...]
    num_mapped: int

    @property
    def has_target(self) -> bool:
        """Say whether any target is left once carve-outs are taken away."""
        return bool(self.targets)

    def check(self, *, num_classes: int, slide_id: str, slide_size: Size) -> None:
        """Refuse targets that lie wholly outside the slide, or of a class that does not exist."""
        if any(value >= num_classes for value in self.targets):
            raise ValueError(f"{slide_id}: groups map to class {max(self.targets)}, there are {num_classes} classes")
        if not self.targets:
            return
        left, top, right, bottom = shapely.total_bounds(list(self.targets.values()))
        if left >= slide_size[0] or top >= slide_size[1] or right <= 0 or bottom <= 0:
            raise AnnotationError(
                f"{slide_id}: the outlines span x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}, outside the "
                f"slide of {slide_size[0]} x {slide_size[1]} px; expected level-0 pixels of this slide: check the "
                "scale and that the file belongs to it"
            )

    def cover(self, grid: Grid, *, num_classes: int, slide_size: Size) -> Cover:
        """Return what covers each patch; what lies beyond the slide's edge covers nothing."""
        x, y, extent_px = grid
        frame = shapely.box(0, 0, *slide_size)
        share_NC = np.zeros((len(x), num_classes))
        for value, region in {0: self.normal, **self.targets}.items():
            if not frame.covers(shapely.box(*region.bounds)):
                region = polygonal(shapely.intersection(region, frame))  # noqa: PLW2901
            share_NC[:, value] = polygon_shares(region, x=x, y=y, extent_px=extent_px)
        return share_NC, polygon_shares(self.unclear, x=x, y=y, extent_px=extent_px) >= TOUCH


@dataclass(frozen=True)
class MaskMarks:
    """A mask image; with two classes any value but 0 is the target, else a value is a class."""

    mask: NDArray[np.uint8]
    scale: tuple[float, float]
    unmapped: tuple[str, ...] = ()
    num_mapped: int = 0

    @property
    def has_target(self) -> bool:
        """Say whether any pixel is marked."""
        return bool(self.mask.any())

    def check(self, *, num_classes: int, slide_id: str, slide_size: Size) -> None:
        """Refuse a value that is no class."""
        value = int(self.mask.max())
        if num_classes > 2 and value >= num_classes:
            raise AnnotationError(
                f"{slide_id}: the mask holds the value {value}{' or more' if value == 255 else ''}, but the classes "
                f"are 0 to {num_classes - 1}; paint class indices, 0 = normal"
            )

    def cover(self, grid: Grid, *, num_classes: int, slide_size: Size) -> Cover:
        """Return what covers each patch; 0 is not marked, which is not the same as marked normal."""
        x, y, extent_px = grid
        share_NC = np.zeros((len(x), num_classes))
        for value in range(1, num_classes):
            is_marked = self.mask > 0 if num_classes == 2 else self.mask == value
            share_NC[:, value] = mask_shares(is_marked, scale=self.scale, x=x, y=y, extent_px=extent_px)
        return share_NC, np.zeros(len(x), dtype=np.bool_)
