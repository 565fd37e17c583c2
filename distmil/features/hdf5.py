"""HDF5 files of CLAM, TRIDENT and STAMP: told apart by what is in them, read, and written beside and renamed."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from distmil.features.contents import Contents, Header, checked_contents, number, odd, positive, text_of, whole

_STAMP_EDGE_UM, _STAMP_EDGE_PX = 256.0, 224
"""Of every file of a STAMP that did not state them."""
_STAMP_HISTORIC_STEP = 224.0
_OPENS = "is it whole, and HDF5?"


@contextmanager
def open_hdf5(path: Path, companion: Path | None, *, edge: tuple[int | None, int | None]) -> Iterator[Contents]:
    """Open a slide's features.

    Args:
        path: The file.
        companion: File of coordinates beside it, of which CLAM needs what the other lacks.
        edge: Patch edge as the user states it, in its own pixels and in level-0 pixels.

    Raises:
        UnreadableSlide: If it holds no features of patches.
    """
    try:
        with h5py.File(path, "r") as file:
            yield _contents(file, companion, edge)
    except OSError as error:
        raise odd(f"the file cannot be read; {_OPENS}") from error


def _contents(file: Any, companion: Path | None, edge: tuple[int | None, int | None]) -> Contents:
    if "feats" in file or "patch_embeddings" in file or "extractor" in file.attrs or "stamp_version" in file.attrs:
        return _stamp(file)
    if "features" not in file:
        if "imgs" in file:
            raise odd("it holds the pixels of patches (imgs), no features; run the tool's feature extraction")
        held = ", ".join(sorted(map(str, file))[:5]) or "nothing"
        extra = "; these are the places of patches alone" if "coords" in file else ""
        raise odd(f"it holds {held}; expected features and coords (CLAM, TRIDENT) or feats and coords (STAMP){extra}")
    if "coords" not in file:
        raise odd("it holds features without coords: nobody can tell where the patches are")
    attributes = dict(file["coords"].attrs)
    if "patch_size_level0" in attributes:
        return _trident(file, attributes)
    return _clam(file["features"], file["coords"][()], companion, edge)


def _trident(file: Any, attributes: Mapping[str, Any]) -> Contents:
    encoder = text_of(file["features"].attrs.get("encoder"))
    header = trident_header(attributes, encoder=None if encoder in {None, "None"} else encoder)
    return checked_contents(header, file["coords"][()], file["features"], names=("coords", "features"))


def trident_header(attributes: Mapping[str, Any], *, encoder: str | None) -> Header:
    """Read what TRIDENT notes on coordinates. Raises: UnreadableSlide."""
    patch_px, extent_px = whole(attributes, "patch_size"), whole(attributes, "patch_size_level0")
    power, overlap = positive(attributes, "target_magnification"), number(attributes, "overlap") or 0.0
    size = whole(attributes, "level0_width"), whole(attributes, "level0_height")
    if extent_px is None or patch_px is None:
        raise odd("its coords lack patch_size or patch_size_level0: nobody can tell how large the patches are")
    return Header(
        "trident", 0, 0, encoder, patch_px, 10 / power if power else None, float(extent_px),
        step=extent_px * (1 - overlap / patch_px),
        size=(size[0], size[1]) if size[0] is not None and size[1] is not None else None,
    )  # fmt: skip


def _clam(features: Any, places: Any, companion: Path | None, edge: tuple[int | None, int | None]) -> Contents:
    """Take CLAM's features, and the size of the patches from its file of coordinates, else as the user states it."""
    patch_px, extent_px = edge
    size = None
    if companion is not None:
        with h5py.File(companion, "r") as file:
            if "coords" not in file:
                raise odd("its file of coordinates holds no coords")
            if len(file["coords"]) != len(places):
                raise odd(f"{len(places)} patches, but {len(file['coords'])} in its file of coordinates")
            if np.any(file["coords"][()] != np.asarray(places)):
                raise odd("its coords are not those of its file of coordinates")
            own_px, own_extent, size = _clam_edges(dict(file["coords"].attrs))
        patch_px, extent_px = own_px or patch_px, own_extent or extent_px
    header = Header("clam", 0, 0, patch_px=patch_px, extent=None if extent_px is None else float(extent_px), size=size)
    return checked_contents(header, places, features, names=("coords", "features"))


