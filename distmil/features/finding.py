"""Which file of a folder is a slide's, and how it is opened: by the tool that made it."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmil.cohort import Slide
from distmil.config.features import FeaturesConfig
from distmil.errors import ConfigError, MissingSlide
from distmil.features.contents import Contents, odd
from distmil.features.hdf5 import open_hdf5, open_tensor
from distmil.features.lazyslide import TILES, open_lazyslide
from distmil.features.slide2vec import NOTE, open_slide2vec, places_of

_ENDINGS = (".h5", ".hdf5", ".pt", ".zarr")
"""In the order in which a slide's file is chosen."""
_OTHER_FOLDERS = {"patches", "tiles", "masks", "stitches", "contours", "visualization", "preview", "pt_files"}
"""Beside the features in the tools' own folders; CLAM's tensors lie in its h5 files too."""
_SLIDE_LEVEL = ("slide_features_", "slide_embeddings", "hierarchical_embeddings")
_BLOCK = 2**20
_NAMED = 5


@dataclass(frozen=True)
class FeatureFile:
    """The features of one slide: a file or a zarr, and the files beside it that belong to it."""

    path: Path
    companion: Path | None = None
    """CLAM's and TRIDENT's file of coordinates."""

    def opened(self, config: FeaturesConfig) -> AbstractContextManager[Contents]:
        """Open it as what it is. Raises: UnreadableSlide, also of a layout that ``features.layout`` does not name."""
        kind, edge = self._kind, (config.edge_px, config.extent_px)
        if kind == "hdf5":
            return open_hdf5(self.path, self.companion, edge=edge)
        if kind == "lazyslide":
            return open_lazyslide(self.path, encoder=config.encoder)
        return open_slide2vec(self.path) if kind == "slide2vec" else open_tensor(self.path, self.companion, edge=edge)

    @property
    def _kind(self) -> str:
        if self.path.is_dir():
            return "lazyslide"
        if self.path.suffix != ".pt":
            return "hdf5"
        is_of_slide2vec = self.path.with_name(f"{self.path.stem}{NOTE}").exists() or places_of(self.path)[0] is not None
        return "slide2vec" if is_of_slide2vec or self.path.parent.name == "tile_embeddings" else "tensor"

    @property
    def files(self) -> list[Path]:
        """List the files whose content counts. Raises: OSError if they are gone."""
        if self.path.is_dir():
            inner = [self.path / "zarr.json", self.path / ".zattrs", self.path / "shapes" / TILES]
            found = [file for place in (*inner, self.path / "tables") for file in _walk(place)]
            return sorted(found)
        beside = [self.companion] if self.companion else []
        if self._kind == "slide2vec":
            notes = [self.path.with_name(f"{self.path.stem}{NOTE}"), *places_of(self.path)]
            beside = [file for file in notes if file is not None and file.is_file()]
        return [self.path, *beside]

    def version(self) -> dict[str, Any]:
        """Read what tells another version of the files quickly: size and time. Raises: OSError."""
        stats = [file.stat() for file in self.files]
        return {"size_bytes": sum(s.st_size for s in stats), "mtime_ns": max(s.st_mtime_ns for s in stats)}

    def sha256(self) -> str:
        """Hash the content of all files. Raises: OSError."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        return digest.hexdigest()


def _walk(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    elif place.is_dir():
        for folder, _, names in os.walk(place):
            yield from (Path(folder) / name for name in names)


@dataclass(frozen=True)
class FeatureFolder:
    """The files of a folder by the name of their slide."""

    root: Path
    by_stem: Mapping[str, list[Path]]

    def find(self, slide: Slide) -> FeatureFile:
        """Find a slide's file: named as its id, else as its own file.

        Raises:
            MissingSlide: If there is none.
            UnreadableSlide: If there are several.
        """
        names = dict.fromkeys([slide.slide_id, *([Path(slide.path).stem] if slide.path else [])])
        for name in names:
            found = self.by_stem.get(name, [])
            chosen = next((kind for ending in _ENDINGS if (kind := [f for f in found if f.suffix == ending])), [])
            if len(chosen) > 1:
                raise odd(f"{len(chosen)} files of features.folder are named {name}; give the folder of one encoder")
            if chosen:
                return FeatureFile(chosen[0], _coordinates(chosen[0]))
        raise MissingSlide("no file of features.folder is named as the slide's id, or as its file")


def open_folder(config: FeaturesConfig) -> FeatureFolder:
    """List the files of ``features.folder`` and below.

    Raises:
        ConfigError: If it is not there, or holds no features of patches, or those of several encoders.
    """
    given = config.folder or ""
    root = Path(given).expanduser().absolute()
    if "://" in given or not root.is_dir():
        raise ConfigError(
            f"features.folder = {given!r}: there is no such folder; features are read from mounted folders"
        )
    if root.name.startswith(_SLIDE_LEVEL):
        raise ConfigError(
            f"features.folder = {given!r} holds one vector a slide; distmil needs one a patch: give the folder of the "
            "patches' features"
        )
    found: dict[str, list[Path]] = defaultdict(list)
    for folder, inner, names in os.walk(root):
        zarrs = [name for name in inner if name.endswith(".zarr")]
        inner[:] = [n for n in inner if n not in zarrs and n not in _OTHER_FOLDERS and not n.startswith(_SLIDE_LEVEL)]
        for name in (*names, *zarrs):
            path = Path(folder) / name
            if path.suffix in _ENDINGS and not name.startswith("."):
                found[path.stem].append(path)
    if not found:
        raise ConfigError(
            f"features.folder = {given!r} holds no .h5, .pt or .zarr; give the folder that holds a file a slide"
        )
    sources = {path.parent for paths in found.values() for path in paths if path.parent.name.startswith("features_")}
    if len(sources) > 1:
        named = ", ".join(sorted(folder.name for folder in sources)[:_NAMED])
        raise ConfigError(
            f"features.folder = {given!r} holds features of several encoders ({named}); give one of these"
        )
    return FeatureFolder(root, dict(found))


def _coordinates(path: Path) -> Path | None:
    """Find CLAM's or TRIDENT's file of coordinates beside the features."""
    if path.suffix == ".zarr":
        return None
    for above in list(path.parents)[:3]:
        for name in (f"{path.stem}.h5", f"{path.stem}_patches.h5"):
            if (found := above / "patches" / name).is_file() and found != path:
                return found
    return None
