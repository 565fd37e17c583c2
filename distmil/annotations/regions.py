"""What an annotation marks, sorted by what its groups mean, and how much of each patch every class covers.

Two forms with one face: outlines, and a mask image whose values are classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from distmil.annotations.coverage import mask_shares, polygon_shares, polygonal, united
from distmil.annotations.outlines import Annotation, index_group
from distmil.annotations.slide_facts import Size
from distmil.errors import AnnotationError

TOUCH = 1e-6
"""Smallest covered share that counts: an outline that runs along a patch's edge does not mark the neighbour."""
_SLIVER_PX2 = 1e-6

EXCLUDE, IGNORE, NOTHING = -1, -2, -3
"""Meanings of a group that is no class: a carve-out, an area about which nothing is known, and no mark at all."""

Cover = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Per patch the share of every class (N x C, column 0: marked normal), and whether an unclear area touches it (N)."""


class Grid(NamedTuple):
    """The patches of a slide in level-0 pixels, each field N."""

    x: NDArray[np.int32]
    """Left edges."""
    y: NDArray[np.int32]
    """Top edges."""
    extent_px: NDArray[np.int32]
    """Edge lengths."""


@dataclass(frozen=True, kw_only=True)
class MarkedRegions(ABC):
    """What label rules ask of an annotation in either form."""

    target_groups: tuple[str, ...]
    """Groups, or values of a mask, that mean a target."""
    unmapped: tuple[str, ...] = ()
    """Groups whose meaning is unknown."""
    num_mapped: int = 0
    """Number of groups whose meaning is known."""
    is_loose_target: bool = False
    """Outlines without a group are the target, because the file has no group at all."""
    num_interest: int = 0
    """Outlines without a group that a grouped one touches: they mark nothing."""
    num_apart: int = 0
    """Outlines without a group that no grouped one touches: what lies inside is unknown."""

    @property
    @abstractmethod
    def has_target(self) -> bool:
        """Whether any target is left once carve-outs are taken away."""

    @abstractmethod
    def check(self, *, num_classes: int, slide_id: str, slide_size: Size) -> None:
        """Refuse regions that cannot belong to this slide and these classes."""

    @abstractmethod
    def num_outside(self, slide_size: Size) -> int:
        """Count the outlines that lie wholly outside the slide."""

    @abstractmethod
    def cover(self, grid: Grid, *, num_classes: int, slide_size: Size) -> Cover:
        """Compute what covers each patch."""


def group_key(name: str) -> str:
    """Normalise a group's or class's name for comparison: without case, "" for ungrouped."""
    key = name.strip().casefold()
    return "" if key == "none" else key


def value_key(name: str) -> str | None:
    """Make the key of a mask's value that a user names, as ``read_regions`` takes it; None if it is not a number.

    It differs from the key of a group: a class may have a number as its name.
    """
    text = name.strip()
    return f"mask value {int(text)}" if text.isascii() and text.isdigit() else None


def read_regions(annotation: Annotation, *, values: Mapping[str, int | None], num_classes: int) -> MarkedRegions:
    """Sort an annotation by the meaning of its groups; the groups of a mask are its values.

    Outlines without a group are targets only where the file has no group at all. Beside groups, and unless ``values``
    says what they mean, those that a group's outlines touch are regions of interest, which mark nothing; the others are
    unclear.

    Args:
        annotation: The content of the file.
        values: Group, or ``value_key`` of a mask's value, -> class index, ``EXCLUDE``, ``IGNORE``, ``NOTHING``, or None
            for unmapped; case does not matter.
        num_classes: Number of classes, normal included.

    Raises:
        AnnotationError: If a value of the mask means nothing.
    """
    meaning: dict[str, int | None] = {index_group(index): index for index in (IGNORE, *range(num_classes))}
    meaning |= {group_key(name): value for name, value in values.items()}
    if annotation.mask is not None:
        found = _mask_meaning(annotation.mask, meaning, num_classes=num_classes)
        targets = tuple(str(value) for value, given in found.items() if given > 0)
        return MaskRegions(
            mask=annotation.mask,
            scale=annotation.mask_scale,
            corner=annotation.mask_corner,
            meaning=found,
            target_groups=targets,
        )
    grouped = {name: region for name, region in annotation.regions.items() if group_key(name)}
    loose = [region for name, region in annotation.regions.items() if not group_key(name)]
    is_loose_target = bool(loose) and not grouped and num_classes == 2 and meaning.get("") is None
    if is_loose_target:
        meaning[""] = 1
    if loose and (not grouped or meaning.get("") is not None):
        grouped[""], loose = united(loose), []
    num_interest, apart = _regions_of_interest(loose, list(grouped.values()))
    return _outline_regions(
        grouped,
        meaning,
        apart=apart,
        target_groups=tuple(name for name in grouped if (meaning.get(group_key(name)) or 0) > 0),
        is_loose_target=is_loose_target,
        num_interest=num_interest,
        num_apart=len(apart),
    )


def _outline_regions(
    regions: Mapping[str, BaseGeometry],
    meaning: Mapping[str, int | None],
    *,
    apart: Sequence[BaseGeometry],
    **about: Any,
) -> "OutlineRegions":
    """Sort outlines by meaning, targets without what is carved out, ignored, marked normal, or of a later class."""
    by_value: dict[int | None, list[BaseGeometry]] = {}
    unmapped = []
    for name, region in regions.items():
        value = meaning.get(group_key(name))
        by_value.setdefault(value, []).append(region)
        unmapped += [name] if value is None else []
    by_value.pop(NOTHING, None)
    carved, ignored, normal = (united(by_value.pop(value, [])) for value in (EXCLUDE, IGNORE, 0))
    unclear = united([*by_value.pop(None, []), *apart, ignored])
    taken = [carved, ignored, normal]
    targets = {}
    for value in sorted((value for value in by_value if value is not None), reverse=True):
        target = united(by_value[value])
        targets[value] = _without(target, taken)
        taken.append(target)
    return OutlineRegions(
        targets={value: target for value, target in targets.items() if target.area > _SLIVER_PX2},
        normal=_without(normal, [carved, ignored]),
        unclear=unclear,
        unmapped=tuple(unmapped),
        num_mapped=len(regions) - len(unmapped),
        **about,
    )


def _regions_of_interest(
    loose: Sequence[BaseGeometry], grouped: Sequence[BaseGeometry]
) -> tuple[int, list[BaseGeometry]]:
    """Count the outlines without a group that touch one with a group, and return those that do not."""
    if not loose:
        return 0, []
    parts = shapely.get_parts(np.asarray(loose))
    tree = shapely.STRtree(shapely.get_parts(np.asarray(grouped)))
    touching = np.zeros(len(parts), dtype=np.bool_)
    touching[np.unique(tree.query(parts, predicate="intersects")[0])] = True
    return int(touching.sum()), list(parts[~touching])


def _mask_meaning(mask: NDArray[np.uint8], meaning: Mapping[str, int | None], *, num_classes: int) -> dict[int, int]:
    """Find the class or carve-out of every value of a mask.

    A value means what its group says, else the class of that index. With two classes a single value means the target.

    Raises:
        AnnotationError: Naming the values if one means nothing.
    """
    present = [int(value) for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256))]
    marked = [value for value in present if value]
    found = {value: given for value in present if (given := meaning.get(f"mask value {value}")) is not None}
    left = [value for value in marked if value not in found]
    if num_classes == 2 and len(marked) == 1 and left:
        return found | {left[0]: 1}
    unknown = [value for value in left if value >= num_classes]
    if unknown:
        shown = ", ".join(f"{value} (or more)" if value == 255 else str(value) for value in marked)
        raise AnnotationError(
            f"the mask holds the values {shown}, but the classes are 0 to {num_classes - 1}; paint class indices, "
            f'0 = not marked, or say in `labels.groups` which class a value is, such as "{unknown[0]}": exclude'
        )
    return found | {value: value for value in left}


def _without(area: BaseGeometry, others: Sequence[BaseGeometry]) -> BaseGeometry:
    """Take others away; empty ones cost nothing, and a large outline that nothing touches is left as it is."""
    for other in others:
        if not other.is_empty:
            area = polygonal(shapely.difference(area, other))
    return area


@dataclass(frozen=True, kw_only=True)
class OutlineRegions(MarkedRegions):
    """Outlines by class; no two of the targets overlap."""

    targets: Mapping[int, BaseGeometry]
    normal: BaseGeometry
    unclear: BaseGeometry

    @property
    def has_target(self) -> bool:
        """Whether any target is left once carve-outs are taken away."""
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

    def num_outside(self, slide_size: Size) -> int:
        """Count the outlines that lie wholly outside the slide."""
        parts = shapely.get_parts(np.asarray([self.normal, self.unclear, *self.targets.values()]))
        left, top, right, bottom = shapely.bounds(parts[~shapely.is_empty(parts)]).reshape(-1, 4).T
        return int(((left >= slide_size[0]) | (top >= slide_size[1]) | (right <= 0) | (bottom <= 0)).sum())

    def cover(self, grid: Grid, *, num_classes: int, slide_size: Size) -> Cover:
        """Compute what covers each patch; what lies beyond the slide's edge covers nothing."""
        x, y, extent_px = grid
        frame = shapely.box(0, 0, *slide_size)
        share_NC = np.zeros((len(x), num_classes))
        for value, region in {0: self.normal, **self.targets}.items():
            if not frame.covers(shapely.box(*region.bounds)):
                region = polygonal(shapely.intersection(region, frame))  # noqa: PLW2901
            share_NC[:, value] = polygon_shares(region, x=x, y=y, extent_px=extent_px)
        return share_NC, polygon_shares(self.unclear, x=x, y=y, extent_px=extent_px) >= TOUCH


