"""Settings to the folders that they name, and to words for those folders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distmil.config.data import TilingConfig
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.embedder import embeddings_folder
from distmil.encoders.registry import TEXTURE_VERSION, EncoderSpec, stored_spec
from distmil.errors import ConfigError
from distmil.features.spec import IMPORTED, imported_spec
from distmil.labels.slide_outlines import outlines_folder
from distmil.labels.tables import labels_folder
from distmil.tiling.shards import FORMAT_VERSION, patches_folder

TEXTURE = stored_spec("texture", f"v{TEXTURE_VERSION}")
_IN_WORDS = {"patch_px", "mpp", "strategy", "encode", "jpeg_quality"}


@dataclass(frozen=True)
class Made:
    """A folder in words, and the folder that it was made from."""

    words: str
    parent: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Settings that name folders; without an encoder, or without labels, where they do not say so."""

    config: Config
    spec: EncoderSpec | None = None
    has_labels: bool = False

    def folders(self) -> dict[str, Made]:
        """Name the folders that these settings make, used or not."""
        config, patches = self.config, patches_folder(self.config.tiling)
        made = {patches: Made(f"patches of {patches_words(config.tiling)}")}
        if self.spec is not None:
            encoder = encoder_words(self.spec.name, self.spec.digest)
            for view in range(config.encoder.views + 1):
                stains = f", stain view {view}" if view else ""
                made[embeddings_folder(config, self.spec, view=view)] = Made(
                    f"{encoder} embeddings of {patches}{stains}", patches
                )
        if self.has_labels:
            classes = ", ".join(config.cohort.classes)
            made[labels_folder(config)] = Made(f"labels {classes} of {patches}{_label_words(config)}", patches)
            made[outlines_folder(config)] = Made(f"outlines as read for {patches}", patches)
        return made

    def outdated(self) -> dict[str, Made]:
        """Name the folders of patches that earlier versions of distmil made by these settings."""
        words = f"patches of {patches_words(self.config.tiling)}, of an earlier distmil"
        return {patches_folder(self.config.tiling, version=i): Made(words) for i in range(1, FORMAT_VERSION)}


def patches_words(tiling: TilingConfig) -> str:
    """Word the settings of patches, every one that is not the default included."""
    encoding = {"png": "png", "jpeg": f"jpeg {tiling.jpeg_quality}"}.get(
        tiling.encode, f"jpeg {tiling.jpeg_quality} or as in the file"
    )
    defaults = TilingConfig().identity()
    more = [f"{k}={v}" for k, v in tiling.identity().items() if k not in _IN_WORDS and v != defaults.get(k)]
    return ", ".join([size_words(tiling), tiling.strategy, encoding, *more])


def size_words(tiling: TilingConfig) -> str:
    """Word the size of patches."""
    return f"{tiling.patch_px} px" + (f" at {tiling.mpp:g} um/px" if tiling.mpp else " of the file's own")


def encoder_words(name: str, digest: str) -> str:
    """Word an encoder and its weights."""
    return name if name == "texture" or digest == IMPORTED else f"{name} {digest[:8]}"


def _label_words(config: Config) -> str:
    """Word the rules of labels that are not the default ones."""
    defaults = type(config.labels)().identity()
    changed = [f", {key}={value}" for key, value in config.labels.identity().items() if value != defaults[key]]
    return "".join(changed)


def recipe_of_run(settings: Mapping[str, Any]) -> Recipe | None:
    """Read the settings that a training run or a search noted; None if this distmil does not know them."""
    labels = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith("labels.")}
    try:
        encoder = settings["encoder"]
        is_imported = encoder["digest"] == IMPORTED
        spec = imported_spec(encoder["name"]) if is_imported else stored_spec(encoder["name"], encoder["digest"])
        values = {
            "tiling": settings["tiling"],
            "labels": labels,
            "cohort": {"classes": settings["cohort.classes"]},
            "encoder": {} if is_imported else {"name": encoder["name"], "views": settings.get("encoder.views", 0)},
        }
        return Recipe(build_config(values), spec, has_labels=True)
    except (ConfigError, KeyError, TypeError, ValueError):
        return None


def recipe_of_bundle(values: Mapping[str, Any]) -> Recipe | None:
    """Read the settings in a bundle's ``config.json``; the digest of an encoder's weights is not among them."""
    try:
        name = values["config"]["encoder"]["name"]
        features = values["config"].get("features", {}).get("encoder")  # bundles of earlier versions have none
        config = build_config({"tiling": values["config"]["tiling"], "cohort": values["config"]["cohort"]})
    except (ConfigError, KeyError, TypeError):
        return None
    if features:
        return Recipe(config, imported_spec(features))
    return Recipe(config, TEXTURE if name == "texture" else None)


def recipe_of_report(settings: Mapping[str, Any]) -> Recipe | None:
    """Read the settings in a tiling report; None if they are not those of this distmil."""
    try:
        tiling = {key.partition(".")[2]: value for key, value in settings.items()}
        return Recipe(build_config({"tiling": tiling}), TEXTURE)
    except (AttributeError, ConfigError):
        return None


def recipe_of_config(config: Config) -> Recipe:
    """Take the settings of this job, to know the folders that they name."""
    try:
        labels_folder(config)
    except ConfigError:  # labels.groups names an unknown class
        return Recipe(config, TEXTURE)
    return Recipe(config, TEXTURE, has_labels=True)
