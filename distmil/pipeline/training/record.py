"""The record of a finished training in MLflow: metrics, bundle, configuration, some maps, and the model."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import yaml

from distmil.config.root import PRIVATE_KEYS
from distmil.inference.bundle import Bundle, bundle_folder
from distmil.inference.mlflow_model import save_model
from distmil.pipeline.job import Job
from distmil.pipeline.predict import Predictions
from distmil.tracking.models import log_model
from distmil.tracking.tracker import Tracker
from distmil.training.engine import History

logger = logging.getLogger(__name__)

MAPS_TRACKED = 8


def record_training(
    job: Job,
    tracker: Tracker,
    *,
    bundle: Bundle,
    history: History,
    predictions: Predictions | None,
    metrics: dict[str, Any],
) -> None:
    """Record every epoch's metrics, final metrics, the bundle, the configuration, some maps and the model."""
    step = len(history.rows) - 1
    tracker.flush()  # files do not wait: whether MLflow answers is worth finding out now
    if num_lacked := tracker.sync(history.rows):
        logger.info("MLflow lacked the metrics of %d epoch(s); they are recorded now", num_lacked)
    for split, values in metrics.items():
        tracker.log_metrics({f"final_{split}_{name}": value for name, value in values.items()}, step=step)
    thresholds = {**bundle.slide_thresholds, "patch": bundle.patch_threshold}
    tracker.log_metrics({f"threshold_{name}": value for name, value in thresholds.items()}, step=step)
    tracker.set_tags({"distmil.bundle_digest": bundle.digest})
    with tempfile.TemporaryDirectory(prefix="distmil-") as folder:
        root = Path(folder)
        (root / "config.yaml").write_text(yaml.safe_dump(_shareable(job), sort_keys=False), encoding="utf-8")
        tracker.log_artifact(root / "config.yaml")
        copies = {"bundle": bundle_folder(bundle.run)}
        if predictions is not None and job.config.prediction.maps and job.config.tracking.maps:
            copies["maps"] = f"{predictions.folder}/maps"
        shown = set(list(predictions.rows)[:MAPS_TRACKED]) if predictions else set()
        for kind, source in copies.items():
            (root / kind).mkdir()
            for name in job.store.names(source):
                if kind == "bundle" or name.rpartition("_")[0] in shown:
                    (root / kind / name).write_bytes(job.store.read(f"{source}/{name}"))
            tracker.log_artifact(root / kind, kind)
        _record_model(job, tracker, bundle, root / "model", step=step)


def _record_model(job: Job, tracker: Tracker, bundle: Bundle, folder: Path, *, step: int) -> None:
    """Record the network as a model that plain MLflow loads, where torch can export it."""
    if not tracker.is_recording:
        return
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


def _shareable(job: Job) -> dict[str, Any]:
    """List the configuration without paths, as sections."""
    values = job.config.model_dump()
    for section, _, key in (dotted.partition(".") for dotted in PRIVATE_KEYS):
        values[section][key] = None
    values["encoder"]["weights"] = job.config.encoder.weights_name
    return values
