"""Slides to predictions and maps: actors that load the bundle once and judge one slide at a time."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distmil.bags import BagEntry, open_source
from distmil.bundles import Bundle, load_bundle, with_bundle
from distmil.cohort import Cohort, Slide
from distmil.config import Config
from distmil.configfile import build_config, per_job_keys
from distmil.encoders import EncoderSpec, prepare_encoder
from distmil.errors import ConfigError, StorageError
from distmil.maps import draw_maps
from distmil.prediction import patch_table, predictions_folder, slide_row, write_parquet, write_slide_table
from distmil.scoring import score_bag
from distmil.stages.inputs import check_any, open_cohort
from distmil.stages.prepare import Prepared, prepare
from distmil.stages.runtime import Job, Row, calm_worker, stream_actors, wants_gpu
from distmil.storage import Record, Store, resolve_root

FORMAT_VERSION = 1


def run(job: Job) -> dict[str, Any]:
    """Judge slides with a trained bundle: scores of patches and slides, and maps. Labels are not needed."""
    inner, bundle, name = open_bundle(job)
    split = job.config.prediction.split
    cohort = open_cohort(inner, needs_labels=False, needs_splits=split is not None)
    slides = check_any(cohort.of_split(split) if split else list(cohort.slides), split)
    made = judge_slides(inner, cohort, slides, bundle, place=bundle_place(job), run=name, with_labels=False)
    return {"run": name, **made.paths(job)}


@dataclass(frozen=True)
class Predictions:
    """What a prediction run made."""

    run: str
    rows: dict[str, Row]
    prepared: Prepared
    spec: EncoderSpec

    @property
    def folder(self) -> str:
        """Return the run's folder in the store."""
        return predictions_folder(self.run)

    def paths(self, job: Job) -> dict[str, Any]:
        """Return where everything is, and how the slides ended, for the job's JSON line."""
        maps = {"maps": job.store.path(f"{self.folder}/maps")} if job.config.prediction.maps else {}
        return {"predictions": job.store.path(self.folder), **maps, "slides": self.prepared.statuses}


def open_bundle(job: Job) -> tuple[Job, Bundle, str]:
    """Return the job with the bundle's settings, the bundle, and the output's name.

    Raises:
        ConfigError: If no bundle is given, or the job sets one of its keys to something else.
        BundleError: If it cannot be loaded.
    """
    bundle = load_bundle(bundle_place(job), job.store)
    config = with_bundle(job.config, bundle, per_job=per_job_keys())
    return replace(job, config=config), bundle, job.config.prediction.run or bundle.run


def bundle_place(job: Job) -> str:
    """Return the bundle's folder, absolute, or its run's name. Raises: ConfigError if none is given."""
    place = job.config.prediction.model
    if place is None:
        raise ConfigError("prediction.model: set it to a bundle's folder, or to the name of a run")
    if "://" in place:
        return resolve_root(place, key="prediction.model")
    folder = Path(place).expanduser()
    return str(folder.resolve()) if folder.is_dir() else place


def judge_slides(
    job: Job, cohort: Cohort, slides: Sequence[Slide], bundle: Bundle, *, place: str, run: str, with_labels: bool
) -> Predictions:
    """Judge slides with a bundle; what an earlier run of the same name made of the same inputs is kept.

    Args:
        job: Its configuration already holds the bundle's tiling, encoder, model and classes.
        cohort: The manifest.
        slides: The slides of it to judge.
        bundle: The model.
        place: The bundle's folder or name, for the workers.
        run: Name of the output.
        with_labels: Make label tables too, to judge the predictions by.

    Raises:
        TooManyBadSlides: If too few slides can be used.
        StorageError: If the store cannot be written.
    """
    spec = prepare_encoder(job.config.encoder, job.store, state=bundle.encoder_state)
    prepared = prepare(job, slides, spec, with_labels=with_labels)
    by_id = {slide.slide_id: slide for slide in slides}
    done = {entry.slide_id: _finished(job, entry, by_id[entry.slide_id], bundle, run) for entry in prepared.entries}
    rows = {slide_id: dict(record.info) for slide_id, record in done.items() if record}
    items = [_item(entry, by_id[entry.slide_id], prepared) for entry in prepared.entries if entry.slide_id not in rows]
    if items:
        job.console.note(f"judging {len(items)} slides ({len(rows)} are done)")
        is_gpu = wants_gpu(job.config)
        arguments = {
            "place": place, "root": job.store.root, "run": run, "config": json.dumps(job.config.model_dump()),
            "is_gpu": is_gpu,
        }  # fmt: skip
        with job.console.progress("judge", len(items), "slides") as advance:
            for row in stream_actors(items, _Judge, arguments, num_gpus=1 if is_gpu else 0):
                advance()
                if row["fatal"]:
                    raise StorageError(row["fatal"])
                rows[row["slide_id"]] = json.loads(row["row"])
    ordered = {entry.slide_id: rows[entry.slide_id] for entry in prepared.entries}
    for entry in prepared.entries:
        ordered[entry.slide_id]["label"] = None if entry.label is None else cohort.classes[entry.label]
    write_slide_table(job.store, run, list(ordered.values()), cohort.classes)
    return Predictions(run, ordered, prepared, spec)


