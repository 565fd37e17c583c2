"""A small store with everything in it that training and prediction leave behind, made in this process without Ray."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distmil.bags.bag import Bag, BagEntry, open_bag, open_labels
from distmil.cohort import Cohort, Slide
from distmil.config.data import EncoderConfig
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.catalog.rows import ROWS
from distmil.encoders.embedder import SlideEmbedder, embeddings_folder
from distmil.encoders.registry import EncoderSpec, load_encoder, prepare_encoder
from distmil.inference.bundle import Bundle, load_bundle, save_bundle
from distmil.inference.predictor import SlidePredictor
from distmil.labels.slide_outlines import annotation_version
from distmil.labels.tables import SlideLabeller, labels_folder
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared
from distmil.pipeline.training.claim import Claim
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.tiling.overview import decode_overview
from distmil.tiling.shards import patches_folder
from distmil.training.checkpoints import save_checkpoint
from distmil.training.run import open_run
from distmil.training.run_files import run_file
from distmil.training.workers import Workers
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

CLASSES = ["negative", "positive"]
SIZE = (415, 210)
RUNS = ("first", "second")
TILING = {"strategy": "crop", "patch_px": 50, "mpp": None, "encode": "png", "chunk_patches": 16}
VALUES: dict[str, dict[str, Any]] = {
    "tiling": TILING,
    "encoder": {"name": "texture"},
    "model": {"feature_dim": 16, "attention_dim": 8, "dropout": 0.0, "input_dropout": 0.0},
    "bags": {"k_positive": 4, "k_negative": 4, "slides_per_step": 2, "top_k": 2},
    "training": {"epochs": 2, "warmup_steps": 1, "lr": 1e-3},
    "prediction": {"map_px": 256},
}


@dataclass
class TrainedStore:
    """The store, and what names its files."""

    root: Path
    config: Config
    slides: list[Slide]
    spec: EncoderSpec
    patches: dict[str, Record] = field(default_factory=dict)
    embeddings: dict[str, Record] = field(default_factory=dict)
    labels: dict[str, Record] = field(default_factory=dict)
    entries: list[BagEntry] = field(default_factory=list)
    weights: list[EncoderSpec] = field(default_factory=list)

    @property
    def store(self) -> Store:
        """Return the store."""
        return Store(str(self.root))

    @property
    def cohort(self) -> Cohort:
        """Return the manifest."""
        return Cohort(self.slides, CLASSES)

    def embedder(self, slide_id: str, *, spec: EncoderSpec | None = None) -> SlideEmbedder:
        """Return what embeds a slide."""
        return SlideEmbedder(self.patches[slide_id], self.config, spec or self.spec, self.store)

    def labeller(self, slide: Slide) -> SlideLabeller:
        """Return what labels a slide."""
        return SlideLabeller(slide, self.config, self.store, self.patches[slide.slide_id])

    def path(self, name: str) -> Path:
        """Return the path of a file of the store."""
        return self.root / name

    def bags(self) -> list[Bag]:
        """Open all bags."""
        return [open_bag(self.store, entry, num_classes=2, form="class") for entry in self.entries]

    def claim(self, run: str, **training: Any) -> str:
        """Claim a run's name as a training does."""
        values = {**VALUES, "training": {**VALUES["training"], **training, "run": run}}
        job = Job(build_config(values), self.store)
        prepared = Prepared(self.entries, self.patches, self.labels, {})
        return Claim(job, self.spec, self.cohort, run, "train").take(prepared)

    def predictors(self, run: str) -> list[SlidePredictor]:
        """Return what predicts the slides with a run's bundle."""
        digest = load_bundle(run, self.store).digest
        return [
            SlidePredictor(
                entry=entry,
                slide=slide,
                patches=self.patches[slide.slide_id],
                annotation=annotation_version(slide),
                bundle=digest,
                config=self.config,
                store=self.store,
                run=run,
            )
            for slide, entry in zip(self.slides, self.entries, strict=True)
        ]

    def predict(self, run: str) -> None:
        """Predict all slides with a run's bundle as an actor does."""
        bundle = load_bundle(run, self.store)
        for predictor in self.predictors(run):
            predictor.draw(predictor.score(bundle, lambda patches: torch.as_tensor(patches).float()), bundle)


