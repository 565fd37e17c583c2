"""Random slides with scored patches, as tilings give them: never square, patches over the edge, any stride."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distmil.exporting.scores import ScoredPatches, scored_patches


@dataclass(frozen=True)
class ScoredCase:
    """A slide and its patch predictions."""

    size: tuple[int, int]
    bounds: tuple[int, int, int, int] | None
    mpp: float
    stride: float
    extent_px: int
    classes: list[str]
    table: pa.Table

    @property
    def patches(self) -> ScoredPatches:
        return scored_patches(self.table, abnormal=self.classes[1])


def random_case(
    seed: int,
    *,
    extent: tuple[int, int] = (5, 24),
    columns: int = 14,
    is_whole: bool | None = None,
    num_classes: int = 0,
) -> ScoredCase:
    """Lay a grid over a slide, leave patches out, and score the others in clusters, so that regions and holes arise.

    Args:
        seed: Of the case.
        extent: Range of the patch edge.
        columns: Most columns of the grid.
        is_whole: The stride is a whole number of pixels; None: by chance.
        num_classes: 2 or more; 0: by chance.
    """
    rng = np.random.default_rng(seed)
    edge = int(rng.integers(*extent))
    stride = edge * float(rng.choice([1.0, 1.0, 0.5, 0.75, 1.4]))
    if is_whole or (is_whole is None and rng.random() < 0.5):
        stride = float(max(2, round(stride)))
    else:
        stride = max(2.0, edge + rng.uniform(-0.5, 0.5))  # as where a patch's edge was rounded
    wide, high = int(rng.integers(columns // 2, columns)), int(rng.integers(3, columns // 2 + 2))
    width = round(wide * stride) - int(rng.integers(0, edge))  # patches hang over
    height = round(high * stride) - int(rng.integers(0, edge))
    height += height == width
    row, column = (index.ravel() for index in np.mgrid[:high, :wide])
    smooth = rng.random((high, wide)) ** 2
    smooth[rng.random((high, wide)) < 0.45] = rng.uniform(0.8, 1)
    is_kept = rng.random(len(row)) < 0.92
    is_kept[rng.integers(len(row))] = True
    row, column = row[is_kept], column[is_kept]
    names = ["normal", "a", "b", "c"][: num_classes or int(rng.choice([2, 2, 3, 4]))]
    bounds = None
    if rng.random() < 0.5:
        left, top = int(rng.integers(0, width // 3 + 1)), int(rng.integers(0, height // 3 + 1))
        bounds = (left, top, int(rng.integers(1, width - left)), int(rng.integers(1, height - top)))
    table = _table(rng, names, (np.rint(column * stride), np.rint(row * stride)), edge, smooth[row, column])
    return ScoredCase((width, height), bounds, float(rng.uniform(0.2, 1.1)), stride, edge, names, table)


def _table(rng, names, x_y, edge, probability) -> pa.Table:
    x, y = x_y
    count = len(x)
    probability = probability.astype(np.float32)
    attention = rng.random(count).astype(np.float32)
    values = {
        "slide_id": ["s"] * count,
        "x": x.astype(np.int32),
        "y": y.astype(np.int32),
        "extent_px": np.full(count, edge, np.int32),
        "attention": attention,
        "probability": probability,
        "topk_probability": rng.random(count).astype(np.float32),
        "fused": attention * probability,
    }
    if len(names) > 2:
        share = rng.dirichlet(np.ones(len(names) - 1), count).astype(np.float32)
        values |= {"probability_normal": 1 - probability}
        values |= {f"probability_{name}": share[:, i] * probability for i, name in enumerate(names[1:])}
    return pa.table(values)
