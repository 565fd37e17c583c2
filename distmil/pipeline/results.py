"""A prediction's results for people: metrics with their intervals, and the slides to look at first."""

from collections.abc import Mapping, Sequence

from distmil.cohort import Cohort, Slide
from distmil.evaluation.metrics import PATCH_SCORES
from distmil.evaluation.predictions import Evaluation
from distmil.evaluation.slide_results import WRONG, SlideResult, slide_results, to_csv
from distmil.inference.scoring import READ_OUTS
from distmil.inference.tables import RESULTS, Row
from distmil.pipeline.job import Job

MAX_SHOWN = 20
NOT_DEFINED = "not defined"

_SLIDES = {
    "slide_auc": "AUC",
    "slide_ap": "average precision",
    "slide_accuracy": "accuracy",
    "slide_class_accuracy": "accuracy by class",
    "slide_sensitivity": "sensitivity",
    "slide_specificity": "specificity",
    "slide_loss": "cross entropy (bag)",
}


def write_results(
    job: Job, folder: str, rows: Mapping[str, Row], slides: Sequence[Slide], cohort: Cohort, *, threshold: float
) -> str:
    """Write ``slides.csv`` with every slide of the job, show those to look at, and return the file.

    Args:
        job: Its outcomes say how the slides ended.
        folder: Of the predictions, in the store.
        rows: Slide predictions by slide id.
        slides: All slides of the job.
        cohort: For the class names.
        threshold: Of the read-out that counts.

    Raises:
        StorageError: If the store cannot be written.
    """
    results = slide_results(
        slides,
        rows,
        classes=cohort.classes,
        threshold=threshold,
        statuses=job.outcomes.statuses,
        doubts=job.outcomes.doubts,
    )
    name = f"{folder}/{RESULTS}"
    job.store.write(name, to_csv(results))
    _show_slides(job, results)
    return job.store.path(name)


def _show_slides(job: Job, results: Sequence[SlideResult]) -> None:
    """Show the wrong and doubtful slides; where nothing is known to compare with, all by falling probability."""
    scored = [result for result in results if result.probability is not None]
    judged = [result for result in scored if result.verdict]
    wrong = [result for result in scored if result.verdict == WRONG]
    doubtful = [result for result in scored if result.reason and result.verdict != WRONG]
    unlabelled = [result for result in scored if not result.verdict and not result.reason]
    noun = job.outcomes.noun
    title = f"{len(wrong)} of {len(judged)} {noun}s are predicted wrong" if judged else f"{len(scored)} {noun}s"
    shown = [*wrong, *doubtful, *unlabelled]
    if not shown:
        job.console.note(title)
        return
    rows = [
        (result.slide_id, result.split, result.label, result.predicted, f"{result.probability:.2f}", result.reason)
        for result in shown[:MAX_SHOWN]
    ]
    title += f", {len(doubtful)} in doubt" * bool(doubtful) + f" (threshold {scored[0].threshold:.2f})"
    job.console.table(title, (noun, "split", "label", "predicted", "probability", "doubt"), rows)
    if len(shown) > MAX_SHOWN:
        job.console.note(f"... and {len(shown) - MAX_SHOWN} more in {RESULTS}")


def show_metrics(job: Job, split: str, evaluation: Evaluation) -> None:
    """Show the metrics of a split: slides, then patches by score, each with its 95 % interval by patient."""
    counts, metrics, noun = evaluation.counts, evaluation.metrics, job.outcomes.noun
    if not counts:
        job.console.note(f"no metrics on {split}: none of its {noun}s has a label and a prediction")
        return
    title = (
        f"metrics on {split}: {counts['slides']} {noun}s of {counts['patients']} patients, {counts['positive_slides']} "
        "of them abnormal; 95 % intervals by patient"
    )
    names = [name for name in _SLIDES if name in metrics]
    rows = [(_SLIDES[name], *_value(evaluation, name)) for name in names]
    rows += [(f"AUC of {name}", *_value(evaluation, f"slide_auc_{name}")) for name in READ_OUTS]
    job.console.table(title, (f"{noun}s", "value", "interval"), rows)
    if counts["patches"]:
        title = f"{counts['patches']:,} patches with known labels, {counts['positive_patches']:,} of them abnormal"
        patches = [
            (name, *_value(evaluation, f"patch_auc_{name}"), *_value(evaluation, f"patch_ap_{name}"))
            for name in PATCH_SCORES
        ]
        job.console.table(title, ("patches", "AUC", "interval", "average precision", "interval"), patches)


def _value(evaluation: Evaluation, name: str) -> tuple[str, str]:
    """Word a metric and its interval, two digits each."""
    value, interval = evaluation.metrics[name], evaluation.intervals.get(name)
    return (
        NOT_DEFINED if value is None else f"{value:.2f}",
        "" if value is None or interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
    )
