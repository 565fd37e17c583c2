"""Slides to predictions and maps: actors that load the bundle once and predict one slide at a time."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from distmil.bags.bag import BagEntry
from distmil.cohort import Cohort, Slide
from distmil.config.root import Config
from distmil.defects import attempt
from distmil.encoders.registry import EncoderSpec
from distmil.errors import BundleError, StorageError
from distmil.evaluation.words import counts_to_look_at
from distmil.inference.bundle import Bundle, load_bundle, with_bundle
from distmil.inference.bundle_place import BUNDLE_VERSION
from distmil.inference.predictor import (
    Finished,
    Inputs,
    SlidePredictor,
    check_calibrated,
    keep_slides,
    shown_threshold,
    temperature_of,
)
from distmil.inference.question import claim_question, default_name, make_question
from distmil.inference.shift import shift_doubts, size_doubts
from distmil.inference.tables import REPORT, RESULTS, Row, predictions_folder, write_slide_table
from distmil.labels.slide_outlines import annotation_version
from distmil.pipeline.cluster import check_gpus, map_slides, wants_gpu
from distmil.pipeline.exchange.settle import check_bundle, check_settings
from distmil.pipeline.job import Job, bundle_place, check_any, check_bad_fraction, open_cohort, open_encoder
from distmil.pipeline.prepare import Prepared, prepare
from distmil.pipeline.results import show_record, write_results
from distmil.recording.prediction import PredictionRecord
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.training.learner import embed

CHECKED_AT_ONCE = 16
"""Slides whose files are compared with their checksums at the same time; hashing leaves other threads alone."""


def run(job: Job) -> dict[str, Any]:
    """Predict slides with a trained bundle: scores of patches and slides, and maps. Labels are not needed."""
    inner, bundle = open_bundle(job)
    split = job.config.prediction.split
    cohort = open_cohort(inner, needs_labels=False, needs_splits=split is not None)
    check_gpus(inner.config)
    slides = check_any(cohort.of_split(split) if split else list(cohort.slides), split)
    name = claim_output(job, bundle, slides)
    record = PredictionRecord.of("predict", job.config, job.store, name)
    with record.opened(inner.config, bundle, cohort, slides):
        made = predict_slides(inner, cohort, slides, bundle, place=bundle_place(job), run=name, with_labels=False)
        results = write_results(inner, made.folder, made.rows, slides, cohort, threshold=made.shown_threshold)
        record.complete(results, {})
    show_record(job, record.tracker)
    answer = {"run": name, **made.paths(job), **counts_to_look_at(results)}
    return answer | {"tracking": record.tracker.place}


@dataclass(frozen=True)
class Predictions:
    """What a prediction run made."""

    run: str
    rows: dict[str, Row]
    tables: dict[str, Part]
    """Patch tables by slide, with their checksums."""
    prepared: Prepared
    spec: EncoderSpec
    threshold: float
    """Of the read-out that counts."""
    shown_threshold: float
    """Of the probability, which may be calibrated."""
    temperature: float | None
    """Of the read-out that counts, None where the bundle has none."""
    patch_threshold: float

    @property
    def folder(self) -> str:
        """Return the run's folder in the store."""
        return predictions_folder(self.run)

    def paths(self, job: Job) -> dict[str, Any]:
        """Return where everything is, and how the slides ended, for the job's JSON line."""
        maps = {"maps": job.store.path(f"{self.folder}/maps")} if job.config.prediction.maps else {}
        results = job.store.path(f"{self.folder}/{RESULTS}")
        return {
            "predictions": job.store.path(self.folder),
            **maps,
            "results": results,
            "slides": self.prepared.statuses,
        }


def open_bundle(job: Job) -> tuple[Job, Bundle]:
    """Return the job with the bundle's settings, and the bundle.

    Raises:
        ConfigError: If no bundle is given, the job sets one of its keys to something else, or the bundle has no
            temperature where it is asked for.
        BundleError: If it cannot be loaded.
    """
    bundle = load_bundle(bundle_place(job), job.store)
    if bundle.format_version < BUNDLE_VERSION:
        job.console.note(
            f"the bundle {bundle.run} is of an earlier distmil: no checksum protects its settings and thresholds; "
            "the command that trained it writes it again with one"
        )
    check_settings(job.config, "predict")
    check_calibrated(job.config.prediction, bundle)
    inner = replace(job, config=with_bundle(job.config, bundle))
    check_bundle(inner, bundle)
    bundle.check_gives(job.config.prediction.slide_score)
    return inner, bundle


