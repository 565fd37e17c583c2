"""95 % intervals of metrics by a bootstrap over patients: all slides of a patient are drawn together.

D draws, P patients, N cases (slides, or patches with known labels), B bins of scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from distmil.evaluation.metrics import PATCH_SCORES, SPECIFICITIES, LabelledScores, sensitivity_name
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import ROUNDING

DRAWS = 1000
MAX_BINS = 2048
"""Scores with more distinct values are ranked into this many bins, which moves an area by less than 1/1000."""

Interval = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """Draws of patients, with replacement."""

    patient_S: NDArray[np.intp]
    """Index of each slide's patient."""
    weight_PD: Floats
    """How often each patient is in each draw."""

    @classmethod
    def of(cls, patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> "Bootstrap":
        """Draw as many patients as there are.

        Args:
            patients: Of each slide.
            draws: Number of draws.
            seed: Of the draws.
        """
        names, index = np.unique(np.array(patients, object), return_inverse=True)
        rng = np.random.default_rng(seed)
        return cls(index, rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws).T.astype(float))

    def mean(self, slide_S: NDArray[np.intp], value_S: ArrayLike) -> Interval | None:
        """Bound the mean of a value of some slides, such as the share of right ones."""
        return self.ratio(value_S, np.ones(len(slide_S)), slide_S)

    def ratio(self, top_S: ArrayLike, below_S: ArrayLike, slide_S: NDArray[np.intp] | None = None) -> Interval | None:
        """Bound the sum of a value of some slides over the sum of another; default: of all slides."""
        patient_S = self.patient_S if slide_S is None else self.patient_S[slide_S]
        top_D, below_D = (self.sums(values, patient_S) for values in (top_S, below_S))
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.bounds(top_D / below_D)

    def balanced(self, is_positive_S: NDArray[np.bool_], is_right_S: NDArray[np.bool_]) -> Interval | None:
        """Bound the mean of two shares of right calls: among positive slides, and among negative ones."""
        return self.bounds(np.mean(self.right_shares(is_positive_S, is_right_S), axis=0))

    def right_shares(self, is_positive_S: NDArray[np.bool_], is_right_S: NDArray[np.bool_]) -> list[Floats]:
        """Compute sensitivity and specificity in each draw, each D; NaN where not defined."""
        shares = []
        for chosen_S in (is_positive_S, ~is_positive_S):
            right_D, all_D = (self.sums(values, self.patient_S) for values in (chosen_S & is_right_S, chosen_S))
            with np.errstate(invalid="ignore"):
                shares.append(right_D / all_D)
        return shares

    def ranking(
        self, slide_N: NDArray[np.intp], is_positive_N: ArrayLike, score_N: ArrayLike
    ) -> tuple[Interval | None, Interval | None]:
        """Bound the area under the ROC curve, and average precision.

        Args:
            slide_N: Index of each case's slide.
            is_positive_N: Whether it is positive.
            score_N: Its score. A NaN, where a case has none, leaves no interval.
        """
        if np.isnan(score_N).any():
            return None, None
        area_D, average_D = self.ranked(slide_N, is_positive_N, score_N)
        return self.bounds(area_D), self.bounds(average_D)

    def ranked(self, slide_N: NDArray[np.intp], is_positive_N: ArrayLike, score_N: ArrayLike) -> tuple[Floats, Floats]:
        """Compute the area under the ROC curve and average precision in each draw, D; NaN where not defined."""
        pos_BD, neg_BD = self._by_bin(slide_N, is_positive_N, score_N)
        with np.errstate(invalid="ignore", divide="ignore"):
            below_BD = neg_BD.cumsum(axis=0) - neg_BD / 2
            area_D = (pos_BD * below_BD).sum(axis=0) / (pos_BD.sum(axis=0) * neg_BD.sum(axis=0))
            found_BD, all_BD = pos_BD[::-1].cumsum(axis=0), (pos_BD + neg_BD)[::-1].cumsum(axis=0)
            precision_BD = np.where(all_BD > 0, found_BD / all_BD, 0)
            average_D = (pos_BD[::-1] * precision_BD).sum(axis=0) / pos_BD.sum(axis=0)
        return area_D, average_D

    def sensitivity_at(
        self, slide_N: NDArray[np.intp], is_positive_N: ArrayLike, score_N: ArrayLike, *, specificity: float
    ) -> Interval | None:
        """Bound the highest sensitivity of a threshold that has a specificity, chosen afresh in every draw."""
        pos_BD, neg_BD = (np.pad(counts, ((0, 1), (0, 0))) for counts in self._by_bin(slide_N, is_positive_N, score_N))
        num_neg_D = neg_BD.sum(axis=0)
        spared_BD = neg_BD.cumsum(axis=0) - neg_BD
        first_D = (spared_BD >= specificity * num_neg_D - ROUNDING).argmax(axis=0)
        found_BD = pos_BD[::-1].cumsum(axis=0)[::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            value_D = found_BD[first_D, np.arange(len(first_D))] / found_BD[0]
        return self.bounds(np.where(num_neg_D > 0, value_D, np.nan))

    def bounds(self, value_D: Floats) -> Interval | None:
        """Take the middle 95 % of the draws in which a metric is defined; None where there is one patient only."""
        defined = value_D[np.isfinite(value_D)]
        if not len(defined) or len(self.weight_PD) < 2:
            return None
        low, high = np.percentile(defined, [2.5, 97.5])
        return float(low), float(high)

    def _by_bin(self, slide_N: NDArray[np.intp], is_positive_N: ArrayLike, score_N: ArrayLike) -> tuple[Floats, Floats]:
        """Count the positive and the negative cases of each bin of scores in each draw, B x D."""
        is_positive = np.asarray(is_positive_N, bool)
        bin_N = _binned(np.asarray(score_N, np.float64))
        num_bins = int(bin_N.max(initial=0)) + 1
        pos_BD, neg_BD = (
            self.counts(slide_N[chosen], bin_N[chosen], num_bins) for chosen in (is_positive, ~is_positive)
        )
        return pos_BD, neg_BD

    def sums(self, value_S: ArrayLike, patient_S: NDArray[np.intp]) -> Floats:
        """Add up a value of slides, whose patients are given, in each draw, D."""
        weights = np.asarray(value_S, float)
        return np.asarray(np.bincount(patient_S, weights, minlength=len(self.weight_PD)) @ self.weight_PD)

    def counts(self, slide_N: NDArray[np.intp], bin_N: NDArray[np.intp], num_bins: int) -> Floats:
        """Count the cases of each bin in each draw, B x D."""
        shape = (num_bins, len(self.weight_PD))
        return np.asarray(csr_matrix((np.ones(len(bin_N)), (bin_N, self.patient_S[slide_N])), shape) @ self.weight_PD)


def intervals_of(
    rows: Sequence[LabelledScores], patients: Sequence[str], *, slide_score: str, threshold: float, draws: int = DRAWS
) -> dict[str, Interval | None]:
    """Bound the metrics of slides and their patches.

    Args:
        rows: The slides.
        patients: Their patients.
        slide_score: The read-out that counts.
        threshold: Of that read-out.
        draws: Number of draws.

    Returns:
        The 2.5th and 97.5th percentile of each metric of ``summarise`` and ``at_threshold`` but the loss; None where
        fewer than two patients, or one class, leave nothing to draw.
    """
    if not rows:
        return {}
    bootstrap = Bootstrap.of(patients, draws=draws)
    slide_S = np.arange(len(rows))
    label_S = np.array([row.label for row in rows])
    is_positive = label_S > 0
    read_out = {name: np.array([row.read_outs[i] for row in rows]) for i, name in enumerate(READ_OUTS)}
    is_called = read_out[slide_score] >= threshold
    ranked = {name: bootstrap.ranking(slide_S, is_positive, score_S) for name, score_S in read_out.items()}
    found = {
        "slide_auc": ranked[slide_score][0],
        "slide_ap": ranked[slide_score][1],
        "slide_accuracy": bootstrap.mean(slide_S, is_called == is_positive),
        "slide_sensitivity": bootstrap.mean(slide_S[is_positive], is_called[is_positive]),
        "slide_specificity": bootstrap.mean(slide_S[~is_positive], ~is_called[~is_positive]),
        "slide_balanced_accuracy": bootstrap.balanced(is_positive, is_called == is_positive),
    }
    for share in SPECIFICITIES:
        found[sensitivity_name(share)] = bootstrap.sensitivity_at(
            slide_S, is_positive, read_out[slide_score], specificity=share
        )
    found |= {f"slide_auc_{name}": area for name, (area, _) in ranked.items()}
    if len(rows[0].bag_C) > 2:
        found["slide_class_accuracy"] = bootstrap.mean(slide_S, [row.bag_C.argmax() == row.label for row in rows])
    slide_N = np.repeat(slide_S, [len(row.is_target_N) for row in rows])
    is_target_N = np.concatenate([row.is_target_N for row in rows])
    for i, name in enumerate(PATCH_SCORES):
        score_N = np.concatenate([row.scores_N[i] for row in rows])
        found[f"patch_auc_{name}"], found[f"patch_ap_{name}"] = bootstrap.ranking(slide_N, is_target_N, score_N)
    return found


def _binned(score_N: Floats) -> NDArray[np.intp]:
    """Rank scores into bins, equal ones into one."""
    distinct, index_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    if len(distinct) <= MAX_BINS:
        return index_N
    return np.asarray(((count.cumsum() - 1) * MAX_BINS // count.sum())[index_N])