@dataclass(frozen=True, kw_only=True)
class MaskRegions(MarkedRegions):
    """A mask image and what each of its values means."""

    mask: NDArray[np.uint8]
    scale: tuple[float, float]
    corner: tuple[float, float] = (0.0, 0.0)
    meaning: Mapping[int, int]
    """Value -> class, ``EXCLUDE``, ``IGNORE`` or ``NOTHING``."""

    @property
    def has_target(self) -> bool:
        """Whether any pixel is marked as a target."""
        return bool(self.target_groups)

    def check(self, *, num_classes: int, slide_id: str, slide_size: Size) -> None:
        """Refuse a value of a class that does not exist."""
        if any(given >= num_classes for given in self.meaning.values()):
            raise ValueError(f"{slide_id}: a value maps to class {max(self.meaning.values())} of {num_classes}")

    def num_outside(self, slide_size: Size) -> int:
        """Count nothing: a mask has no outlines."""
        return 0

    def cover(self, grid: Grid, *, num_classes: int, slide_size: Size) -> Cover:
        """Compute what covers each patch; a value that means nothing else is not marked."""
        share_NC = np.zeros((len(grid.x), num_classes))
        is_unclear_N = np.zeros(len(grid.x), dtype=np.bool_)
        for given in sorted(set(self.meaning.values()) - {EXCLUDE, NOTHING}):
            is_marked = np.isin(self.mask, [value for value, one in self.meaning.items() if one == given])
            share_N = mask_shares(is_marked, scale=self.scale, corner=self.corner, **grid._asdict())
            if given == IGNORE:
                is_unclear_N = share_N >= TOUCH
            else:
                share_NC[:, given] = share_N
        return share_NC, is_unclear_N