def claim_output(job: Job, bundle: Bundle, slides: Sequence[Slide]) -> str:
    """Return the output's name, and note there what it answers. Raises: ConfigError if it answers something else."""
    question = make_question(bundle.digest, slides)
    name = job.config.prediction.run or default_name(bundle_place(job), question)
    claim_question(job.store, name, question)
    return name


def predict_slides(
    job: Job, cohort: Cohort, slides: Sequence[Slide], bundle: Bundle, *, place: str, run: str, with_labels: bool
) -> Predictions:
    """Predict slides with one bundle; see ``predict_out_of_fold``.

    Args:
        job: Its configuration already holds the bundle's tiling, encoder, model and classes.
        cohort: The manifest.
        slides: Those of its slides to predict.
        bundle: The model.
        place: The bundle's folder or name, for the workers.
        run: Name of the output.
        with_labels: Make label tables too, to evaluate the predictions.
    """
    return predict_out_of_fold(
        job, cohort, [FoldSlides(slides, bundle, place)], bundle, run=run, with_labels=with_labels
    )


@dataclass(frozen=True)
class FoldSlides:
    """Slides and the bundle that predicts them."""

    slides: Sequence[Slide]
    bundle: Bundle
    place: str
    """The bundle's folder or name, for the workers."""


def predict_out_of_fold(
    job: Job, cohort: Cohort, parts: Sequence[FoldSlides], bundle: Bundle, *, run: str, with_labels: bool = True
) -> Predictions:
    """Predict each part of the slides with its own bundle, as one run, keeping whole results of these inputs.

    Args:
        job: Its configuration already holds the bundles' tiling, encoder, model and classes.
        cohort: The manifest.
        parts: The slides, each once, and bundles with the same encoder and thresholds.
        bundle: By whose thresholds the predictions are read.
        run: Name of the output.
        with_labels: Make label tables too.

    Raises:
        BundleError: If its network does not take what its encoder gives.
        TooManyBadSlides: If too few slides can be used.
        StorageError: If the store cannot be written.
    """
    spec = open_encoder(job, state=bundle.encoder_state)
    if bundle.embedding_dim != spec.dimension:
        raise BundleError(
            f"the bundle takes embeddings of width {bundle.embedding_dim}, its encoder gives {spec.dimension}"
        )
    prepared = prepare(job, [slide for part in parts for slide in part.slides], spec, with_labels=with_labels)
    records: dict[str, Record] = {}
    for part in parts:
        ids = {slide.slide_id for slide in part.slides}
        own = replace(prepared, entries=[entry for entry in prepared.entries if entry.slide_id in ids])
        records |= _predict_all(job, own, part.slides, part.bundle, place=part.place, run=run)
    prepared = _without_failed(job, prepared, records)
    rows = {}
    for entry in prepared.entries:
        label = None if entry.label is None else cohort.classes[entry.label]
        rows[entry.slide_id] = {**records[entry.slide_id].info, "label": label}
    keep_slides(job.store, run, rows)
    write_slide_table(job.store, run, list(rows.values()), cohort.classes)
    tables = {slide_id: records[slide_id].parts[0] for slide_id in rows}
    slide_score = job.config.prediction.slide_score
    return Predictions(
        run,
        rows,
        tables,
        prepared,
        spec,
        threshold=bundle.slide_thresholds[slide_score],
        shown_threshold=shown_threshold(bundle, slide_score, temperature=temperature_of(bundle, job.config.prediction)),
        temperature=bundle.temperatures.get(slide_score),
        patch_threshold=bundle.patch_threshold,
    )