def make_trained_store(root: Path) -> TrainedStore:
    """Make four slides, their patches, embeddings and labels, two runs with bundles and predictions, and encoders."""
    slides = [_make_slide(root / "slides", i) for i in range(4)]
    config = build_config(VALUES)
    store = Store(str(root / "store"))
    made = TrainedStore(root / "store", config, slides, prepare_encoder(config.encoder, store))
    encoder = load_encoder(made.spec, store)
    for slide in slides:
        made.patches[slide.slide_id] = tile_slide(slide, config.tiling, store)
        embedder = made.embedder(slide.slide_id)
        record = embedder.commit([embedder.write_shard(part, encoder) for part in embedder.patches.parts])
        made.embeddings[slide.slide_id] = record
        made.labels[slide.slide_id] = made.labeller(slide).label()
        made.entries.append(_entry(made, slide))
    for seed, run in enumerate(RUNS):
        _train(made, run, seed=seed)
        made.predict(run)
    made.weights = [_random_encoder(store, seed) for seed in range(2)]
    return made


def _make_slide(folder: Path, index: int) -> Slide:
    """Write a slide; odd ones are positive, with a box marked."""
    folder.mkdir(parents=True, exist_ok=True)
    path, label = save_pyramid(folder / f"s{index}.tif", tissue_image(SIZE, seed=index)), index % 2
    annotation = folder / f"s{index}.geojson"
    left, top, right, bottom = 100 + 10 * index, 50, 220, 150
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
    }
    annotation.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return Slide(
        f"s{index}", str(path), label=label, split="val" if index > 1 else "train",
        annotation_path=str(annotation) if label else None, annotation_complete=True,
    )  # fmt: skip


def _entry(made: TrainedStore, slide: Slide) -> BagEntry:
    name, record = slide.slide_id, made.embeddings[slide.slide_id]
    return BagEntry(
        name, slide.label, slide.split, False, f"{embeddings_folder(made.config, made.spec)}/{name}",
        tuple(record.parts), f"{labels_folder(made.config)}/{name}.parquet", (), made.labels[name].parts[0],
    )  # fmt: skip


def _train(made: TrainedStore, run: str, *, seed: int) -> None:
    """Train, evaluate and bundle a run as a worker and its job do."""
    store = made.store
    made.claim(run, seed=seed)
    entries = made.entries[seed:]  # other slides in each run
    store.write_checked(run_file(run, "cohort"), [entry.to_json() for entry in entries], owner=run)
    values = {**VALUES, "training": {**VALUES["training"], "seed": seed}}
    config, bags = build_config(values), made.bags()
    learning, judging = [[bag for bag in bags if bag.split == split] for split in ("train", "val")]
    opened = open_run(config, learning, judging, made.spec, store, name=run, device=torch.device("cpu"))
    while not opened.is_finished:
        is_best = opened.advance(Workers())
        save_checkpoint(store, run, opened.learner, opened.history, is_best=is_best)
    save_bundle(store, Bundle(run, config, opened.learner.eval_model.head.eval(), None, metrics={"epoch": 1}))


def _random_encoder(store: Store, seed: int) -> EncoderSpec:
    """Store the weights of a random encoder."""
    from distmil.encoders.networks.building import build_net  # takes seconds

    torch.manual_seed(seed)
    return prepare_encoder(
        EncoderConfig(name="resnet18", weights="random"), store, state=build_net(ROWS["resnet18"]).state_dict()
    )


# --- readers: what a job makes of the files, as values that can be compared


def embeddings_of(made: TrainedStore, entry: BagEntry) -> Any:
    """Open a slide's bag as training does."""
    bag = open_bag(made.store, entry, num_classes=2, form="class")
    return np.array(bag.source.take(slice(None))).tobytes()


def labels_of_bag(made: TrainedStore, entry: BagEntry) -> Any:
    """Open a slide's bag for its labels alone."""
    bag = open_labels(made.store, entry, num_classes=2, form="class")
    return bag.label_N.tobytes(), bag.target_NC.tobytes()


def pictures_of(made: TrainedStore, record: Record) -> Any:
    """Read a slide's overview and tissue as the report does."""
    folder = f"{patches_folder(made.config.tiling)}/{record.name}"
    parts = [Part(**part) for part in record.info["pictures"]]
    return [image.tobytes() for image in decode_overview(*(made.store.read_part(folder, part) for part in parts))]


def bundle_of(made: TrainedStore, run: str) -> Any:
    """Load a bundle, as values."""
    bundle = load_bundle(run, made.store)
    values: Mapping[str, Any] = vars(bundle)
    rest = {key: value for key, value in values.items() if key not in {"head", "config"}}
    return rest, bundle.config.model_dump(), _bytes(bundle.head.state_dict())


def _bytes(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    return {key: value.detach().cpu().numpy().tobytes() for key, value in state.items()}
