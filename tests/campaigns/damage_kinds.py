"""Each kind of stored file, and how the jobs read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec, load_trainable
from distmil.errors import DistmilError
from distmil.evaluation.predictions import Rules, evaluate_predictions
from distmil.inference.bundle_place import bundle_folder
from distmil.inference.tables import predictions_folder
from distmil.pipeline.tuning.plan import SearchPlan, read_trials, write_trial
from distmil.search.trial import Trial
from distmil.storage.local_files import keep_copy
from distmil.storage.records import Part, Record
from distmil.tiling.shards import grid_of, patches_folder
from distmil.tiling.tiler import SlideTiler
from distmil.training.checkpoints import load_checkpoint
from distmil.training.run import new_learner
from distmil.training.run_files import checkpoint_folder, run_file
from tests.campaigns.trained_store import (
    RUNS,
    TrainedStore,
    bundle_of,
    embeddings_of,
    labels_of_bag,
    pictures_of,
)

MADE_AGAIN = "made again"
"""What a reader returns where the job would make the file again."""
Reader = Callable[[], Any]


@dataclass(frozen=True)
class Kind:
    """Files of one kind, each with what reads it as a job does."""

    name: str
    files: Sequence[tuple[Path, Reader]]


def embeddings(made: TrainedStore) -> Kind:
    """Embedding shards, read by training and prediction."""
    return Kind("embedding shards", [
        (made.path(name), partial(embeddings_of, made, entry)) for entry in made.entries for name, _ in entry.files
    ])  # fmt: skip


def grids(made: TrainedStore) -> Kind:
    """Grids, read by label making and the report."""
    folder = patches_folder(made.config.tiling)

    def read(record: Record) -> Any:
        return grid_of(made.store, made.config.tiling, record).to_pylist()

    return Kind("grids", [
        (made.path(f"{folder}/{name}/grid.arrow"), partial(read, record)) for name, record in made.patches.items()
    ])  # fmt: skip


def labels(made: TrainedStore) -> Kind:
    """Label tables, read by training and evaluation."""
    return Kind("label tables", [
        (made.path(str(entry.labels)), partial(labels_of_bag, made, entry)) for entry in made.entries
    ])  # fmt: skip


def patches(made: TrainedStore) -> Kind:
    """Patch shards, read by embedding."""
    folder = patches_folder(made.config.tiling)
    return Kind("patch shards", [
        (made.path(f"{folder}/{name}/{part.name}"), partial(_embed_again, made, name, part))
        for name, record in made.patches.items() for part in record.parts
    ])  # fmt: skip


class _Means:
    """An encoder of mean colours."""

    def embed(self, images_NHWC: np.ndarray) -> np.ndarray:
        return images_NHWC.mean(axis=(1, 2)).astype(np.float32)


def _embed_again(made: TrainedStore, slide_id: str, part: Part) -> Any:
    embedder = made.embedder(slide_id, spec=EncoderSpec("means", "1", 3, None))
    try:
        return embedder.write_shard(part, _Means())
    finally:
        made.store.delete_folder(embedder.folder)


def pictures(made: TrainedStore) -> Kind:
    """Overviews, read by the report."""
    folder = patches_folder(made.config.tiling)
    return Kind("overviews", [
        (made.path(f"{folder}/{name}/{part['name']}"), partial(pictures_of, made, record))
        for name, record in made.patches.items() for part in record.info["pictures"]
    ])  # fmt: skip


def weights(made: TrainedStore) -> Kind:
    """Encoder weights, read by embedding and by the training of encoders."""

    def read(spec: EncoderSpec) -> Any:
        return {key: value.numpy().tobytes() for key, value in load_trainable(spec, made.store).state_dict().items()}

    return Kind("encoder weights", [(made.path(str(spec.weights_file)), partial(read, spec)) for spec in made.weights])


def records(made: TrainedStore) -> Kind:
    """Commit records of patches, embeddings and labels: what is not done is made again."""

    def read(owner: Any) -> Any:
        found = owner.finished()
        return MADE_AGAIN if found is None else found.to_json()

    owners = [
        owner
        for slide in made.slides
        for owner in (
            SlideTiler(slide, made.config.tiling, made.store),
            made.embedder(slide.slide_id),
            made.labeller(slide),
        )
    ]
    return Kind("commit records", [(made.path(owner.committed.record_name), partial(read, owner)) for owner in owners])


def plans(made: TrainedStore) -> Kind:
    """Plans of tiling in progress."""
    files: list[tuple[Path, Reader]] = []
    config = made.config.tiling.model_copy(update={"patch_px": 40})
    for slide in made.slides:
        tiler = SlideTiler(slide, config, made.store)
        tiler.plan()
        files.append((made.path(f"{tiler.folder}/plan.json"), partial(tiler.write_chunk, 0)))
        made.path(f"{tiler.folder}/part-00000.json").unlink(missing_ok=True)
    return Kind("plans of tiling", files)


def receipts(made: TrainedStore) -> Kind:
    """Receipts of embedding in progress."""
    files: list[tuple[Path, Reader]] = []
    for slide in made.slides:
        embedder = made.embedder(slide.slide_id, spec=EncoderSpec("means", "2", 3, None))
        part = embedder.patches.parts[0]
        embedder.write_shard(part, _Means())
        receipt = made.path(f"{embedder.folder}/{part.name.replace('.parquet', '.json')}")
        files.append((receipt, partial(embedder.write_shard, part, _Means())))
    return Kind("receipts", files)


def checkpoints(made: TrainedStore) -> Kind:
    """Checkpoints and their record, read by a training that goes on."""

    def read(run: str) -> Any:
        learner = new_learner(made.config, made.spec, made.store, device=torch.device("cpu"))
        history = load_checkpoint(made.store, run, learner)
        if history is None:
            return "it would begin again"
        tensors = {key: value.numpy().tobytes() for key, value in learner.head.state_dict().items()}
        return history.rows, learner.steps_done, tensors, str(learner.optimizer.state_dict())

    files: list[tuple[Path, Reader]] = []
    for run in RUNS:
        folder = made.path(checkpoint_folder(run))
        paths = [*sorted(folder.glob("epoch-00001.*")), folder / "latest.json"]
        files += [(path, partial(read, run)) for path in paths]
    return Kind("checkpoints", files)


def claims(made: TrainedStore) -> Kind:
    """Claims of runs: a training with other settings is refused, whatever became of the claim."""

    def read(run: str) -> Any:
        try:
            made.claim(run, lr=0.77, seed=1234)
        except DistmilError:
            return "refused"
        return "a training with other settings was accepted"

    return Kind("run records: claims", [(made.path(run_file(run, "run")), partial(read, run)) for run in RUNS])


def listings(made: TrainedStore) -> Kind:
    """Lists of a run's slides, read by its workers."""

    def read(run: str) -> Any:
        return made.store.read_checked(run_file(run, "cohort"), owner=run)

    return Kind("run records: slides", [(made.path(run_file(run, "cohort")), partial(read, run)) for run in RUNS])


