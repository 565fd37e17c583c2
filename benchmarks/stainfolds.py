"""Train patches of `pcam_cohort` by their stain: what a network is worth on stains that it never saw.

The slides are assembled from patches of many scanned slides of two laboratories, so that folds of them hold the same
stains on both sides. Here each slide is cut into three bags by the colour of its patches; a network trained on two
groups of all slides judges the third.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from benchmarks.pcambags import cohort_config
from distmil.bags.bag import Bag
from distmil.bags.source import EmbeddingSource
from distmil.encoders.stains import DENSITY
from distmil.storage.store import Store
from distmil.tiling.shards import decode_image, patches_folder, read_patches

NUM_GROUPS = 3
MIN_PATCHES = 8
_STAINED = 0.3  # optical density, R + G + B, from which a pixel counts
_MIN_PIXELS = 50

Groups = dict[str, NDArray[np.int64]]


def stain_groups(data: Path, root: Path, bags: Sequence[Bag]) -> Groups:
    """Return the stain group of every patch by slide: k-means on the direction of the mean optical density."""
    store, folder = Store(str(root)), patches_folder(cohort_config(data).tiling)
    directions = {bag.slide_id: _directions(store, f"{folder}/{bag.slide_id}") for bag in bags}
    fitted = KMeans(NUM_GROUPS, n_init=10, random_state=0).fit(np.concatenate(list(directions.values())))
    return {slide_id: fitted.predict(found).astype(np.int64) for slide_id, found in directions.items()}


def _directions(store: Store, folder: str) -> NDArray[np.float64]:
    record = store.read_record(f"{folder}/commit.json")
    if record is None:
        raise FileNotFoundError(f"{store.path(folder)} is not tiled")
    tables = [read_patches(store, f"{folder}/{part.name}", columns=["image"]) for part in record.parts]
    return np.stack([_direction(decode_image(data)) for table in tables for data in table["image"].to_pylist()])


def _direction(image_HW3: NDArray[np.uint8]) -> NDArray[np.float64]:
    density_P3 = DENSITY[image_HW3].reshape(-1, 3).astype(np.float64)
    stained_P3 = density_P3[density_P3.sum(axis=1) > _STAINED]
    mean_3 = stained_P3.mean(axis=0) if len(stained_P3) > _MIN_PIXELS else np.ones(3)
    return np.asarray(mean_3 / np.linalg.norm(mean_3), np.float64)


def cut_down(bag: Bag, keep_N: NDArray[np.bool_]) -> Bag | None:
    """Return a bag of some of a slide's patches; None if they are too few, or none of a positive slide's tumour."""
    kept = np.flatnonzero(keep_N)
    if len(kept) < MIN_PATCHES or (bag.label and not (bag.label_N[kept] > 0).any()):
        return None
    source, *views = [EmbeddingSource([np.asarray(each.take(kept))]) for each in (bag.source, *bag.views)]
    return replace(bag, source=source, views=views, label_N=bag.label_N[kept], target_NC=bag.target_NC[kept])
