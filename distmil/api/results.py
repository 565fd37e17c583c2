"""The results of a prediction for a notebook, in the words and numbers of the job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from distmil.cohort.kinds import noun_of
from distmil.console import plain_table
from distmil.errors import ConfigError
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import SlideResult, from_csv
from distmil.evaluation.words import evaluation_of, metric_tables, slide_table
from distmil.inference.tables import INTERVALS, METRICS, RESULTS, predictions_folder
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store


@dataclass(frozen=True, repr=False)
class Results:
    """What ``predict``, ``evaluate`` or ``train`` found, as its job showed it; printed, it shows the same."""

    name: str
    slides: Sequence[SlideResult]
    """Every slide of the job: wrong ones first, then doubtful ones, then by falling probability, last dropped ones."""
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    """Metrics, 95 % intervals and counts by split, where labels are known."""

    @property
    def noun(self) -> str:
        """Name what the job was about: slide, or image where all are plain images."""
        return noun_of([result.slide_path for result in self.slides])

    def to_pandas(self) -> Any:
        """Make a data frame of the slides, in their order, with the columns of ``slides.csv``."""
        rows = []
        for result in self.slides:
            values = asdict(result)
            extra = values.pop("class_probabilities")
            rows.append(values | extra)
        return pa.Table.from_pylist(rows).to_pandas()

    def metrics(self, split: str = "val") -> Any:
        """Make a data frame of a split's metrics: value, low and high (95 % interval by patient), by name.

        Raises:
            ConfigError: If there are no metrics of that split.
        """
        if split not in self.evaluations:
            known = ", ".join(sorted(self.evaluations)) or "none; its slides have no labels"
            raise ConfigError(f"split = {split!r}: {self.name} has metrics of {known}")
        found = self.evaluations[split]
        rows = []
        for name, value in found.metrics.items():
            low, high = found.intervals.get(name) or (None, None)
            rows.append({"metric": name, "value": value, "low": low, "high": high})
        return pa.Table.from_pylist(rows).to_pandas().set_index("metric")

    def __repr__(self) -> str:
        tables = [
            table for split, found in self.evaluations.items() for table in metric_tables(split, found, self.noun)
        ]
        tables.append(slide_table(self.slides, self.noun))
        return "\n".join(
            plain_table(table.title, table.columns, table.rows) if table.rows else table.title for table in tables
        )


def open_results(name: str, *, root: str | Path | None = None) -> Results:
    """Open the results of a prediction.

    Args:
        name: As the job named it: the run of ``train``, or ``prediction.run``; the folder under ``predictions/``.
        root: The storage root; default: ``$DISTMIL_HOME``, else ``~/.distmil``.

    Raises:
        ConfigError: If there are none of that name.
        StorageError: If they cannot be read.
    """
    store = Store(resolve_root(None if root is None else str(root), key="root"))
    folder = predictions_folder(name)
    if not store.exists(f"{folder}/{RESULTS}"):
        raise ConfigError(
            f"name = {name!r}: there is no {store.path(f'{folder}/{RESULTS}')}; give the name of a finished prediction"
        )
    evaluations = {}
    if store.exists(f"{folder}/{INTERVALS}"):
        metrics, intervals = (json.loads(store.read(f"{folder}/{file}")) for file in (METRICS, INTERVALS))
        evaluations = {split: evaluation_of(metrics[split], intervals[split]) for split in metrics if metrics[split]}
    return Results(name, from_csv(store.read(f"{folder}/{RESULTS}")), evaluations)
