"""The record of an evaluation or a prediction in MLflow: a run of its own, under the bundle's training run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from distmil.cohort import Cohort, Slide
from distmil.config.root import Config
from distmil.evaluation.slide_results import WRONG, SlideResult
from distmil.inference.bundle import Bundle
from distmil.inference.tables import INTERVALS, predictions_folder
from distmil.recording.data import data_of
from distmil.recording.description import command_of, describe_run, job_tags, verdict_lines
from distmil.recording.shown import log_results
from distmil.storage.store import Store
from distmil.tracking.dataset import RunData
from distmil.tracking.provenance import code_tags
from distmil.tracking.server import closing_run, resolve_uri
from distmil.tracking.tracker import Tracker
from distmil.tracking.training_run import DIGEST, link_training

SECTIONS = ("cohort", "tiling", "labels", "encoder", "prediction")
"""Sections of the configuration that a prediction depends on."""
_CONTEXTS = {"evaluate": "evaluation", "predict": "prediction"}


@dataclass
class PredictionRecord:
    """An evaluation's or prediction's run in MLflow. The same command goes on with the same run."""

    job: Literal["evaluate", "predict"]
    asked: Config
    """The configuration as the user gave it."""
    store: Store
    name: str
    """Of the predictions."""
    tracker: Tracker
    noun: str = "slide"
    title: str = ""
    command: str = ""
    data: RunData | None = None

    @classmethod
    def of(cls, job: Literal["evaluate", "predict"], asked: Config, store: Store, name: str) -> "PredictionRecord":
        """Make the record of a job, which opens nothing yet."""
        tracker = Tracker(resolve_uri(asked.tracking.uri, store.root), asked.tracking.experiment)
        return cls(job, asked, store, name, tracker)

    @contextmanager
    def opened(self, config: Config, bundle: Bundle, cohort: Cohort, slides: Sequence[Slide]) -> Iterator[None]:
        """Keep the run open during the block, and close it as the block ends.

        Args:
            config: The job's, with the bundle's settings.
            bundle: The model.
            cohort: The manifest.
            slides: The slides of the job.
        """
        with closing_run(self.tracker.finish):
            if self.tracker.uri is not None:
                self._open(config, bundle, cohort, slides)
            yield
            self._note()

    def complete(self, results: Sequence[SlideResult], metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Record metrics, the description, and what may be shown of slides.

        Args:
            results: The slides, those to look at first on top.
            metrics: By split; empty for a prediction.
        """
        if self.data is None:
            return
        for split, values in metrics.items():
            self.tracker.log_metrics(values, step=0, group=f"final/{split}")
        self.tracker.log_metrics(_counts(results), step=0, group="slides")
        file = f"{predictions_folder(self.name)}/{INTERVALS}"
        verdicts = verdict_lines(metrics, self.store.read_json(file)) if metrics else []
        self._describe([*verdicts, _in_words(results, self.noun)])
        log_results(self.tracker, self.store, self.name, results, shows_slides=self.asked.tracking.maps)

    def _open(self, config: Config, bundle: Bundle, cohort: Cohort, slides: Sequence[Slide]) -> None:
        self.noun, what = cohort.noun, _CONTEXTS[self.job].capitalize()
        self.title = f"**{what}** of {len(slides)} {self.noun}s with the bundle `{bundle.run}`"
        self.command = command_of(self.job, self.asked, model=bundle.run)
        self.data = data_of(cohort, config)
        # The folder of predictions may have the name of the bundle's folder, which stays here.
        shown = self.asked.prediction.run or f"{bundle.run}-{self.name.rpartition('-')[2]}"
        self.tracker.start(
            f"{self.job} {shown}", artifacts=self.store.path("mlflow-artifacts"), resume=self._noted(),
            tags={**job_tags(self.job), **code_tags(), DIGEST: bundle.digest, "distmil.predictions": shown},
        )  # fmt: skip
        self._note()
        values = {key: value for key, value in config.shareable().items() if key.partition(".")[0] in SECTIONS}
        self.tracker.log_values(values | {"data.fingerprint": cohort.fingerprint, "bundle.run": bundle.run})
        self.tracker.log_data(self.data, context=_CONTEXTS[self.job])
        self._describe([])
        link_training(self.tracker, bundle.digest)

    def _describe(self, verdicts: Sequence[str]) -> None:
        assert self.data is not None
        self.tracker.set_tags(describe_run(self.title, self.data, verdicts, self.command))

    @property
    def _file(self) -> str:
        return f"{predictions_folder(self.name)}/mlflow-{self.job}.json"

    def _noted(self) -> str | None:
        """Read the id of the run that an earlier call opened; a damaged note costs the record's continuity."""
        found = self.store.or_none(lambda: self.store.read_checked(self._file, owner=self.name))
        return None if found is None else str(found)

    def _note(self) -> None:
        if self.tracker.run_id is not None:
            self.store.write_checked(self._file, self.tracker.run_id, owner=self.name)


def _counts(results: Sequence[SlideResult]) -> dict[str, float | None]:
    """Count slides; ``wrong`` is None where no label is known."""
    predicted = [result for result in results if result.probability is not None]
    verdicts = [result.verdict for result in predicted if result.verdict]
    return {
        "predicted": len(predicted),
        "dropped": len(results) - len(predicted),
        "doubtful": sum(bool(result.reason) for result in predicted),
        "wrong": verdicts.count(WRONG) if verdicts else None,
    }


def _in_words(results: Sequence[SlideResult], noun: str) -> str:
    """Word how many slides were predicted as what, and how many of them need a look."""
    counts, classes = _counts(results), Counter(result.predicted for result in results if result.predicted)
    text = f"{counts['predicted']} of {len(results)} {noun}s are predicted"
    text += f" ({', '.join(f'{count} {name}' for name, count in sorted(classes.items()))})" * bool(classes)
    found = [f"{counts[name]} {word}" for name, word in (("wrong", "wrong"), ("doubtful", "in doubt")) if counts[name]]
    return text + f"; {', '.join(found)}" * bool(found)
