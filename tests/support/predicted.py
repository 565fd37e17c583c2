"""A store with finished predictions, made in this process: slides, their tiling, a bundle, and random scores."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from distmil.cohort import Slide
from distmil.inference.bundle import Bundle, load_bundle, save_bundle
from distmil.inference.question import claim_question, make_question
from distmil.inference.tables import predictions_folder
from distmil.storage.schemas import patch_predictions_schema, to_parquet
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import grid_of
from tests.inference.test_mlflow_model import make_bundle
from tests.support.bags import small_config
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

SIZES = {"s1": (700, 420), "s2": (330, 580), "s3": (640, 200)}
TILING = {"strategy": "crop", "patch_px": 64, "mpp": 0.5, "encode": "png", "chunk_patches": 16}
RUN = "p"


@dataclass(frozen=True)
class Predicted:
    """The store, its manifest and its bundle."""

    store: Store
    manifest: Path
    bundle: Bundle
    slides: dict[str, Slide]

    def table(self, slide_id: str) -> pa.Table:
        """Make a slide's scores again."""
        tiled = tile_slide(self.slides[slide_id], self.bundle.config.tiling, self.store)
        return score(
            grid_of(self.store, self.bundle.config.tiling, tiled), self.bundle, seed=len(slide_id) + tiled.rows
        )


def make_predicted(root: Path, *, num_classes: int = 2) -> Predicted:
    """Tile three slides, and commit predictions of them."""
    store = Store(str(root / "store"))
    made = make_bundle(classes=num_classes)
    config = small_config(cohort={"classes": made.classes}, tiling=TILING, model={"dropout": 0.25})
    save_bundle(store, replace(made, config=config, patch_threshold=0.6))
    bundle = load_bundle("a-run", store)
    slides = {}
    (root / "slides").mkdir(parents=True)
    for name, size in SIZES.items():
        path = root / "slides" / f"{name}.tif"
        save_pyramid(path, tissue_image(size), mpp=0.5)
        slides[name] = Slide(name, str(path), label=1)
    manifest = root / "slides" / "manifest.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["slide_id", "slide_path", "label"])
        rows.writerows([slide.slide_id, slide.path, made.classes[1]] for slide in slides.values())
    predicted = Predicted(store, manifest, bundle, slides)
    claim_question(store, RUN, make_question(bundle.digest, list(slides.values())))
    for name in slides:
        commit(predicted, name)
    return predicted


def commit(predicted: Predicted, slide_id: str, *, table: pa.Table | None = None, bundle: str | None = None) -> None:
    """Commit a slide's predictions, as the job does."""
    store, folder = predicted.store, predictions_folder(RUN)
    table = predicted.table(slide_id) if table is None else table
    part = store.write_part(folder, f"patches/{slide_id}.parquet", to_parquet(table), rows=table.num_rows)
    key = {"bundle": bundle or predicted.bundle.digest, "parts": ["x"], "slide_score": "bag", "format_version": 3}
    info = {"slide_id": slide_id, "probability": 0.7, "predicted": predicted.bundle.classes[1],
            "num_patches": table.num_rows}  # fmt: skip
    Committed(store, folder, slide_id, f"records/{slide_id}.json").commit(key, parts=[part], info=info)


def score(grid: pa.Table, bundle: Bundle, *, seed: int) -> pa.Table:
    """Draw scores for the patches of a grid."""
    rng = np.random.default_rng(seed)
    count, classes = grid.num_rows, bundle.classes
    share_NC = rng.dirichlet(np.ones(len(classes) - 1), count)
    attention, probability = rng.random((2, count)).astype(np.float32)
    likeliest = np.array(classes[1:])[share_NC.argmax(axis=1)]
    columns = [grid[name] for name in ("slide_id", "x", "y", "extent_px")]
    columns += [attention, probability, probability, attention * probability]
    columns.append(np.where(probability >= bundle.patch_threshold, likeliest, classes[0]).tolist())
    if len(classes) > 2:
        columns += [1 - probability, *(share_NC * probability[:, None]).astype(np.float32).T]
    return pa.table(columns, schema=patch_predictions_schema(classes))