def trials(made: TrainedStore) -> Kind:
    """Records of a search's trials, from which a search goes on."""
    plan = SearchPlan("search", made.store.root, Config(), made.spec, "slide_auc", False, [], [], 0, claim="made")
    files: list[tuple[Path, Reader]] = []
    for top_k in (1, 2, 4):
        rows = [{"val_slide_auc": 0.5 + epoch / 10} for epoch in range(4)]
        record = Trial({"bags.top_k": top_k}, 0, False, top_k, status="finished", rows=rows, claim="made")
        write_trial(plan, record)
        files.append((made.path(plan.record_file(record.key)), lambda: read_trials(plan)))
    return Kind("run records: trials", files)


def bundles(made: TrainedStore) -> Kind:
    """Files of a bundle."""
    files: list[tuple[Path, Reader]] = []
    for run in RUNS:
        paths = sorted(path for path in made.path(bundle_folder(run)).rglob("*") if path.is_file())
        files += [(path, partial(bundle_of, made, run)) for path in paths]
    return Kind("bundles", files)


def predictions(made: TrainedStore) -> Kind:
    """Predictions, kept or made again by the same `predict`, and read by evaluation."""

    def read(run: str) -> Any:
        rows, tables = {}, {}
        for predictor in made.predictors(run):
            found = predictor.find()
            if not predictor.is_done(found) or found.scores is None:
                return MADE_AGAIN
            rows[found.scores.name], tables[found.scores.name] = dict(found.scores.info), found.scores.parts[0]
        classes = made.cohort.classes
        metrics = evaluate_predictions(
            made.store,
            run,
            rows,
            made.entries,
            Rules(classes=classes, slide_score="bag", threshold=0.5, draws=20),
            tables=tables,
            patients={entry.slide_id: entry.slide_id for entry in made.entries},
            sites={entry.slide_id: None for entry in made.entries},
            lesions_of=lambda slide_id: None,
        )
        return rows, metrics

    files: list[tuple[Path, Reader]] = []
    for run in RUNS:
        paths = sorted(path for path in made.path(predictions_folder(run)).rglob("*") if path.is_file())
        files += [(path, partial(read, run)) for path in paths]
    return Kind("predictions", files)


def copies(made: TrainedStore) -> Kind:
    """Copies of a far store's files in this machine's cache, which are fetched again."""

    def read(part: Part, path: Path) -> Any:
        return keep_copy(part.sha256, part.size_bytes, path.read_bytes).read_bytes()

    files: list[tuple[Path, Reader]] = []
    for name, part in (file for entry in made.entries for file in entry.files):
        path = keep_copy(part.sha256, part.size_bytes, made.path(name).read_bytes)
        files.append((path, partial(read, part, made.path(name))))
    return Kind("cached copies", files)


KINDS: dict[str, Callable[[TrainedStore], Kind]] = {
    "embeddings": embeddings,
    "grids": grids,
    "labels": labels,
    "patches": patches,
    "pictures": pictures,
    "weights": weights,
    "records": records,
    "plans": plans,
    "receipts": receipts,
    "checkpoints": checkpoints,
    "claims": claims,
    "listings": listings,
    "trials": trials,
    "bundles": bundles,
    "predictions": predictions,
    "copies": copies,
}
