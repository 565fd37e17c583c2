"""Patch labels: from what is marked on a slide and where its patches lie to a class, 0 or unknown for every patch.

Computed from the annotation and the grid alone, so an edited outline or another rule tiles nothing again. Targets are
painted first and carve-outs last: target = marked - carved out - marked normal, and of two classes that overlap the
later one wins. What nobody marked is negative only where the annotation is complete.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from distmil.annotations.outlines import Annotation
from distmil.annotations.regions import (
    EXCLUDE,
    IGNORE,
    NOTHING,
    TOUCH,
    Grid,
    MarkedRegions,
    group_key,
    read_regions,
    value_key,
)
from distmil.errors import AnnotationError

UNKNOWN = -1
"""The label of a patch that nothing is known about."""
NORMAL_AT = 0.999
"""Share of a patch that must be marked normal for it to be negative where the annotation is incomplete."""
_ROUNDING = 1e-9

_TARGET_NAMES = ("tumor", "tumour", "_0", "_1", "metastases", "metastasis", "lesion", "cancer")
_CARVE_OUT_NAMES = ("_2", "exclusion", "exclude")
_NORMAL_NAMES = ("normal", "negative")
_NO_CLASS = {"exclude": EXCLUDE, "ignore": IGNORE, "nothing": NOTHING}
_TARGET = 1
PRESETS: Mapping[str, Mapping[str, int]] = {
    "camelyon16": dict.fromkeys(("tumor", "_0", "_1"), _TARGET) | {"_2": EXCLUDE, "exclusion": EXCLUDE},
    "camelyon17": {"metastases": _TARGET, "normal": EXCLUDE},
    "qupath": {
        "tumor": _TARGET,
        **dict.fromkeys(("stroma", "immune cells", "other"), 0),
        **dict.fromkeys(("necrosis", "ignore*"), IGNORE),
        "region*": NOTHING,
    },
}
"""What the groups of a data set or program mean, where the classes are normal and one target."""


@dataclass(frozen=True)
class LabelRule:
    """How much of a patch the target must cover; between the two limits its label is unknown."""

    positive_at: float = 0.0
    """Covered share from which a patch is positive; 0 = any overlap."""
    negative_below: float | None = None
    """Covered share below which a patch is negative; None = ``positive_at``, which leaves no gap."""

    def __post_init__(self) -> None:
        """Refuse limits that are not shares, or cross."""
        low = self.positive_at if self.negative_below is None else self.negative_below
        if not 0 <= low <= self.positive_at <= 1:
            raise ValueError(f"expected 0 <= negative_below <= positive_at <= 1, got {low} and {self.positive_at}")


@dataclass(frozen=True)
class PatchLabels:
    """Labels of one slide's patches, in the order of the grid."""

    label: NDArray[np.int8]
    """Class, 0 = normal, -1 = unknown; N."""
    target_fraction: NDArray[np.float32]
    """Share that any target covers, NaN = unknown; N."""
    fractions: NDArray[np.float32] | None = None
    """Share of every class, rows sum to 1, NaN rows = unknown; N x C. None with two classes."""


@dataclass(frozen=True)
class LabelledPatches:
    """Patch labels, and what a user should know about them."""

    labels: PatchLabels
    num_repaired: int = 0
    """Outlines that were made valid."""
    num_dropped: int = 0
    """MarkedRegions without an area, and objects that are not annotations."""
    unmapped: tuple[str, ...] = ()
    """Groups that ``labels.groups`` does not map; patches they touch are never negative."""
    is_target_missed: bool = False
    """True where a target is marked and no patch holds any of it."""
    doubts: tuple[str, ...] = ()
    """What a person should know of how the annotation was understood."""


def default_groups(classes: Sequence[str]) -> dict[str, int]:
    """List the groups that have a meaning by their names: every class's own, and CAMELYON's.

    QuPath's ``Ignore*`` stays unmapped on purpose, so that nothing is claimed about the patches it touches. Ungrouped
    outlines have no meaning of their own here; see ``read_regions``.

    Returns:
        Group name in lower case -> class index, or ``EXCLUDE``.
    """
    groups = dict.fromkeys(_CARVE_OUT_NAMES, EXCLUDE) | dict.fromkeys(_NORMAL_NAMES, 0)
    if len(classes) == 2:
        groups |= dict.fromkeys(_TARGET_NAMES, 1)
    return groups | {group_key(name): index for index, name in enumerate(classes)}


