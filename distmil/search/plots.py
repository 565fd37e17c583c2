"""Pictures of a search: what was tried and how well it did, parameter by parameter, and the comparison at its end."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distmil.search.comparison import Spread
from distmil.search.space import Domain, Values
from distmil.search.trial import Trial

_COLUMNS = 3
_STOPPED = "0.75"
_MAP = "viridis"
_DOTS = (("stopped", "none", "0.6", "ended early"), ("finished", "tab:blue", "tab:blue", "to the end"))
"""Of trials by status: face, edge, and words."""


def parallel_coordinates(trials: Sequence[Trial], space: Mapping[str, Domain], *, metric: str, winner: Values) -> bytes:
    """Draw a line for each trial over its values, coloured by its score; ended trials are grey, the best one red.

    Returns:
        A PNG.
    """
    shown = [(trial.score, trial) for trial in trials if trial.score is not None]
    figure = Figure(figsize=(1.8 * (len(space) + 1) + 1.5, 4.6), layout="constrained")
    axis = figure.subplots()
    scores, done = [s for s, _ in shown], [s for s, trial in shown if trial.status == "finished"]
    norm = mpl.colors.Normalize(min(done, default=0), max(done, default=1) + 1e-9)
    colours = mpl.colormaps[_MAP]
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    for score, trial in sorted(
        shown, key=lambda pair: (pair[1].values == winner, pair[1].status == "finished", pair[0])
    ):
        heights = [_place(domain, trial.values[key]) for key, domain in space.items()]
        heights.append((score - low) / ((high - low) or 1))
        is_done, is_best = trial.status == "finished", trial.values == winner
        colour = "tab:red" if is_best else colours(norm(score)) if is_done else _STOPPED
        width = 3.0 if is_best else 1.6 if is_done else 0.8
        axis.plot(range(len(heights)), heights, color=colour, linewidth=width)
    for i, (key, domain) in enumerate(space.items()):
        axis.vlines(i, 0, 1, color="0.3", linewidth=0.8)
        for place, text in _ticks(domain):
            axis.text(i + 0.03, place, text, fontsize=7, va="center", color="0.2",
                      bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.5})  # fmt: skip
        axis.text(i, 1.07, key.replace(".", ".\n"), ha="center", fontsize=8)
    axis.vlines(len(space), 0, 1, color="0.3", linewidth=0.8)
    for share in (0.0, 0.5, 1.0):
        axis.text(len(space) + 0.03, share, f"{low + share * (high - low):.3f}", fontsize=7, va="center")
    axis.text(len(space), 1.07, _words(metric), ha="center", fontsize=8)
    axis.set(xlim=(-0.1, len(space) + 0.35), ylim=(-0.04, 1.2))
    axis.set_axis_off()
    if done:
        figure.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=axis, label=f"{_words(metric)}, trained to the end",
                        shrink=0.8)  # fmt: skip
    figure.suptitle("Trials: red is the best, grey were ended early", fontsize=10)
    return _png(figure)


def parameter_plots(trials: Sequence[Trial], space: Mapping[str, Domain], *, metric: str, default: Values) -> bytes:
    """Draw the score of each trial over each parameter; ended trials are hollow, the default is a dashed line.

    Returns:
        A PNG.
    """
    rows = -(-len(space) // _COLUMNS)
    figure = Figure(figsize=(4.0 * min(len(space), _COLUMNS), 3.1 * rows), layout="constrained")
    axes: NDArray[np.object_] = np.atleast_1d(figure.subplots(rows, min(len(space), _COLUMNS), squeeze=False)).ravel()
    for axis in axes[len(space) :]:
        axis.set_axis_off()
    for axis, (key, domain) in zip(axes, space.items(), strict=False):
        for status, face, edge, label in _DOTS:
            chosen = [trial for trial in trials if trial.status == status and trial.score is not None]
            places = [_place(domain, trial.values[key]) for trial in chosen]
            scores = [trial.score for trial in chosen]
            axis.scatter(places, scores, s=26, facecolors=face, edgecolors=edge, label=label)
        if default[key] in domain:
            place = _place(domain, default[key])
            axis.axvline(place, color="tab:orange", linestyle="--", linewidth=1.8, label="default")
        axis.set_xticks(*zip(*_ticks(domain), strict=True))
        axis.set_xlim(-0.07, 1.07)
        axis.set_xlabel(key)
        axis.set_ylabel(_words(metric))
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=7)
    return _png(figure)


def comparison_plot(spreads: Mapping[str, Spread], *, metric: str) -> bytes:
    """Draw the scores of every setting over its seeds, seeds joined, with means.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(6.4, 0.55 * len(spreads) + 1.4), layout="constrained")
    axis = figure.subplots()
    names = list(spreads)[::-1]
    for y, name in enumerate(names):
        spread = spreads[name]
        axis.scatter(spread.values, [y] * len(spread.values), s=22, color="tab:blue", alpha=0.7, zorder=3)
        axis.plot([spread.mean] * 2, [y - 0.28, y + 0.28], color="tab:red", linewidth=2.2, zorder=4)
    axis.axvline(spreads["default"].mean, color="tab:orange", linestyle="--", linewidth=1.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel(f"{_words(metric)}: a dot for each seed,\nthe mean in red, the default's mean dashed")
    axis.grid(axis="x", alpha=0.25)
    return _png(figure)


def _place(domain: Domain, value: object) -> float:
    """Place a value between 0 and 1 on its axis."""
    if domain.kind == "choice":
        return domain.values.index(value) / max(1, len(domain.values) - 1) if value in domain else 0.5
    low, high = (_scaled(domain, v) for v in domain.values)
    return (_scaled(domain, value) - low) / (high - low)


def _scaled(domain: Domain, value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    return float(np.log(number)) if domain.kind == "loguniform" else number


def _ticks(domain: Domain) -> list[tuple[float, str]]:
    if domain.kind == "choice":
        return [(_place(domain, value), str(value)) for value in domain.values]
    low, high = domain.values
    middle = float(np.sqrt(low * high)) if domain.kind == "loguniform" else (low + high) / 2
    return [(_place(domain, value), f"{value:.3g}") for value in (low, middle, high)]


def _words(metric: str) -> str:
    return (
        "less slide loss" if metric == "loss" else metric.replace("_", " ").replace("auc", "AUC").replace(" ap", " AP")
    )


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()
