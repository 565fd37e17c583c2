"""The slides of a run as the viewer lists them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Listed:
    """A slide of the list."""

    slide_id: str
    probability: float
    """Of the read-out that counts."""
    threshold: float
    """Of that read-out."""
    predicted: str
    label: str = ""
    """"" = unknown, or given by a model."""
    num_patches: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)
    """What else was asked for: split, site, patient_id."""

    @property
    def disagreement(self) -> float | None:
        """Tell how far the probability lies on the wrong side of the threshold, from 0 to 1; None without a label.

        0 where prediction and label are the same; else the distance to the threshold as a share of the largest one
        that is possible on that side, so that sure mistakes come first under any threshold.
        """
        if not self.label:
            return None
        if self.predicted == self.label:
            return 0.0
        is_above = self.probability >= self.threshold
        room = 1 - self.threshold if is_above else self.threshold
        return min(1.0, abs(self.probability - self.threshold) / room) if room > 0 else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "slide_id": self.slide_id,
            "probability": self.probability,
            "threshold": self.threshold,
            "predicted": self.predicted,
            "label": self.label,
            "disagreement": self.disagreement,
            "num_patches": self.num_patches,
            "extra": dict(self.extra),
        }


def first_look(slides: Sequence[Listed]) -> list[Listed]:
    """Order slides as people should look: mistakes first, the surest on top, then by falling probability."""

    def place(slide: Listed) -> tuple[bool, float, float, str]:
        is_wrong = bool(slide.label) and slide.predicted != slide.label
        return not is_wrong, -(slide.disagreement or 0.0), -slide.probability, slide.slide_id

    return sorted(slides, key=place)