def resolve_groups(
    classes: Sequence[str], configured: Mapping[str, str], *, preset: str | None = None
) -> dict[str, int]:
    """Lay a preset, and a user's ``labels.groups`` on top of it, over the defaults.

    Args:
        classes: Class names, normal first.
        configured: Group name, or value of a mask, -> class name, ``exclude``, ``ignore`` or ``nothing``, all in any
            case; "none" or "" stands for ungrouped.
        preset: A name of ``PRESETS``; its target and normal groups mean something where there are two classes.

    Raises:
        ValueError: Naming a key whose value is not a class.
    """
    own = {group_key(name): index for index, name in enumerate(classes)}
    values = _NO_CLASS | own
    groups = default_groups(classes)
    for name, meaning in PRESETS[preset].items() if preset else ():
        if name not in own and (meaning < 0 or len(classes) == 2):
            groups[name] = meaning
    for name, value in configured.items():
        if group_key(value) not in values:
            choices = ", ".join([*classes, *_NO_CLASS])
            raise ValueError(f"labels.groups.{name}: {value!r} is not a class; expected one of {choices}")
        groups |= dict.fromkeys({group_key(name), value_key(name) or group_key(name)}, values[group_key(value)])
    return groups


def label_patches(
    grid: Grid,
    annotation: Annotation | None,
    *,
    slide_label: int,
    num_classes: int,
    annotation_complete: bool,
    groups: Mapping[str, int | None],
    rule: LabelRule,
    slide_id: str,
    slide_size: tuple[int, int],
) -> LabelledPatches:
    """Label every patch of a slide.

    A slide labelled 0 makes all its patches 0. Elsewhere a patch is positive by the rule, negative by the rule only
    where the annotation is complete or marks it as normal, and unknown otherwise. Where an annotation is incomplete
    the covered share of a patch that the target touches is kept, as far as it is marked.

    Args:
        grid: Where the patches are.
        annotation: What is marked; None where there is no file.
        slide_label: The slide's class.
        num_classes: Number of classes, normal included.
        annotation_complete: True where every target of the slide is marked.
        groups: Group name -> class index, ``EXCLUDE``, ``IGNORE``, ``NOTHING``, or None for unmapped; see
            ``resolve_groups``.
        rule: How much of a patch the target must cover.
        slide_id: For messages.
        slide_size: Level-0 size, (width, height).

    Raises:
        AnnotationError: If the annotation contradicts the slide's label, lies outside the slide, or its groups or
            mask values are unknown.
    """
    if not 0 <= slide_label < num_classes:
        raise ValueError(f"{slide_id}: slide_label {slide_label} is none of {num_classes} classes")
    if annotation is None:
        labels = _normal(len(grid.x), num_classes) if slide_label == 0 else _unknown(len(grid.x), num_classes)
        return LabelledPatches(labels)
    try:
        regions = read_regions(annotation, values=groups, num_classes=num_classes)
        if slide_label == 0:
            _check_negative(regions, slide_id)
            labels, is_missed = _normal(len(grid.x), num_classes), False
        else:
            _check_positive(regions, annotation, slide_label, slide_id, is_complete=annotation_complete)
            regions.check(num_classes=num_classes, slide_id=slide_id, slide_size=slide_size)
            share_NC, is_unclear_N = regions.cover(grid, num_classes=num_classes, slide_size=slide_size)
            labels = _apply_rule(share_NC, is_unclear_N, rule=rule, is_complete=annotation_complete)
            is_missed = regions.has_target and not (share_NC[:, 1:].sum(axis=1) >= TOUCH).any()
    except shapely.errors.GEOSException as error:
        raise AnnotationError(
            f"{slide_id}: the outlines cannot be laid over the patches; simplify them, or use a mask image"
        ) from error
    doubts = tuple(_doubts(annotation, regions, slide_size))
    return LabelledPatches(labels, annotation.num_repaired, annotation.num_dropped, regions.unmapped, is_missed, doubts)


