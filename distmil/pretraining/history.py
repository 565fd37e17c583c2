"""What a pre-training did so far: the loss of every step, and the measures of every epoch. Needs no torch."""

from dataclasses import dataclass, field
from typing import Any

from distmil.pretraining.probe import collapse_in_words

Row = dict[str, float | None]


@dataclass
class History:
    """Losses and measures."""

    losses: list[float] = field(default_factory=list)
    """Of every step."""
    rows: list[Row] = field(default_factory=list)
    """Measures of the encoder as it began and after every epoch: ``probe_auc``, ``spread``, ``rank``; and ``loss``."""
    probe: str = "none"
    """By which labels the probe is measured."""

    @property
    def epochs_done(self) -> int:
        """Count the finished epochs."""
        return max(0, len(self.rows) - 1)

    @property
    def collapse(self) -> str | None:
        """Say how the embeddings of the last epoch collapsed; None where they did not."""
        return collapse_in_words(self.rows[-1]) if len(self.rows) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Write all but the losses, which are many, as JSON-ready values."""
        return {"rows": self.rows, "probe": self.probe, "steps": len(self.losses)}
