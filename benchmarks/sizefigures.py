"""Figures of slides of unlike sizes from their scores: the table, pairs of rows, lesions by size, and the drawing.

A run holds the scores of one network, slides x read-outs, by part: validation, slides, single, lesion_N.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks.inprocess import spread
from distmil.evaluation.metrics import auc
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import youden_threshold

Run = Mapping[str, NDArray[Any]]
Rows = Mapping[str, Sequence[Run]]
"""By row, one run for each seed."""

TITLES = ("AUC", "all sizes", "sensitivity", "specificity", "single patch found")
WEAK = "slide labels: L2 + L3"
DUAL, HARD = "dual, trained at 140 and 600", "dual, trained at 140 and 600, hard negatives"
QUARTER = "dual, a quarter annotated"
PAIRS = (
    (DUAL, WEAK),
    (HARD, WEAK),
    ("dual, trained at all sizes", WEAK),
    ("dual, trained at all sizes, hard negatives", WEAK),
    (HARD, DUAL),
    ("dual, trained at all sizes, hard negatives", "dual, trained at all sizes"),
    (QUARTER, DUAL),
    (f"{QUARTER}, hard negatives", HARD),
    (DUAL, "slide labels: like CLAM"),
    (DUAL, "patches only"),
)
"""Rows that are compared, the first less the second."""
REGIONS = READ_OUTS.index("regions")
NUM_DRAWS = 2000
DRAWN = {
    ("dual, trained at all sizes", "regions"): ("#000000", "-", "o"),
    (DUAL, "regions"): ("#0072B2", "-", "s"),
    (DUAL, "bag"): ("#56B4E9", "--", "s"),
    (WEAK, "regions"): ("#D55E00", "-", "^"),
    (WEAK, "bag"): ("#E69F00", "--", "^"),
    ("slide labels: like CLAM", "bag"): ("#009E73", ":", "D"),
    ("slide labels: max", "max"): ("#CC79A7", ":", "v"),
}
"""Lines of the figure: colour (Okabe and Ito 2008), style and marker."""


def table_lines(rows: Rows) -> list[str]:
    """Write the table's rows, one for each read-out, below two lines of titles."""
    lines = ["| row | read-out | seeds | " + " | ".join(TITLES) + " |", "|" + "---|" * (3 + len(TITLES))]
    for name, runs in rows.items():
        for i, read_out in enumerate(READ_OUTS):
            figures = [_figures(run, i) for run in runs]
            cells = [_cell([one[title] for one in figures]) for title in TITLES]
            lines.append(f"| {name} | {read_out} | {len(runs)} | " + " | ".join(cells) + " |")
    return lines


def _figures(run: Run, read_out: int) -> dict[str, list[float]]:
    """Compute a network's figures by title; lists are in the order of the sizes."""
    threshold = youden_threshold(run["label_validation"].tolist(), run["validation"][:, read_out])
    label, size, score = run["label"], run["size"], run["slides"][:, read_out]
    is_called = score >= (0.5 if threshold is None else threshold)
    found: dict[str, list[float]] = {"AUC": [], "sensitivity": [], "specificity": []}
    for here in (size == one for one in np.unique(size)):
        found["AUC"].append(auc(label[here], score[here]) or np.nan)
        found["sensitivity"].append(float(is_called[here & label].mean()))
        found["specificity"].append(float((~is_called[here & ~label]).mean()))
    found["all sizes"] = [auc(label, score) or np.nan]
    found["single patch found"] = [_found(run, run["single"][:, read_out], size.max(), read_out)]
    return found


def _found(run: Run, score: NDArray[np.float64], size: int, read_out: int) -> float:
    """Compute the share of positive slides that are found at 90 % specificity among slides of a size."""
    normal = run["slides"][(run["size"] == size) & ~run["label"], read_out]
    return float((score > np.quantile(normal, 0.9)).mean())


def _cell(values: Sequence[Sequence[float]]) -> str:
    """Word figures over seeds: one with its spread, or one for each size."""
    if len(values[0]) == 1:
        return spread([value for (value,) in values])
    mean_S, std_S = _mean_and_spread(values)
    return " / ".join(f"{value:.2f}" for value in mean_S) + f" (± {std_S.max():.2f} at most)"


