"""The record of a finished training in MLflow: metrics, bundle, configuration, results, and the model."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distmil.cohort import Cohort
from distmil.config.root import PRIVATE_KEYS
from distmil.evaluation.slide_results import SlideResult
from distmil.inference.bundle import Bundle
from distmil.inference.bundle_place import bundle_folder
from distmil.inference.tables import INTERVALS, predictions_folder
from distmil.pipeline.job import Job
from distmil.recording.data import data_of
from distmil.recording.description import command_of, describe_run, verdict_lines
from distmil.recording.shown import log_results
from distmil.tracking.tracker import Tracker
from distmil.tracking.training_run import DIGEST
from distmil.training.engine import History

logger = logging.getLogger(__name__)


def record_training(
    job: Job,
    tracker: Tracker,
    *,
    bundle: Bundle,
    history: History,
    cohort: Cohort,
    name: str | None,
    results: Sequence[SlideResult],
    metrics: Mapping[str, Any],
) -> None:
    """Record every epoch's metrics, final metrics, the bundle, the configuration, the results and the model.

    Args:
        job: The training job.
        tracker: Its run.
        bundle: The trained model.
        history: Metrics of every epoch; of folds, each has a run of its own.
        cohort: The manifest.
        name: Of the predictions of held-out slides, None if there are none.
        results: The held-out slides, those to look at first on top.
        metrics: Of them, by split.
    """
    step = max(0, len(history.rows) - 1)
    tracker.flush()  # files do not wait: whether MLflow answers is worth finding out now
    if num_lacked := tracker.sync(history.rows):
        logger.info("MLflow lacked the metrics of %d epoch(s); they are recorded now", num_lacked)
    for split, values in metrics.items():
        tracker.log_metrics(values, step=step, group=f"final/{split}")
    tracker.log_metrics({**bundle.slide_thresholds, "patch": bundle.patch_threshold}, step=step, group="threshold")
    tracker.set_tags({DIGEST: bundle.digest})
    intervals = job.store.read_json(f"{predictions_folder(name)}/{INTERVALS}") if name and metrics else {}
    folds = len(bundle.heads)
    extent = f"{folds} folds" if folds > 1 else f"{len(history.rows)} epochs"
    title = f"**Training** of the bundle `{bundle.run}`, {extent}"
    verdicts, command = verdict_lines(metrics, intervals), command_of("train", job.config)
    tracker.set_tags(describe_run(title, data_of(cohort, job.config), verdicts, command))
    with tempfile.TemporaryDirectory(prefix="distmil-") as folder:
        root = Path(folder)
        (root / "config.yaml").write_text(yaml.safe_dump(shareable(job), sort_keys=False), encoding="utf-8")
        tracker.log_artifact(root / "config.yaml")
        _record_bundle(job, tracker, bundle, root / "bundle")
        if name is not None:
            log_results(tracker, job.store, name, results, shows_slides=job.config.tracking.maps)
        _record_model(job, tracker, bundle, root / "model", step=step)


def _record_bundle(job: Job, tracker: Tracker, bundle: Bundle, folder: Path) -> None:
    folder.mkdir()
    source = bundle_folder(bundle.run)
    for name in job.store.names(source):
        (folder / name).write_bytes(job.store.read(f"{source}/{name}"))
    tracker.log_artifact(folder, "bundle")


def _record_model(job: Job, tracker: Tracker, bundle: Bundle, folder: Path, *, step: int) -> None:
    """Record the network as a model that plain MLflow loads, where torch can export it."""
    if not tracker.is_recording:
        return
    # MLflow and its PyTorch flavour take seconds to import, and not every training is recorded.
    from distmil.inference.mlflow_model import save_model  # noqa: PLC0415
    from distmil.tracking.models import log_model  # noqa: PLC0415

    try:
        save_model(folder, bundle)
    except Exception as error:  # noqa: BLE001 (torch.export fails in many ways, and the bundle is there)
        logger.warning(
            "the network could not be exported, so MLflow has the bundle but no model of its own: %s",
            f"{type(error).__name__}: {error}".splitlines()[0],
        )
        return
    options = job.config.tracking
    log_model(
        tracker, folder, digest=bundle.digest, step=step, registered=options.registered_model, alias=options.alias
    )


def shareable(job: Job) -> dict[str, Any]:
    """List the configuration without paths, as sections."""
    values: dict[str, Any] = {}
    for dotted, value in (dict.fromkeys(PRIVATE_KEYS) | job.config.shareable()).items():
        section, _, key = dotted.partition(".")
        values.setdefault(section, {})[key] = value
    return values