def _doubts(annotation: Annotation, regions: MarkedRegions, slide_size: tuple[int, int]) -> Iterator[str]:
    """Yield what a person should know; group names without a known meaning may name people and are only counted."""
    if annotation.dropped_text:
        yield f"annotation: {annotation.dropped_text}"
    if annotation.class_property:
        yield f"annotation: the class of its outlines was read from the property {annotation.class_property!r}"
    if regions.is_loose_target:
        yield "annotation: none of its outlines has a class, so all of them are taken as the target"
    if regions.num_interest:
        yield (
            f"annotation: {regions.num_interest} outlines without a class, which lie around or on classified ones, "
            "mark nothing; `labels.groups.none` says what they are"
        )
    if regions.num_apart:
        yield (
            f"annotation: patches in {regions.num_apart} outlines without a class are unknown, because other outlines "
            "have one; `labels.groups.none` says what they are"
        )
    if number := regions.num_outside(slide_size):
        yield (
            f"annotation: {number} of its outlines lie outside the slide and mark nothing; labels.origin and "
            "labels.scale say how its coordinates are meant"
        )
    if regions.unmapped:
        yield (
            f"annotation: {len(regions.unmapped)} of its groups are not in labels.groups; patches that they touch are "
            "unknown"
        )


def _check_negative(regions: MarkedRegions, slide_id: str) -> None:
    if regions.has_target:
        found = ", ".join(repr(name) if name else "outlines without a class" for name in regions.target_groups)
        raise AnnotationError(
            f"{slide_id}: the annotation marks a target ({found}), but the slide is labelled 0 (normal); correct the "
            "label, leave the annotation out, or map groups that mark something else in `labels.groups`"
        )


def _check_positive(
    regions: MarkedRegions, annotation: Annotation, slide_label: int, slide_id: str, *, is_complete: bool
) -> None:
    if regions.unmapped and not regions.num_mapped:
        loose = " (its outlines have no class)" if regions.unmapped == ("",) else ""
        where = f"; the class was read from {annotation.class_property!r}" if annotation.class_property else ""
        number = len(regions.unmapped)
        what = "only group is not known" if number == 1 else f"{number} groups are all not known"
        raise AnnotationError(
            f"{slide_id}: the annotation's {what}{loose}{where}; `labels.groups` maps names to classes (or to exclude)"
        )
    if is_complete and not regions.has_target:
        carved = "what it marks as target is carved out or ignored again" if regions.target_groups else ""
        why = "; ".join(text for text in (carved, annotation.dropped_text) if text)
        left_out = f" ({why})" if why else ""
        raise AnnotationError(
            f"{slide_id}: the slide is labelled {slide_label} and annotation_complete is true, but the annotation "
            f"marks no target{left_out}; correct the label, or set annotation_complete to false"
        )


def _apply_rule(
    share_NC: NDArray[np.float64], is_unclear_N: NDArray[np.bool_], *, rule: LabelRule, is_complete: bool
) -> PatchLabels:
    """Apply the rule to what is covered.

    With several classes the rule looks at the share of all targets together, and the class that covers most wins.
    """
    target_NC = share_NC[:, 1:]
    share_N = target_NC.sum(axis=1).clip(0, 1)
    is_touched = share_N >= TOUCH
    share_N[~is_touched] = 0
    is_known = (is_complete | (share_NC[:, 0] >= NORMAL_AT - _ROUNDING)) & ~is_unclear_N
    negative_below = rule.positive_at if rule.negative_below is None else rule.negative_below
    is_positive = is_touched & (share_N >= rule.positive_at - _ROUNDING)
    is_negative = is_known & ~is_positive & ((share_N < negative_below - _ROUNDING) | ~is_touched)
    label_N = np.where(is_positive, 1 + target_NC.argmax(axis=1), np.where(is_negative, 0, UNKNOWN)).astype(np.int8)
    has_share = is_known | is_touched
    fraction_N = np.where(has_share, share_N, np.nan).astype(np.float32)
    if share_NC.shape[1] == 2:
        return PatchLabels(label_N, fraction_N)
    row_NC = np.column_stack([1 - share_N, np.where(is_touched[:, None], target_NC, 0)])
    return PatchLabels(label_N, fraction_N, np.where(has_share[:, None], row_NC, np.nan).astype(np.float32))


def _normal(num: int, num_classes: int) -> PatchLabels:
    """Label every patch as normal."""
    fractions = np.zeros((num, num_classes), np.float32)
    fractions[:, 0] = 1
    return PatchLabels(np.zeros(num, np.int8), np.zeros(num, np.float32), fractions if num_classes > 2 else None)


def _unknown(num: int, num_classes: int) -> PatchLabels:
    """Label every patch as unknown."""
    fractions = np.full((num, num_classes), np.nan, np.float32) if num_classes > 2 else None
    return PatchLabels(np.full(num, UNKNOWN, np.int8), np.full(num, np.nan, np.float32), fractions)
