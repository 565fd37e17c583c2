"""A slide's patches with the scores that can be exported. N patches; x, y are level-0 pixels of the slide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from distmil.errors import ConfigError

STORED = ("attention", "probability", "fused", "topk_probability")
"""Scores that the table of patch predictions has."""
AGREEMENT = "agreement"
_CLASS = "probability_"
"""How the columns of single classes begin, where there are more than two."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class ScoredPatches:
    """Patches of one slide with their scores."""

    x_N: NDArray[np.int64]
    y_N: NDArray[np.int64]
    extent_N: NDArray[np.int64]
    """Level-0 edge of each."""
    scores: Mapping[str, Values]
    """By name, each N, within 0 and 1: ``STORED`` and ``AGREEMENT``."""
    class_N: NDArray[np.intp]
    """Number of the class among ``classes`` that the patch has if it is abnormal."""
    classes: Sequence[str]
    """Names of the classes that are not normal, or the one that was asked for."""

    def __len__(self) -> int:
        return len(self.x_N)

    def is_abnormal(self, threshold: float) -> NDArray[np.bool_]:
        """Tell which patches reach the threshold, N: the rule of the column ``predicted``."""
        return np.asarray(self.scores["probability"].astype(np.float64) >= threshold)

    def to_table(self, slide_id: str, names: Sequence[str]) -> pa.Table:
        """Make a table of slide_id, x, y, extent_px and scores."""
        columns = {"slide_id": [slide_id] * len(self), "x": self.x_N, "y": self.y_N, "extent_px": self.extent_N}
        return pa.table(columns | {name: self.scores[name] for name in names})


def agreement(attention_N: Values, probability_N: Values) -> Values:
    """Measure how far attention and classifier agree on each patch: 1 - abs(rank of attention - rank of probability).

    Ranks are those among the slide's patches, from 0 (lowest) to 1 (highest), equal values sharing their mean rank. So
    agreement is 1 where a patch has the same place in both orders, and near 0 where the network looks hard at what it
    calls normal, or calls the target what it passes over. The values themselves are not compared, because attention has
    no scale of its own: pooling divides by its sum, and many networks keep it between 0.4 and 0.6. If both orders had
    nothing to do with each other, the mean would be 2/3.

    Source: the terms of Spearman's footrule (Spearman 1906), scaled to 0 to 1.
    """
    if len(attention_N) < 2:
        return np.ones(len(attention_N), np.float32)
    rank_2N = [(rankdata(value_N) - 1) / (len(value_N) - 1) for value_N in (attention_N, probability_N)]
    return np.asarray(1 - np.abs(rank_2N[0] - rank_2N[1]), np.float32)


def abnormal_classes(table: pa.Table, *, abnormal: str) -> list[str]:
    """List the names of the classes that are not normal.

    Args:
        table: A slide's patch predictions.
        abnormal: Name of the second class of two.
    """
    named = [name.removeprefix(_CLASS) for name in table.column_names if name.startswith(_CLASS)]
    return named[1:] or [abnormal]


def scored_patches(table: pa.Table, *, abnormal: str, target: str | None = None) -> ScoredPatches:
    """Read the scores of a slide's patch predictions.

    Args:
        table: Patch predictions: x, y, extent_px, ``STORED``, and a probability per class where there are more than
            two.
        abnormal: Name of the second class of two.
        target: The class whose probability counts, with its fused score and agreement; None: any that is not normal.

    Raises:
        ConfigError: If the class is unknown, or the normal one.
    """
    classes = abnormal_classes(table, abnormal=abnormal)
    if target is not None and target not in classes:
        raise ConfigError(f"target = {target!r}: expected a class of the bundle that is not normal: "
                          f"{', '.join(classes)}")  # fmt: skip
    scores = {name: _column(table, name) for name in STORED}
    class_N = np.zeros(table.num_rows, np.intp)
    if len(classes) > 1 and target is None:
        class_N = np.stack([_column(table, _CLASS + name) for name in classes]).argmax(axis=0)
    elif len(classes) > 1:
        scores["probability"] = _column(table, f"{_CLASS}{target}")
        scores["fused"] = scores["attention"] * scores["probability"]
    scores[AGREEMENT] = agreement(scores["attention"], scores["probability"])
    x_N, y_N, extent_N = (table[name].to_numpy().astype(np.int64) for name in ("x", "y", "extent_px"))
    return ScoredPatches(x_N, y_N, extent_N, scores, class_N, [target] if target else classes)


def _column(table: pa.Table, name: str) -> Values:
    return np.asarray(table[name].to_numpy(), np.float32)
