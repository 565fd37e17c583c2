"""The settings of a job whose features other tools made, completed by what their files say before the job begins."""

from dataclasses import replace

from distmil.config.root import Config
from distmil.errors import ConfigError
from distmil.features.agreement import check_fits, read_headers, settle
from distmil.features.exporter import check_export
from distmil.features.finding import open_folder
from distmil.inference.bundle import Bundle
from distmil.pipeline.job import Job

_LEARNING = {"import_features", "export_features", "train", "tune"}
_PIXELS = "the features were made without their pixels in the store"


def settle_features(job: Job, name: str) -> Job:
    """Complete the configuration of a job that uses features; other jobs stay as they are.

    Raises:
        ConfigError: If the settings contradict each other or the files, or the folder cannot be used.
    """
    config = job.config
    check_settings(config, name)
    if name == "export_features":
        check_export(config.features)
    if config.features.folder is None or name not in _LEARNING:
        return job
    slides = job.opened[-1].cohort.slides
    headers = read_headers(slides, open_folder(config.features), config.features)
    return replace(job, config=settle(config, headers))


def check_settings(config: Config, name: str) -> None:
    """Refuse settings that need pixels, or that features decide. Raises: ConfigError."""
    folder, explicit = config.features.folder, config.explicit()
    if folder is None:
        if name == "import_features":
            raise ConfigError("features.folder: set it to the folder of the features, a file a slide")
        if explicit.get("tiling.strategy") == "features":
            raise ConfigError("tiling.strategy = 'features' belongs to features.folder, and is set by it; leave it out")
        return
    if name in {"tile", "embed"}:
        raise ConfigError(
            f"features.folder is set: the embeddings are there already, and {name} has nothing to do; run "
            "import_features, or train at once"
        )
    if name == "pretrain":
        raise ConfigError(f"features.folder is set: {_PIXELS}, and pretrain learns from pixels; leave it out")
    if config.encoder.trainable:
        raise ConfigError(f"encoder.trainable: {_PIXELS}, so that no encoder can be trained; leave features.folder out")
    if config.encoder.views:
        raise ConfigError(f"encoder.views = {config.encoder.views}: {_PIXELS}, so that stains cannot be shifted; use 0")
    decided = (
        "encoder.name",
        "encoder.weights",
        "tiling.strategy",
        "tiling.patch_px",
        "tiling.mpp",
        "tiling.stride_px",
    )
    if given := [key for key in decided if key in explicit]:
        raise ConfigError(
            "\n".join(f"{key} = {explicit[key]!r}: features.folder decides it; leave it out" for key in given)
        )


def check_bundle(job: Job, bundle: Bundle) -> None:
    """Refuse a bundle and features that are not of one kind.

    Args:
        job: Its configuration holds the bundle's settings.
        bundle: The model.

    Raises:
        ConfigError: If one of them has features and the other patches, or the encoders differ.
    """
    own, folder = bundle.config, job.config.features.folder
    if own.tiling.strategy == "features" and folder is None:
        raise ConfigError(
            f"the bundle {bundle.run} scores features that another tool made by {own.features.encoder}: set "
            "features.folder to those of the slides"
        )
    if folder is not None and own.tiling.strategy != "features":
        raise ConfigError(
            f"features.folder = {folder!r}: the bundle {bundle.run} makes its own patches and embeddings by "
            f"{own.encoder.name}; leave it out"
        )
    if folder is not None and job.opened:
        headers = read_headers(job.opened[-1].cohort.slides, open_folder(job.config.features), job.config.features)
        check_fits(job.config, headers, run=bundle.run)
