"""A store as the job `train` leaves it, made in this process and in seconds: slides, embeddings, labels and a run."""

from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from distmil.bags.bag import BagEntry
from distmil.cohort import Cohort, read_cohort
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.demo.cohort import make_cohort
from distmil.encoders.embedder import SlideEmbedder
from distmil.encoders.registry import load_encoder, prepare_encoder
from distmil.labels.tables import SlideLabeller
from distmil.storage.store import Store
from distmil.training.run_files import checkpoint_folder
from tests.support.tiles import tile_slide

RUN = "door"
SETTINGS = {
    "encoder": {"name": "texture"},
    "model": {"feature_dim": 16, "attention_dim": 8},
    "training": {"epochs": 6, "use_gpu": False, "lr": 3e-3, "warmup_steps": 2},
}


@dataclass(frozen=True)
class House:
    """The store, its cohort and the configuration of its run."""

    store: Store
    cohort: Cohort
    config: Config


def make_house(root: Path, *, num_slides: int = 6) -> House:
    """Tile, embed and label a synthetic cohort, and start a run on it."""
    config = build_config({**SETTINGS, "cohort": {"val_fraction": 0.34}})
    manifest = make_cohort(root / f"synthetic/{num_slides}", num_slides=num_slides)
    cohort = read_cohort(config.cohort, manifest=manifest, needs_labels=True, needs_splits=True)
    store = Store(str(root))
    spec = prepare_encoder(config.encoder, store)
    encoder, entries = load_encoder(spec, store), []
    for slide in cohort.slides:
        patches = tile_slide(slide, config.tiling, store)
        embedder = SlideEmbedder(patches, config, spec, store)
        with threadpool_limits(limits=1):  # the matrices are small: threads would wait for each other
            parts = embedder.commit([embedder.write_shard(part, encoder) for part in patches.parts]).parts
        labeller = SlideLabeller(slide, config, store, patches)
        labels = labeller.label()
        entries.append(BagEntry(
            slide.slide_id, slide.label, slide.split, False, embedder.folder, tuple(parts), labeller.table_name,
            labels_part=labels.parts[0],
        ))  # fmt: skip
    settings = {
        **{f"{section}.{key}": value for section in ("labels", "bags", "model", "losses")
           for key, value in getattr(config, section).model_dump().items() if key != "timeout_s"},
        **{f"training.{key}": value for key, value in config.training.identity().items()},
        "encoder.trainable": False, "encoder.views": 0, "encoder": spec.identity(),
        "tiling": config.tiling.identity(), "cohort.classes": config.cohort.classes,
    }  # fmt: skip
    folder = checkpoint_folder(RUN)
    store.write_checked(f"{folder}/run.json", {"settings": settings, "data": "a hash"}, owner=RUN)
    store.write_checked(f"{folder}/cohort.json", [entry.to_json() for entry in entries], owner=RUN)
    return House(store, cohort, config)