def _clam_edges(attributes: Mapping[str, Any]) -> tuple[int | None, int | None, tuple[int, int] | None]:
    """Read CLAM's patch edge at its level and at level 0, and the slide's size. Raises: UnreadableSlide."""
    patch_px, factor = whole(attributes, "patch_size"), positive(attributes, "downsample")
    if patch_px is None or factor is None:
        return patch_px, None, None
    sides, factors = np.asarray(attributes.get("level_dim", ())), np.asarray(attributes["downsample"]).reshape(-1)
    is_sized = sides.shape == (2,) and sides.dtype.kind in "iu"
    size = (round(float(sides[0] * factors[0])), round(float(sides[1] * factors[-1]))) if is_sized else None
    return patch_px, round(patch_px * factor), size


def _stamp(file: Any) -> Contents:
    attributes = dict(file.attrs)
    kind = text_of(attributes.get("feat_type"))
    if kind in {"slide", "patient"}:
        raise odd(f"they are one vector for the {kind} (feat_type); give the folder of the tiles' features")
    if "patch_embeddings" in file:
        raise odd("they are of a multiplex image (patch_embeddings) and have no coordinates")
    if "feats" not in file:
        raise odd("it holds no feats")
    if "coords" not in file:
        raise odd("it holds feats without coords: nobody can tell where the patches are")
    places = file["coords"][()]
    unit = text_of(attributes.get("unit"))
    if unit not in {None, "um"}:
        raise odd(f"its unit is {unit!r}; expected um")
    edge_um = positive(attributes, "tile_size_um") or positive(attributes, "tile_size")
    if edge_um is None:
        edge_um = _STAMP_EDGE_UM
        if unit is None and abs(_step(places) - _STAMP_HISTORIC_STEP) < 1:
            places = places * (_STAMP_EDGE_UM / _STAMP_HISTORIC_STEP)  # STAMP wrote multiples of the tile's pixels once
    edge_px = whole(attributes, "tile_size_px") or _STAMP_EDGE_PX
    header = Header(
        "stamp", 0, 0, text_of(attributes.get("extractor")), edge_px, edge_um / edge_px, edge_um, edge_um, unit="um"
    )
    return checked_contents(header, places, file["feats"], names=("coords", "feats"))


def _step(places: NDArray[Any]) -> float:
    """Measure the least distance of two columns of patches."""
    steps = np.diff(np.unique(places[:, 0])) if places.ndim == 2 and places.shape[1:] == (2,) else np.zeros(0)
    return float(steps[steps > 0.5].min(initial=np.inf))


@contextmanager
def open_tensor(path: Path, companion: Path | None, *, edge: tuple[int | None, int | None]) -> Iterator[Contents]:
    """Open a bare tensor of CLAM or TRIDENT, whose coordinates are in a file of their own; see ``open_hdf5``."""
    if companion is None:
        raise odd(
            "a tensor without coordinates: keep the tool's folder of coordinates (patches) beside that of features"
        )
    matrix = load_tensor(path)
    try:
        with h5py.File(companion, "r") as file:
            places, attributes = file["coords"][()], dict(file["coords"].attrs)
    except (OSError, KeyError) as error:
        raise odd(f"its file of coordinates cannot be read; {_OPENS}") from error
    if "patch_size_level0" in attributes:
        header = trident_header(attributes, encoder=None)
        yield checked_contents(header, places, matrix, names=("coords", "the tensor"))
    else:
        yield _clam(matrix, places, companion, edge)


def load_tensor(path: Path) -> NDArray[Any]:
    """Read a tensor without running what its file may hold. Raises: UnreadableSlide."""
    torch = importlib.import_module("torch")  # takes seconds to import, and only tensors need it
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise odd("the tensor cannot be read, or holds more than numbers") from error
    if not isinstance(found, torch.Tensor) or found.is_sparse:
        raise odd(f"the file holds a {type(found).__name__}; expected one tensor, patches x width")
    matrix: NDArray[Any] = (found.float() if found.dtype == torch.bfloat16 else found).numpy()
    return matrix
