"""Equal reasons in one line: texts that differ in numbers only, and the setting under which all their slides fit."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distmil.errors import Reason

_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
_ITSELF = "\0"  # stands for the slide's own id
_MOST = 0.9  # share of a group that a second, more careful value has to fit
_FAR = 1.25  # times by which the value that fits all has to be more extreme than that one
_NAMED = 5
_ALIKE = 1.05  # times by which resolutions of one scanner may differ

Group = tuple[str, list[str]]
"""A text, and the slides that it is true of."""


@dataclass(frozen=True)
class Dropped:
    """A slide that is not used."""

    slide_id: str
    status: str
    text: str
    """The error's message."""
    reason: Reason | None = None


@dataclass(frozen=True)
class Cause:
    """Why some slides are not used."""

    status: str
    text: str
    """What is wrong, and the setting that would fit."""
    slides: list[str]

    @property
    def title(self) -> str:
        """Count the slides: "72 x too_coarse"."""
        return f"{len(self.slides)} x {self.status}"


def grouped(texts: Iterable[tuple[str, str]]) -> list[Group]:
    """Put slides with equal texts together, the largest group first.

    Args:
        texts: Slide ids and texts. Texts that differ in numbers, or in the slide's own id, count as equal.

    Returns:
        The text of each group, with the range of each number that differs, and its slides, in the order in which they
        came.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for slide_id, text in texts:
        found.setdefault(_shape(_unnamed(text, slide_id)), []).append((slide_id, text))
    groups = [(_common(group), [slide_id for slide_id, _ in group]) for group in found.values()]
    return sorted(groups, key=lambda group: -len(group[1]))


def causes_of(dropped: Iterable[Dropped], *, known_mpp: Sequence[float] = ()) -> list[Cause]:
    """Put slides that are not used for one reason together, by status, the largest group first.

    Args:
        dropped: The slides.
        known_mpp: um per pixel of slides that are used, to guess at those that state none.
    """
    found: dict[tuple[object, ...], list[Dropped]] = {}
    for slide in dropped:
        reason = slide.reason or Reason()
        shape = _shape(reason.found or _unnamed(slide.text, slide.slide_id))
        fixed = reason.value if isinstance(reason.value, str) else None
        found.setdefault((slide.status, shape, reason.key, reason.fits, fixed), []).append(slide)
    causes = [
        Cause(group[0].status, _why(group, known_mpp), [slide.slide_id for slide in group]) for group in found.values()
    ]
    return sorted(causes, key=lambda cause: (cause.status, -len(cause.slides)))


def _why(group: Sequence[Dropped], known_mpp: Sequence[float]) -> str:
    """Word what is wrong with the slides of a group; a single slide's message says the way out as a rule."""
    reasons = [slide.reason for slide in group if slide.reason]
    is_said = len(group) == 1 and all(reason.value is not None for reason in reasons)  # by the message, with the value
    is_brief = not is_said and all(reason.found for reason in reasons)
    texts = [(slide.reason.found if slide.reason and is_brief else slide.text) for slide in group]
    text = _common([("" if is_brief else slide.slide_id, text) for slide, text in zip(group, texts, strict=True)])
    if is_brief:
        return "; ".join(part for part in (text, _way_out(reasons, known_mpp)) if part)
    return text if all(reason.found for reason in reasons) else f"{text}; or {_way_out(reasons, known_mpp)}"


def _way_out(reasons: Sequence[Reason], known_mpp: Sequence[float]) -> str:
    """Name the setting under which slides could be used; "" where there is none."""
    if not reasons or not reasons[0].key:
        return ""
    key, fits, value = reasons[0].key, reasons[0].fits, reasons[0].value
    if isinstance(value, str):
        return f"set {key}={value}"
    values = sorted(reason.value for reason in reasons if isinstance(reason.value, int | float))
    if not values:
        return _guess(key, known_mpp)
    values = values if fits == "least" else values[::-1]
    best, usual = values[-1], values[math.ceil(_MOST * len(values)) - 1]
    if max(best, usual) <= _FAR * min(best, usual):
        return f"set {key}={best:g}"
    num_fit = sum(value <= usual if fits == "least" else value >= usual for value in values)
    return f"set {key}={usual:g}, which fits {num_fit} of them, or {key}={best:g}, which fits all"


def _guess(key: str, known_mpp: Sequence[float]) -> str:
    """Guess a resolution from those of other slides, where they agree."""
    if known_mpp and max(known_mpp) <= _ALIKE * min(known_mpp):
        value = sorted(known_mpp)[len(known_mpp) // 2]
        return f"set {key}={value:.4g}, as the other slides have it, if the scanner is the same, or mpp in the manifest"
    return f"set {key} to the scanner's um per pixel (often 0.25 at 40x, 0.5 at 20x), or mpp in the manifest"


def _unnamed(text: str, slide_id: str) -> str:
    """Take the slide's own id out of a text; one that is a number only where it stands in front."""
    if slide_id and text.startswith(f"{slide_id}: "):
        text = _ITSELF + text.removeprefix(slide_id)
    if not slide_id or _NUMBER.fullmatch(slide_id):
        return text
    return re.sub(rf"(?<!\w){re.escape(slide_id)}(?!\w)", _ITSELF, text) if slide_id in text else text


def _shape(text: str) -> str:
    return _NUMBER.sub("#", text)


def _common(group: Sequence[tuple[str, str]]) -> str:
    """Word texts of one shape as one: their own ids left out, numbers that differ as a range."""
    if len({text for _, text in group}) == 1:
        return group[0][1]
    texts = [_unnamed(text, slide_id) for slide_id, text in group]
    ranges = iter([_range(numbers) for numbers in zip(*map(_NUMBER.findall, texts), strict=True)])
    merged = _NUMBER.sub(lambda _: next(ranges), texts[0])
    return merged.removeprefix(f"{_ITSELF}: ").replace(_ITSELF, "the slide")


def _range(numbers: Sequence[str]) -> str:
    """Word the smallest and the largest number, as they are written."""
    low, high = min(numbers, key=_value), max(numbers, key=_value)
    return low if _value(low) == _value(high) else f"{low} to {high}"


def _value(number: str) -> float:
    """Read a number; commas part thousands, and what has several dots is no number."""
    text = number.replace(",", "")
    return float(text) if text.count(".") < 2 else math.inf


def some(slides: Sequence[str]) -> str:
    """Name the first slides of several."""
    return ", ".join(slides[:_NAMED]) + ", ..." * (len(slides) > _NAMED)


def as_lines(causes: Sequence[Cause], *, most: int) -> str:
    """Word causes as indented lines with some of their slides, the largest groups first."""
    ordered = sorted(causes, key=lambda cause: -len(cause.slides))
    lines = [
        f"  {cause.title} ({some(cause.slides)}): {cause.text.removeprefix(f'{cause.slides[0]}: ')}"
        for cause in ordered[:most]
    ]
    if left := ordered[most:]:
        lines.append(f"  {sum(len(cause.slides) for cause in left)} for {len(left)} other reasons")
    return "\n".join(lines)
