"""Features of slide2vec: a tensor with a note beside it, and the places of its tiles in a folder of hs2p's."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distmil.features.contents import Contents, Header, checked_contents, json_object, odd, positive, text_of, whole
from distmil.features.hdf5 import load_tensor

NOTE = ".meta.json"
PLACES = ".coordinates.npz"
PLACES_NOTE = ".coordinates.meta.json"


@contextmanager
def open_slide2vec(path: Path) -> Iterator[Contents]:
    """Open a slide's features by the path of their tensor. Raises: UnreadableSlide."""
    places, places_note = places_of(path)
    note = _note(path.with_name(f"{path.stem}{NOTE}"), missing="slide2vec writes it last: the file may be half written")
    if places is None or places_note is None:
        raise odd("tiles/ has no places of its tiles (.coordinates.npz with its .meta.json)")
    tiling = _note(places_note, missing="")
    sections = [part for part in tiling.values() if isinstance(part, dict)]  # since hs2p 6
    values = {name: value for part in (tiling, *sections, note) for name, value in part.items() if value is not None}
    try:
        with np.load(places, allow_pickle=False) as columns:
            place_N2 = np.stack([columns["x"], columns["y"]], axis=1)
    except (OSError, KeyError, ValueError) as error:
        raise odd("the places of its tiles (.coordinates.npz) cannot be read") from error
    count, size = whole(values, "num_tiles"), values.get("dimensions")
    matrix = load_tensor(path)
    if count is not None and count != len(place_N2):
        raise odd(f"its note says {count} tiles, and {len(place_N2)} have a place")
    header = Header(
        "slide2vec", 0, 0, text_of(values.get("encoder_name")), whole(values, "requested_tile_size_px"),
        positive(values, "requested_spacing_um"), positive(values, "tile_size_lv0"), positive(values, "step_px_lv0"),
        slide_mpp=positive(values, "base_spacing_um"),
        size=(int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None,
    )  # fmt: skip
    yield checked_contents(header, place_N2, matrix, names=("x and y", "the tensor"))


def places_of(path: Path) -> tuple[Path | None, Path | None]:
    """Find the places of a slide's tiles and their note: in ``tiles/`` as the tensor in ``tile_embeddings/``."""
    for above in path.parents:
        if above.name == "tile_embeddings":
            folder = above.parent / "tiles" / path.parent.relative_to(above)
            found = [folder / f"{path.stem}{ending}" for ending in (PLACES, PLACES_NOTE)]
            return (found[0] if found[0].is_file() else None), (found[1] if found[1].is_file() else None)
    return None, None


def _note(path: Path, *, missing: str) -> dict[str, Any]:
    try:
        return json_object(path.read_bytes(), NOTE)
    except FileNotFoundError as error:
        raise odd(f"there is no {NOTE} beside them; {missing}") from error


def files_of_tiles(x_N: Any, y_N: Any, tissue_N: Any, values: dict[str, Any]) -> dict[str, bytes]:
    """Encode hs2p's file of places and its note, by their endings, in the order of writing."""
    file = io.BytesIO()
    index_N = np.arange(len(x_N), dtype=np.int32)
    np.savez(
        file, x=x_N.astype(np.int64), y=y_N.astype(np.int64), tile_index=index_N,
        tissue_fractions=tissue_N.astype(np.float32),
    )  # fmt: skip
    return {PLACES: file.getvalue(), PLACES_NOTE: json.dumps(values, indent=2, sort_keys=True).encode()}
