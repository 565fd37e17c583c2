"""The settings that a run's name stands for, compared before anything heavy is imported."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distmil.config.data import EncoderConfig
from distmil.config.jobs import SearchConfig
from distmil.config.loading import per_job_keys
from distmil.config.root import Config
from distmil.errors import ConfigError, StorageError
from distmil.inference.thresholds import YOUDEN
from distmil.storage.store import Store
from distmil.training.run_files import checkpoint_folder, run_file, search_folder

RUN_SECTIONS = {"train": "training", "tune": "search", "pretrain": "pretraining"}
"""The section whose key ``run`` names the run of a job."""
PRETRAINING = "pretrain-"
"""What the names of pre-trainings begin with in the store."""


def run_id(job: str, name: str | None) -> str | None:
    """Name a run in the store; pre-trainings have names of their own, so that a training may be called alike."""
    return f"{PRETRAINING}{name}" if job == "pretrain" and name else name


_LATER = {
    "training.threshold_aim": YOUDEN,
    "training.folds": 0,
    "bags.hard_negatives": False,
    "labels.preset": None,
    "labels.scale": None,
    "labels.affine": None,
}
"""Settings that count where they are not the default, which earlier versions did not have."""


def settings_of(config: Config, classes: Sequence[str]) -> dict[str, Any]:
    """List every setting but the encoder's weights that a training depends on, dotted."""
    per_job = per_job_keys()
    settings = {
        **{f"{section}.{key}": value for section in ("labels", "bags", "model", "losses")
           for key, value in getattr(config, section).model_dump().items() if f"{section}.{key}" not in per_job},
        **{f"training.{key}": value for key, value in config.training.identity().items()},
        "encoder.trainable": config.encoder.trainable,
        "encoder.views": config.encoder.views,
        **(_fine_tuning(config.encoder) if config.encoder.trainable else {}),
        **{key: config.flat()[key] for key in _LATER},
        "tiling": config.tiling.identity(),
        "cohort.classes": list(classes),
    }  # fmt: skip
    return {key: value for key, value in settings.items() if key not in _LATER or value != _LATER[key]}


def _fine_tuning(encoder: EncoderConfig) -> dict[str, Any]:
    """List the settings of a trainable encoder that are not the defaults, which earlier versions did not have."""
    keys = ("trained_blocks", "lora_rank", "layer_decay", *(("stain_shift",) if encoder.views else ()))
    default = EncoderConfig()
    return {f"encoder.{key}": getattr(encoder, key) for key in keys if getattr(encoder, key) != getattr(default, key)}


def pretraining_settings(config: Config) -> dict[str, Any]:
    """List every setting but the encoder's weights that a pre-training depends on, dotted."""
    settings, per_job = config.pretraining.identity(), per_job_keys()
    of_part = {"last": ("trained_blocks",), "lora": ("lora_rank",)}.get(config.pretraining.trained, ())
    return {
        **{f"pretraining.{key}": value for key, value in settings.items()},
        **{f"encoder.{key}": getattr(config.encoder, key) for key in (*of_part, "layer_decay")},
        **{
            f"labels.{key}": value
            for key, value in config.labels.model_dump().items()
            if f"labels.{key}" not in per_job and key != "form"
        },
        "tiling": config.tiling.identity(),
        "cohort.classes": list(config.cohort.classes),
    }


def search_settings(search: SearchConfig) -> dict[str, Any]:
    """List the settings of ``search`` that a search depends on."""
    keys = ("space", "algorithm", "metric", "stopping", "grace_epochs", "reduction", "folds")
    return {f"search.{key}": getattr(search, key) for key in keys}


def changes(settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Word each setting that differs from an earlier run's, which was read from JSON."""
    later = {key: default for key, default in _LATER.items() if key in settings or key in earlier}
    settings, earlier = ({**later, **values} for values in (settings, earlier))
    pairs = [(key, earlier.get(key), json.loads(json.dumps(value))) for key, value in settings.items()]
    return [f"{key}: {then!r} then, {now!r} now" for key, then, now in pairs if then != now]


def refuse_changes(changed: Sequence[str], *, key: str, run: str, places: Sequence[str]) -> None:
    """Refuse to go on with a run under other settings.

    Args:
        changed: What differs; nothing is refused if it is empty.
        key: The key with the run's name.
        run: The name.
        places: Folders that hold the run.

    Raises:
        ConfigError: If anything differs.
    """
    if changed:
        raise ConfigError(
            f"{key} = {run!r} was started with something else; choose another name, or delete "
            f"{' and '.join(places)}\n  " + "\n  ".join(changed)
        )


def check_claim(config: Config, classes: Sequence[str], store: Store, *, job: str) -> None:
    """Compare a job's settings with those of an earlier run of its name, but for the encoder's weights.

    A claim that is damaged or gone is left to the job itself, which explains it.

    Raises:
        ConfigError: If the earlier run had other settings.
    """
    section = RUN_SECTIONS[job]
    run = run_id(job, getattr(config, section).run)
    if run is None:
        return
    try:
        earlier = store.read_checked(run_file(run, "run"), owner=run)["settings"]
    except (FileNotFoundError, StorageError, KeyError, TypeError):
        return
    if job == "pretrain":
        settings = pretraining_settings(config)
    else:
        settings = settings_of(config, classes) | (search_settings(config.search) if job == "tune" else {})
    changed = changes(settings, earlier)
    encoder = earlier.get("encoder", {}).get("name")
    now = config.features.encoder if config.tiling.strategy == "features" else config.encoder.name
    if job == "pretrain":
        now = config.encoder.part_with_weights.name
    if encoder != now:
        changed.append(f"encoder.name: {encoder!r} then, {now!r} now")
    folders = [checkpoint_folder(run), *([search_folder(run)] if job == "tune" else [])]
    refuse_changes(
        changed,
        key=f"{section}.run",
        run=getattr(config, section).run,
        places=[store.path(folder) for folder in folders],
    )