def _predict_all(
    job: Job, prepared: Prepared, slides: Sequence[Slide], bundle: Bundle, *, place: str, run: str
) -> dict[str, Record]:
    """Return the record of every slide's scores, or of its failure, the doubts about its maps in its info."""
    by_id = {slide.slide_id: slide for slide in slides}

    def look(entry: BagEntry) -> tuple[SlidePredictor, Finished]:
        slide, patches = by_id[entry.slide_id], prepared.patches[entry.slide_id]
        annotation = annotation_version(slide) if job.config.prediction.maps else None
        predictor = SlidePredictor(entry, slide, patches, annotation, bundle.digest, job.config, job.store, run)
        return predictor, predictor.find()

    slide_score = job.config.prediction.slide_score
    with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
        looked = list(pool.map(look, prepared.entries))
    records = {
        predictor.slide.slide_id: _with_doubts(found.scores, found.maps, bundle, slide_score=slide_score)
        for predictor, found in looked
        if found.scores
    }
    todo = [(predictor.inputs, found.scores) for predictor, found in looked if not predictor.is_done(found)]
    noun = job.outcomes.noun
    if damaged := sum(found.is_damaged for _, found in looked):
        job.console.note(f"predictions of {damaged} {noun}s are gone or damaged, and are made again")
    if todo:
        job.store.delete(f"{predictions_folder(run)}/{REPORT}")
        job.console.note(f"predicting {len(todo)} {noun}{'s' * (len(todo) != 1)} ({len(looked) - len(todo)} are done)")
        is_gpu = wants_gpu(job.config)
        arguments = {
            "config": job.config, "store": job.store, "place": place, "run": run, "digest": bundle.digest,
            "is_gpu": is_gpu,
        }  # fmt: skip
        work = sum(entry.num_patches for (entry, *_), _ in todo)
        with job.console.progress("predict", len(todo), f"{noun}s", work=work, work_unit="patches") as advance:
            for ((entry, *_), _), record in map_slides(todo, _Predictor, num_gpus=int(is_gpu), **arguments):
                advance(entry.num_patches)
                records[entry.slide_id] = record
    return records


def _without_failed(job: Job, prepared: Prepared, records: dict[str, Record]) -> Prepared:
    """Leave out the slides that have no scores, and show why. Raises: TooManyBadSlides."""
    check_bad_fraction(job, records)
    failed = {slide_id: record.status for slide_id, record in records.items() if not record.ok}
    statuses = Counter(prepared.statuses) + Counter(failed.values())
    statuses.subtract({"ok": len(failed)})
    entries = [entry for entry in prepared.entries if entry.slide_id not in failed]
    return replace(prepared, entries=entries, statuses=dict(+statuses)) if failed else prepared


def _with_doubts(scores: Record, maps: Record | None, bundle: Bundle, *, slide_score: str) -> Record:
    info = scores.info
    doubts = [
        *shift_doubts(info["shift"], bundle.reach, num_patches=info["num_patches"]),
        *size_doubts(info["num_patches"], bundle.usual_patches, slide_score=slide_score),
        *(maps.info["doubts"] if maps else ()),
    ]
    return replace(scores, info={**info, "doubts": doubts})


class _Predictor:
    """An actor: one loaded bundle, one slide at a time."""

    def __init__(self, *, config: Config, store: Store, place: str, run: str, digest: str, is_gpu: bool) -> None:
        self._config, self._store, self._run, self._digest = config, store, run, digest
        self._bundle = load_bundle(place, store)
        self._device = torch.device("cuda" if is_gpu and torch.cuda.is_available() else "cpu")
        for head in self._bundle.heads:
            head.to(self._device)

    def __call__(self, item: tuple[Inputs, Record | None]) -> Record:
        """Make what is missing of a slide, and return the record of its scores or of its failure."""
        inputs, scores = item
        predictor = SlidePredictor(*inputs, self._digest, self._config, self._store, self._run)
        slide = predictor.slide
        return attempt(
            lambda: self._predict(predictor, scores),
            slide_id=slide.slide_id,
            hidden=(slide.path, slide.annotation_path),
        )

    def _predict(self, predictor: SlidePredictor, scores: Record | None) -> Record:
        if self._bundle.digest != self._digest:
            raise StorageError("the bundle became another one while the job ran; run the same command again")
        scores = scores or predictor.score(self._bundle, lambda patches: embed(patches, None, self._device))
        maps = predictor.draw(scores, self._bundle) if self._config.prediction.maps else None
        return _with_doubts(scores, maps, self._bundle, slide_score=self._config.prediction.slide_score)
