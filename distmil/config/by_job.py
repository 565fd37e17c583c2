"""Which keys each job reads, and which ten of them are usual: for the help, the answers to typos and the next steps."""

from collections.abc import Mapping

from distmil.config.description import all_fields
from distmil.config.section import has_mark

_INPUT = {"cohort", "storage", "tiling", "labels"}
_LEARNING = _INPUT | {"encoder", "features", "bags", "model", "losses", "training", "tracking"}
_WITH_BUNDLE = _INPUT | {"encoder", "features", "prediction"}

SECTIONS: Mapping[str, set[str]] = {
    "tile": _INPUT,
    "embed": {"cohort", "storage", "tiling", "encoder"},
    "import_features": {"cohort", "storage", "features"},
    "export_features": {"cohort", "storage", "tiling", "encoder", "features"},
    "pretrain": _INPUT | {"encoder", "pretraining", "tracking"},
    "train": _LEARNING | {"prediction"},
    "tune": _LEARNING | {"search"},
    "evaluate": _WITH_BUNDLE,
    "predict": _WITH_BUNDLE,
    "export": {"cohort", "storage", "labels", "tiling", "features", "prediction", "export"},
    "view": {"cohort", "storage", "labels", "tiling", "features", "prediction", "view"},
}
"""The sections that each job reads."""
_IMPORTING = {f"tiling.{key}" for key in ("default_mpp", "max_bad_fraction", "chunk_patches", "reader")}
_GROUP = ("num_workers", "min_workers", "use_gpu", "precision", "start_timeout_s", "max_failures")
_MORE = {
    **{job: {"training.use_gpu"} for job in ("embed", "evaluate", "predict", "export_features")},
    "import_features": _IMPORTING,
    "pretrain": {f"training.{key}" for key in _GROUP},
    "tile": {"encoder.name"},
    "view": {"export.threshold", "export.target", "export.slides", "export.min_area_mm2"},
}
"""Single keys of other sections that a job reads."""
_NOT = {
    "pretrain": {
        *(f"encoder.{key}" for key in ("trainable", "views", "stain_shift", "engine", "precision")),
        *(f"tracking.{key}" for key in ("registered_model", "alias", "maps")),
        *(f"tiling.{key}" for key in ("stream",)),
        *(f"labels.{key}" for key in ("form", "on_bad_annotation")),
    },
    "train": {"prediction.model"},
    "export": {"prediction.split", "prediction.slide_score", "prediction.maps"},
    "view": {
        "prediction.split",
        "prediction.slide_score",
        "prediction.maps",
        "prediction.colours",
        "prediction.map_px",
    },
    "tune": {"training.run", "tracking.registered_model", "tracking.alias"},
}
"""Single keys of its sections that a job does not read."""
_OF_BUNDLE = {"tiling", "encoder", "features"}
"""Sections that `evaluate`, `predict` and `export` take from the bundle, but for the keys of a job."""

_MANIFEST, _ROOT = "cohort.manifest", "storage.root"
_LEARN = ("tiling.mpp", "encoder.name", "labels.positive_at", "training.epochs", "training.lr", "bags.top_k")
_PREDICT = ("prediction.run", "prediction.split", "prediction.slide_score", "prediction.maps", "prediction.colours")
_TILE = ("tiling.strategy", "tiling.mpp", "tiling.patch_px", "tiling.stride_px", "tiling.min_tissue")
_FEATURES = ("features.folder", "features.layout", "features.encoder")
USUAL: Mapping[str, tuple[str, ...]] = {
    "tile": (_MANIFEST, _ROOT, *_TILE, "tiling.default_mpp", "tiling.verify", "tiling.max_bad_fraction"),
    "embed": (_MANIFEST, _ROOT, *_TILE, "encoder.name", "encoder.weights", "encoder.batch_size"),
    "import_features": (_MANIFEST, _ROOT, *_FEATURES, "features.edge_px", "features.patch_mpp", "features.extent_px",
                        "tiling.default_mpp", "tiling.max_bad_fraction"),
    "export_features": (_MANIFEST, _ROOT, "features.export_folder", "features.export_layout", "features.stamp_version",
                        "features.folder", *_TILE[1:3], "encoder.name", "tiling.max_bad_fraction"),
    "pretrain": (_MANIFEST, _ROOT, "tiling.mpp", "encoder.name", "pretraining.run", "pretraining.method",
                 "pretraining.epochs", "pretraining.batch_patches", "pretraining.view_px", "training.use_gpu"),
    "train": (_MANIFEST, _ROOT, "training.run", *_LEARN, "training.use_gpu"),
    "tune": (_MANIFEST, _ROOT, "search.run", "search.space", "search.trials", "search.folds", "search.repeats",
             "search.metric", "training.epochs", "training.use_gpu"),
    "evaluate": (_MANIFEST, _ROOT, "prediction.model", *_PREDICT, "tiling.default_mpp", "training.use_gpu"),
    "predict": (_MANIFEST, _ROOT, "prediction.model", *_PREDICT, "tiling.default_mpp", "training.use_gpu"),
    "export": (_MANIFEST, _ROOT, "prediction.model", "prediction.run", "export.formats", "export.scores",
               "export.slides", "export.out", "export.threshold", "export.origin"),
    "view": (_MANIFEST, _ROOT, "prediction.model", "prediction.run", "view.port", "view.show", "view.drawn",
             "view.export", "export.slides", "export.threshold"),
}  # fmt: skip
"""The ten keys that most users of a job set, in the order of interest."""
EXAMPLES: Mapping[str, str] = {
    "tile": "cohort.manifest=slides.csv tiling.mpp=0.5",
    "embed": "cohort.manifest=slides.csv encoder.name=resnet50",
    "import_features": "cohort.manifest=slides.csv features.folder=uni_v1",
    "export_features": "cohort.manifest=s.csv features.export_folder=out",
    "pretrain": "cohort.manifest=slides.csv pretraining.run=own",
    "train": "cohort.manifest=slides.csv training.run=first",
    "tune": "cohort.manifest=slides.csv search.trials=24",
    "evaluate": "cohort.manifest=slides.csv prediction.model=first",
    "predict": "cohort.manifest=new.csv prediction.model=first",
    "export": "cohort.manifest=new.csv prediction.model=first",
    "view": "cohort.manifest=new.csv prediction.model=first",
}
"""Arguments of an example command."""


def keys_read(job: str) -> list[str]:
    """List the dotted keys that a job reads, in the configuration's order."""
    found = []
    for section, key, field in all_fields():
        name = f"{section}.{key}"
        is_read = section in SECTIONS[job] and name not in _NOT.get(job, ())
        if "prediction.model" in USUAL[job]:
            is_of_bundle = section in _OF_BUNDLE and not has_mark(field, "per_job", default=False)
            is_read = is_read and not is_of_bundle and name != "cohort.classes"
        if is_read or name in _MORE.get(job, ()):
            found.append(name)
    return found
