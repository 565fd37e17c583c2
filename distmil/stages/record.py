"""What a finished training leaves in MLflow: final metrics, the bundle, the configuration, some maps."""

import tempfile
from pathlib import Path
from typing import Any

import yaml

from distmil import __version__
from distmil.bundles import bundle_folder
from distmil.stages.predict import Predictions
from distmil.stages.runtime import Job
from distmil.tracking import Tracker

MAPS_TRACKED = 8


def record_training(
    job: Job,
    tracker: Tracker,
    *,
    run: str,
    digest: str,
    step: int,
    predictions: Predictions | None,
    metrics: dict[str, Any],
) -> None:
    """Record final metrics, the bundle, the configuration and some maps."""
    for split, values in metrics.items():
        tracker.log_metrics({f"final_{split}_{name}": value for name, value in values.items()}, step=step)
    tracker.set_tags({"distmil.version": __version__, "distmil.bundle_digest": digest})
    with tempfile.TemporaryDirectory(prefix="distmil-") as folder:
        root = Path(folder)
        (root / "config.yaml").write_text(yaml.safe_dump(_shareable(job), sort_keys=False), encoding="utf-8")
        tracker.log_artifact(root / "config.yaml")
        copies = {"bundle": bundle_folder(run)}
        if predictions is not None and job.config.prediction.maps:
            copies["maps"] = f"{predictions.folder}/maps"
        shown = set(list(predictions.rows)[:MAPS_TRACKED]) if predictions else set()
        for kind, source in copies.items():
            (root / kind).mkdir()
            for name in job.store.names(source):
                if kind == "bundle" or name.rpartition("_")[0] in shown:
                    (root / kind / name).write_bytes(job.store.read(f"{source}/{name}"))
            tracker.log_artifact(root / kind, kind)


def _shareable(job: Job) -> dict[str, Any]:
    """Return the configuration without paths."""
    values = job.config.model_dump()
    for section, key in (("cohort", "manifest"), ("storage", "root"), ("prediction", "model"), ("tracking", "uri")):
        values[section][key] = None
    if values["encoder"]["weights"] != "none":
        values["encoder"]["weights"] = Path(values["encoder"]["weights"]).name
    return values