def _mean_and_spread(value_RS: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute mean and standard deviation over runs, R, at each size, S."""
    values = np.array(value_RS)
    return values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))


def pair_lines(rows: Rows) -> list[str]:
    """Write the difference of rows by the read-out ``regions``, at each size and over all."""
    lines = []
    for one, other in PAIRS:
        if not (one in rows and other in rows):
            continue
        size = rows[one][0]["size"]
        parts = {f"{number:,}": size == number for number in np.unique(size)} | {"all": size > 0}
        if not lines:
            lines = ["| | seeds | " + " | ".join(parts) + " |", "|" + "---|" * (2 + len(parts))]
        seeds = min(len(rows[one]), len(rows[other]))
        cells = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*difference(rows[one][:seeds], rows[other][:seeds], here))
                 for here in parts.values()]  # fmt: skip
        lines.append(f"| {one} less {other} | {seeds} | " + " | ".join(cells) + " |")
    return lines


def difference(
    one: Sequence[Run],
    other: Sequence[Run],
    here: NDArray[np.bool_],
    *,
    read_out: int = REGIONS,
    draws: int = NUM_DRAWS,
) -> tuple[float, float, float]:
    """Compute the difference of two rows' AUC, mean over seeds, with its 95 % interval over slides.

    Both rows judge the same slides. Source: percentile bootstrap over slides; each class is drawn apart at each size.

    Args:
        one: Runs of a row, one for each seed.
        other: Runs of the other row, with the same seeds.
        here: Which slides count.
        read_out: The column of the scores.
        draws: How often slides are drawn.
    """
    label, size = one[0]["label"][here], one[0]["size"][here]
    win_PN = _wins(one, here, read_out) - _wins(other, here, read_out)
    generator = np.random.default_rng(0)

    def drawn(side: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Count how often each slide of a class is drawn."""
        parts = [np.flatnonzero(size[side] == number) for number in np.unique(size)]
        chosen = np.concatenate([generator.choice(part, len(part)) for part in parts])
        return np.bincount(chosen, minlength=int(side.sum()))

    found = [drawn(label) @ win_PN @ drawn(~label) / win_PN.size for _ in range(draws)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(win_PN.mean()), float(low), float(high)


def _wins(runs: Sequence[Run], here: NDArray[np.bool_], read_out: int) -> NDArray[np.float64]:
    """Compute in which share of the runs a positive slide, P, has a higher score than a negative one, N; ties half.

    The mean of all is the AUC.
    """
    shares = []
    for run in runs:
        score, label = run["slides"][here, read_out], run["label"][here]
        ahead = score[label][:, None] - score[~label]
        shares.append((ahead > 0) + 0.5 * (ahead == 0))
    return np.asarray(np.mean(shares, axis=0))


def lesion_lines(rows: Rows) -> list[str]:
    """Write AUC and the share found at 90 % specificity by the size of the lesion, of the read-outs bag and regions."""
    lines: list[str] = []
    for name, runs in rows.items():
        parts = sorted((part for part in runs[0] if part.startswith("lesion_")), key=lambda part: int(part[7:]))
        if not lines:
            titles = [f"lesion of {part[7:]}" for part in parts]
            lines = ["| row | read-out | seeds | " + " | ".join(titles) + " |", "|" + "---|" * (3 + len(parts))]
        for read_out in ("bag", "regions"):
            cells = [_lesion_cell(runs, part, READ_OUTS.index(read_out)) for part in parts]
            lines.append(f"| {name} | {read_out} | {len(runs)} | " + " | ".join(cells) + " |")
    return lines


def _lesion_cell(runs: Sequence[Run], part: str, read_out: int) -> str:
    aucs, shares = [], []
    for run in runs:
        score = run[part][:, read_out]
        normal = run["slides"][(run["size"] == LESION_SLIDE) & ~run["label"], read_out]
        label = np.repeat([True, False], [len(score), len(normal)])
        aucs.append(auc(label, np.concatenate([score, normal])) or np.nan)
        shares.append(_found(run, score, LESION_SLIDE, read_out))
    return f"{spread(aucs)}, {np.mean(shares):.2f} found"


LESION_SLIDE = 2400


def draw(rows: Rows, path: Path) -> None:
    """Draw AUC against the size of the slide, one line a method, with a band of one standard deviation over seeds."""
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for (name, read_out), (colour, style, marker) in DRAWN.items():
        runs = rows.get(name)
        if not runs:
            continue
        sizes = np.unique(runs[0]["size"])
        mean_S, std_S = _mean_and_spread([_figures(run, READ_OUTS.index(read_out))["AUC"] for run in runs])
        axis.plot(
            sizes,
            mean_S,
            color=colour,
            linestyle=style,
            marker=marker,
            label=f"{name}\n({read_out}, {len(runs)} seeds)",
        )
        axis.fill_between(sizes, mean_S - std_S, mean_S + std_S, color=colour, alpha=0.12, linewidth=0)
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("patches of the judged slide, lesions of 2 to 12 patches")
    axis.set_ylabel("slide AUC")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
