"""Files of features as CLAM, TRIDENT, STAMP, slide2vec and LazySlide write them, written by what their sources say.

Independent of distmil: nothing of its package is imported.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

LAYOUTS = ("clam", "trident", "stamp", "slide2vec")


@dataclass(frozen=True)
class Made:
    """The truth of a slide's features."""

    slide_id: str
    xy: np.ndarray
    """N x 2, int64, level-0 pixels."""
    features: np.ndarray
    extent_px: int
    patch_px: int
    overlap_px: int
    mpp: float
    """Um per level-0 pixel."""
    size: tuple[int, int]
    encoder: str = "uni_v1"

    @property
    def patch_mpp(self) -> float:
        return self.mpp * self.extent_px / self.patch_px

    def but(self, **values) -> "Made":
        return replace(self, **values)


def random_features(rng: np.random.Generator, *, slide_id: str = "s1", width: int | None = None, **values) -> Made:
    """Make features on a part of a wide or high grid, in random order, its neighbours ``extent - overlap`` apart."""
    patch_px = int(rng.choice([96, 224, 256, 448, 512]))
    factor = int(rng.choice([1, 2, 4]))
    overlap_px = int(rng.choice([0, 0, 0, patch_px // 4]))
    extent_px, step = patch_px * factor, (patch_px - overlap_px) * factor
    columns, rows = int(rng.integers(3, 12)), int(rng.integers(2, 9))
    places = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    kept = rng.permutation(len(places))[: int(rng.integers(len(places) * 3 // 4, len(places) + 1))]
    corner = rng.integers(0, 3000, 2)
    xy = (places[kept] * step + corner).astype(np.int64)
    size = tuple(int(v) for v in xy.max(axis=0) + extent_px + rng.integers(0, 700, 2))
    dtype = [np.float16, np.float32][int(rng.integers(2))]
    features = rng.normal(size=(len(xy), width or int(rng.integers(1, 33)))).astype(dtype)
    mpp = float(rng.choice([0.2273, 0.25, 0.2646, 0.5014]))
    return replace(Made(slide_id, xy, features, extent_px, patch_px, overlap_px, mpp, size), **values)


def write(made: Made, root: Path, layout: str) -> Path:
    """Write a slide's files below a folder, and return the folder to import."""
    return {"clam": write_clam, "trident": write_trident, "stamp": write_stamp, "slide2vec": write_slide2vec,
            "lazyslide": write_lazyslide}[layout](made, root)  # fmt: skip


def write_clam(made: Made, root: Path, *, tensor: bool = False) -> Path:
    """``create_patches_fp.py``, then ``extract_features_fp.py``: no attributes in h5_files, int32, float32."""
    for name in ("patches", "h5_files", "pt_files"):
        (root / name).mkdir(parents=True, exist_ok=True)
    factor = made.extent_px / made.patch_px
    with h5py.File(root / "patches" / f"{made.slide_id}.h5", "w") as file:
        coords = file.create_dataset("coords", data=made.xy.astype(np.int64), maxshape=(None, 2), chunks=(1, 2))
        size = np.asarray(made.size, np.int64)
        coords.attrs.update(
            {
                "patch_size": made.patch_px, "patch_level": 0 if factor == 1 else 1,
                "downsample": np.asarray((factor, factor)),
                "downsampled_level_dim": np.round(size / factor).astype(int),
                "level_dim": np.round(size / factor).astype(int), "name": made.slide_id, "save_path": "x",
            }
        )  # fmt: skip
    float32 = made.features.astype(np.float32)
    torch.save(torch.from_numpy(float32), root / "pt_files" / f"{made.slide_id}.pt")
    if not tensor:
        with h5py.File(root / "h5_files" / f"{made.slide_id}.h5", "w") as file:
            file.create_dataset("features", data=float32, chunks=(min(32, len(float32)), float32.shape[1]))
            file.create_dataset("coords", data=made.xy.astype(np.int32))
    return root if not tensor else root / "pt_files"


def write_trident(made: Made, root: Path, *, encoder: str | None = "", tensor: bool = False) -> Path:
    """``WSI.extract_patch_features``: int64, what autocast returned, chunks of one row, sizes on coords."""
    home = root / f"20x_{made.patch_px}px_{made.overlap_px}px_overlap"
    power = round(10 / made.mpp)
    attributes = {
        "patch_size": made.patch_px, "patch_size_level0": made.extent_px, "level0_magnification": power,
        "target_magnification": power * made.patch_px // made.extent_px, "overlap": made.overlap_px,
        "name": made.slide_id, "savetodir": "None", "level0_width": made.size[0], "level0_height": made.size[1],
    }  # fmt: skip
    folder = home / f"features_{made.encoder}"
    folder.mkdir(parents=True, exist_ok=True)
    (home / "patches").mkdir(exist_ok=True)
    with h5py.File(home / "patches" / f"{made.slide_id}_patches.h5", "w") as file:
        file.create_dataset("coords", data=made.xy, chunks=(1, 2)).attrs.update(attributes)
    if tensor:
        torch.save(torch.from_numpy(made.features), folder / f"{made.slide_id}.pt")
        return folder
    with h5py.File(folder / f"{made.slide_id}.h5", "w") as file:
        features = file.create_dataset("features", data=made.features, chunks=(1, made.features.shape[1]))
        features.attrs.update({"name": made.slide_id, "savetodir": "None", "encoder": made.encoder})
        file.create_dataset("coords", data=made.xy, chunks=(1, 2)).attrs.update(attributes)
    return folder


def write_stamp(made: Made, root: Path, *, attributes: dict | None = None) -> Path:
    """``preprocessing.extract_``: float32 um, float16, attributes on the file."""
    folder = root / f"{made.encoder}-1a2b3c4d"
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        "stamp_version": "2.4.0", "extractor": made.encoder, "unit": "um",
        "tile_size_um": made.extent_px * made.mpp, "tile_size_px": made.patch_px, "code_hash": "1a2b3c4d",
        "feat_type": "tile",
    }  # fmt: skip
    with h5py.File(folder / f"{made.slide_id}.h5", "w") as file:
        file["coords"] = (made.xy * made.mpp).astype(np.float32)
        file["feats"] = made.features.astype(np.float16)
        file.attrs.update(own if attributes is None else attributes)
    return folder


def write_slide2vec(made: Made, root: Path, *, sections: bool = True) -> Path:
    """slide2vec with hs2p: a tensor with its note, places in npz; hs2p 6 has its note in sections, hs2p 4 had none."""
    for name in ("tiles", "tile_embeddings"):
        (root / name).mkdir(parents=True, exist_ok=True)
    step = made.extent_px * (made.patch_px - made.overlap_px) // made.patch_px
    tiling = {"requested_tile_size_px": made.patch_px, "requested_spacing_um": made.patch_mpp,
              "tile_size_lv0": made.extent_px, "step_px_lv0": step, "n_tiles": len(made.xy)}  # fmt: skip
    slide = {"dimensions": list(made.size), "base_spacing_um": made.mpp}
    places = {"slide": slide, "tiling": tiling} if sections else {**slide, **tiling}
    (root / "tiles" / f"{made.slide_id}.coordinates.meta.json").write_text(json.dumps(places))
    np.savez_compressed(
        root / "tiles" / f"{made.slide_id}.coordinates.npz", x=made.xy[:, 0], y=made.xy[:, 1],
        tile_index=np.arange(len(made.xy), dtype=np.int32), tissue_fractions=np.ones(len(made.xy), np.float32),
    )  # fmt: skip
    torch.save(torch.from_numpy(made.features), root / "tile_embeddings" / f"{made.slide_id}.pt")
    note = {"encoder_name": made.encoder, "tile_size_lv0": made.extent_px, "num_tiles": len(made.xy)}
    (root / "tile_embeddings" / f"{made.slide_id}.meta.json").write_text(json.dumps(note))
    return root


def write_lazyslide(made: Made, root: Path, *, zarr_format: int = 3, shuffle: bool = True) -> Path:
    """A SpatialData zarr: tiles as a Parquet table, features as an AnnData, whose rows name their tile."""
    import zarr  # noqa: PLC0415  # an extra

    path = root / f"{made.slide_id}.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    factor = made.extent_px / made.patch_px
    stride = made.patch_px - made.overlap_px
    group.attrs["tile_spec"] = {
        "tiles": {
            "height": made.patch_px, "width": made.patch_px, "stride_height": stride, "stride_width": stride,
            "mpp": made.patch_mpp, "ops_level": 0, "ops_downsample": factor, "base_level": 0,
            "base_downsample": factor, "tissue_name": "tissues",
        }
    }  # fmt: skip
    group.attrs["slide_properties"] = {"shape": [made.size[1], made.size[0]], "mpp": made.mpp}
    order = np.random.default_rng(0).permutation(len(made.xy)) if shuffle else np.arange(len(made.xy))
    shapes = path / "shapes" / "tiles"
    shapes.mkdir(parents=True)
    columns = {"tile_id": order, "x": made.xy[order, 0], "y": made.xy[order, 1], "tissue_id": np.zeros(len(order), int)}
    pq.write_table(pa.table(columns), shapes / "shapes.parquet")
    table = group.require_group(f"tables/{made.encoder}_tiles")
    table.create_array("X", data=made.features)
    table.create_array("obs/tile_id", data=np.arange(len(made.xy)))
    return root