def _item(entry: BagEntry, slide: Slide, prepared: Prepared) -> Row:
    info = prepared.patches[slide.slide_id].info
    return {
        "entry": json.dumps(entry.to_json()),
        "slide": json.dumps(asdict(slide)),
        "size": json.dumps([info["width_px"], info["height_px"]]),
    }


def _record_name(run: str, slide_id: str) -> str:
    return f"{predictions_folder(run)}/records/{slide_id}.json"


def _key(entry: BagEntry, slide: Slide, config: Config, bundle: Bundle) -> dict[str, Any]:
    """Return what a slide's predictions depend on."""
    return {
        "bundle": bundle.digest,
        "parts": [part.sha256 for part in entry.parts],
        "slide_score": config.prediction.slide_score,
        "maps": [config.prediction.map_px, slide.annotation_path is not None] if config.prediction.maps else None,
        "format_version": FORMAT_VERSION,
    }


def _finished(job: Job, entry: BagEntry, slide: Slide, bundle: Bundle, run: str) -> Record | None:
    record = job.store.read_record(_record_name(run, entry.slide_id))
    return record if record is not None and record.key == _key(entry, slide, job.config, bundle) else None


class _Judge:
    """An actor: one loaded bundle, one slide at a time."""

    def __init__(self, *, place: str, root: str, run: str, config: str, is_gpu: bool) -> None:
        calm_worker()
        self._store = Store(root)
        self._config = build_config(json.loads(config))
        self._bundle = load_bundle(place, self._store)
        self._run = run
        self._device = torch.device("cuda" if is_gpu and torch.cuda.is_available() else "cpu")
        self._bundle.head.to(self._device)

    def __call__(self, row: Row) -> Row:
        entry, slide = BagEntry.from_json(json.loads(row["entry"])), Slide(**json.loads(row["slide"]))
        width, height = json.loads(row["size"])
        try:
            made = self._judge(entry, slide, (width, height))
        except StorageError as error:
            return {"slide_id": entry.slide_id, "row": "", "fatal": str(error)}
        return {"slide_id": entry.slide_id, "row": json.dumps(made), "fatal": ""}

    def _judge(self, entry: BagEntry, slide: Slide, size: tuple[int, int]) -> Row:
        """Score a slide, write its tables and maps, and commit them."""
        source, places = open_source(self._store, entry)
        scores = score_bag(self._bundle.head, source, self._embed, top_k=self._config.bags.top_k)
        classes, settings = self._bundle.classes, self._config.prediction
        row = slide_row(
            scores,
            slide_id=entry.slide_id,
            label=entry.label,
            classes=classes,
            slide_score=settings.slide_score,
            threshold=self._bundle.slide_threshold,
        )
        folder = predictions_folder(self._run)
        patches = patch_table(scores, places, classes=classes, threshold=self._bundle.patch_threshold)
        write_parquet(self._store, f"{folder}/patches/{entry.slide_id}.parquet", patches)
        if settings.maps:
            subtitle = f"{settings.slide_score} {row['probability']:.3f}: {row['predicted']}"
            subtitle += f", labelled {row['label']}" if row["label"] else ""
            maps = draw_maps(
                slide, patches, size=size, subtitle=subtitle, max_px=settings.map_px, reader=self._config.tiling.reader
            )
            for name, png in maps:
                self._store.write(f"{folder}/maps/{entry.slide_id}_{name}.png", png)
        key = _key(entry, slide, self._config, self._bundle)
        self._store.write_record(_record_name(self._run, entry.slide_id), Record(entry.slide_id, key, info=row))
        return row

    def _embed(self, patches: Any) -> torch.Tensor:
        return torch.as_tensor(patches, device=self._device).float()
