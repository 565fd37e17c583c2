"""Checks of the configuration and of the storage root."""

from typing import Any

from distmil.config.loading import load_config
from distmil.errors import DistmilError
from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store


def read_settings(path: str | None, overrides: list[str]) -> dict[str, Any]:
    """Read the configuration, and return the values that other checks need, or the reason under ``error``.

    ``needed`` has the level of each optional library that would be missed, by its distribution.
    """
    try:
        config = load_config(path, overrides)
        root = resolve_root(config.storage.root)
    except DistmilError as error:
        return {"error": str(error)}
    needed = {"optuna": FAILED} if config.search.algorithm == "optuna" else {}
    for scheme, library in (("s3://", "boto3"), ("gs://", "google-cloud-storage")):
        if config.tracking.uri != "none" and root.startswith(scheme):
            needed[library] = WARNING
    if config.tracking.system_metrics:
        needed["psutil"] = WARNING
    return {
        "error": "",
        "root": root,
        "access": config.storage.access,
        "uri": config.tracking.uri,
        "use_gpu": config.training.use_gpu,
        "needed": needed,
    }


def check_store(root: str, access: str) -> list[Finding]:
    """Make the storage root if it is absent, then write, sync and delete a file in it."""
    try:
        Store(root).check(access=access)
    except DistmilError as error:
        advice = "make the folder writable for this user, or set storage.root (or $DISTMIL_HOME) to another"
        return [Finding(FAILED, "storage", str(error), "" if "://" in root else advice)]
    return [Finding(OK, "storage", f"{root}: a file was written and deleted")]
