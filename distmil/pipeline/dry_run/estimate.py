"""A job's dry run: what would be done, how much of it, and how long it would take here. Nothing is written."""

import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distmil.cohort import Cohort, Slide, read_cohort
from distmil.demo.cohort import make_cohort
from distmil.errors import ConfigError
from distmil.pace import in_words
from distmil.pipeline.dry_run import importing
from distmil.pipeline.dry_run.pretraining import pretrain_stage
from distmil.pipeline.job import Job, open_cohort
from distmil.preflight.amounts import file_sizes
from distmil.preflight.checks import WITH_LABELS, held_out, needs_of, slides_of
from distmil.preflight.disk import free_bytes, in_bytes
from distmil.preflight.looks import Look, Task, look_at
from distmil.preflight.stages import (
    COLUMNS,
    RECORD_S,
    Machine,
    Stage,
    Work,
    embed_stage,
    label_stage,
    patches_by_slide,
    predict_stage,
    report_stage,
    search_stage,
    start_stage,
    tile_stage,
    train_stage,
)
from distmil.preflight.timing import Calls, answers_within, idle_clock, spread
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.tiling.tiler import SlideTiler

TRIALS = 8
"""Slides that patches are cut of as a trial."""
TRIAL_PATCHES = 64
LOOK_S = 12.0
RECORDS_S = 20.0
"""Longest look for finished slides."""


def run(job: Job, name: str, module: str) -> dict[str, Any]:
    """Estimate a job, show its stages, and return them for the JSON line.

    Args:
        job: The job.
        name: The job's name.
        module: The job's module, whose imports are the measure of a start here.

    Raises: ConfigError if the job exports, or works on features of other tools but to import them.
    """
    if name in {"export", "view"}:
        raise ConfigError(f"--dry-run estimates work of hours, and {name} takes seconds a slide; leave it out")
    if name == "import_features":
        return importing.run(job)
    if job.config.features.folder is not None or name.endswith("_features"):
        raise ConfigError(
            "--dry-run estimates work on slides; with features only import_features has one; leave it out"
        )
    started = idle_clock()
    importlib.import_module(module)
    start_s = idle_clock() - started
    with tempfile.TemporaryDirectory(prefix="distmil-", ignore_cleanup_errors=True) as folder:
        stages = _Estimate(job, name, Path(folder), start_s).stages
    total_s, num_bytes = sum(stage.seconds for stage in stages), sum(stage.num_bytes for stage in stages)
    rows = [stage.row(f"{job.outcomes.noun}s") for stage in stages]
    job.console.table(f"dry run of {name}: nothing is written", COLUMNS, rows)
    free = free_bytes(job.store.root)
    room = "" if free is None else f", {in_bytes(free)} are free"
    job.console.note(f"about {in_words(total_s)} on an idle machine, and {in_bytes(num_bytes)}{room}")
    if (load := os.getloadavg()[0]) > (os.cpu_count() or 1):
        job.console.note(f"note: this machine is busy (load {load:.0f} on {os.cpu_count()} CPUs); now it takes longer")
    return {"dry_run": True, "stages": [asdict(stage) for stage in stages], "seconds": total_s, "bytes": num_bytes}


@dataclass(frozen=True)
class _Estimate:
    """The steps of an estimate."""

    job: Job
    name: str
    folder: Path
    start_s: float

    @cached_property
    def _opened(self) -> tuple[Job, Any]:
        """Open the job's bundle where it has one, and return the job with the bundle's settings."""
        if self.name not in {"evaluate", "predict"}:
            return self.job, None
        found: tuple[Job, Any] = importlib.import_module("distmil.pipeline.predict").open_bundle(self.job)
        return found

    @cached_property
    def _cohort(self) -> Cohort:
        job = self._opened[0]
        needs, config = needs_of(self.name, job.config), job.config.cohort
        if config.manifest is None and config.synthetic:
            manifest = Path(job.store.path(f"synthetic/{config.synthetic}/manifest.csv"))
            if not manifest.exists():  # made for the estimate, and thrown away
                manifest = make_cohort(self.folder / "synthetic", num_slides=config.synthetic)
            return read_cohort(config, manifest=manifest, **needs)
        return open_cohort(job, **needs)

    @cached_property
    def _machine(self) -> Machine:
        """Find the cores and GPUs: the cluster's where the job joins one, else this machine's."""
        cluster = importlib.import_module("distmil.pipeline.cluster")
        if os.environ.get("RAY_ADDRESS"):
            cluster.start_ray()
            found = cluster.cluster_resources()
            return Machine(int(found.get("CPU", 1)), int(found.get("GPU", 0)), self.start_s)
        gpus = importlib.import_module("torch").cuda.device_count() if self.name != "tile" else 0
        return Machine(os.cpu_count() or 1, gpus, self.start_s)

    @cached_property
    def _work(self) -> Work:
        """Look for finished slides, and at some of the others."""
        config, store = self._opened[0].config, self.job.store
        slides = slides_of(self._cohort, config, job=self.name)
        tiled = _records(slides, lambda slide: SlideTiler(slide, config.tiling, store).finished())
        sizes = file_sizes(slides)
        todo = sorted(
            (slide for slide in slides if slide.slide_id not in tiled), key=lambda slide: sizes.get(slide.slide_id, 0)
        )
        with_labels = self.name in WITH_LABELS
        tasks = [
            Task(
                slide, TRIAL_PATCHES, str(self.folder / f"{number}.parquet"),
                with_annotation=with_labels and slide.annotation_path is not None,
            )
            for number, slide in enumerate(spread(todo, TRIALS))
        ]  # fmt: skip
        looks: list[Look] = look_at(tasks, config, store, limit_s=LOOK_S, at_once=2) if tasks else []
        return Work(slides, tiled, patches_by_slide(slides, tiled, looks, sizes), looks)

    @property
    def stages(self) -> list[Stage]:
        """Estimate every stage of the job, in order."""
        stages = [start_stage(self._machine), tile_stage(self._work, self._machine)]
        if self.name == "tile":
            return [*stages, report_stage(self._work, self._machine)]
        if self.name == "pretrain":
            return [*stages, self._label_stage(), pretrain_stage(self.job, self._work, self._machine, self.folder)]
        rates = importlib.import_module("distmil.preflight.rates")
        registry = importlib.import_module("distmil.encoders.registry")
        job, bundle = self._opened
        scratch = Store(str(self.folder))
        spec = registry.prepare_encoder(job.config.encoder, scratch, state=bundle and bundle.encoder_state)
        stages += self._embed_stages(rates, spec, scratch)
        if self.name in WITH_LABELS:
            stages.append(self._label_stage())
        if self.name in {"train", "tune"}:
            stages.append(self._learning_stage(rates, spec, scratch))
        if self.name in {"train", "evaluate", "predict"}:
            stages += self._predict_stages(rates, spec, bundle)
        return stages

    def _embed_stages(self, rates: Any, spec: Any, scratch: Store) -> list[Stage]:
        """Estimate the embedding, and that of views."""
        config, work, machine = self._opened[0].config, self._work, self._machine
        if config.encoder.trainable and self.name in {"train", "tune"}:
            return []
        is_gpu = spec.weights_file is not None and machine.gpus > 0 and config.training.use_gpu is not False
        files = [str(path) for path in sorted(self.folder.glob("*.parquet"))]
        device = "cuda" if is_gpu else "cpu"
        spec, encoder, choice_s = self._with_engine(rates, spec, scratch, files, device=device)
        batch_size = min((each.batch_size for each in spec.engines), default=config.encoder.patches_per_pass)
        patch_s = self._one_thread(lambda: rates.time_embedding(files, encoder, batch_size=batch_size))
        embedder = importlib.import_module("distmil.encoders.embedder").SlideEmbedder

        def finished(slide: Slide, view: int = 0) -> Record | None:
            record = work.tiled.get(slide.slide_id)
            if record is None or not record.ok:
                return record
            found: Record | None = embedder(record, config, spec, self.job.store, view).finished()
            return found

        arguments: dict[str, Any] = {"patch_s": patch_s or 0.0, "dimension": spec.dimension, "is_gpu": is_gpu}
        done = _records(work.slides, finished)
        todo = [slide for slide in work.slides if slide.slide_id not in done]
        stage = embed_stage("embed", work, todo, len(done), machine, **arguments)
        stages = [replace(stage, seconds=stage.seconds + choice_s) if todo else stage]
        if config.encoder.views and self.name in {"train", "tune"}:
            views = config.encoder.views
            learning = [slide for slide in work.slides if slide.split == "train"]
            done = _records(learning, lambda slide: finished(slide, views))
            todo = [slide for slide in learning if slide.slide_id not in done]
            stages.append(embed_stage("views", work, todo, len(done), machine, **arguments, copies=views))
        return stages

    def _with_engine(
        self, rates: Any, spec: Any, scratch: Store, files: Sequence[str], *, device: str
    ) -> tuple[Any, Any, float]:
        """Load an encoder with its engine in this store, or the one that would be chosen; return the seconds for it."""
        engines = importlib.import_module("distmil.encoders.engines")
        config, store = self._opened[0].config, self.job.store
        choices = engines.StoredEngine(spec, config, store).read(device=device)
        if choices is None:
            self.job.console.note(f"trying the engines of {spec.name} on patches of the cohort")
            tried = engines.StoredEngine(spec, config, scratch)
            choices, seconds = self._one_thread(lambda: rates.time_choice(files, tried, device=device))
            spec = replace(spec, engines=choices)
            return spec, engines.load_engine(spec, scratch, patch_px=config.tiling.patch_px, device=device), seconds
        for file in (engines.model_file(choice.model_digest) for choice in choices if choice.model_digest):
            scratch.write(file, store.read(file))
        spec = replace(spec, engines=choices)
        return spec, engines.load_engine(spec, scratch, patch_px=config.tiling.patch_px, device=device), 0.0

    def _label_stage(self) -> Stage:
        config, work = self._opened[0].config, self._work
        labeller = importlib.import_module("distmil.labels.tables").SlideLabeller

        def finished(slide: Slide) -> Record | None:
            record = work.tiled.get(slide.slide_id)
            return labeller(slide, config, self.job.store, record).finished() if record and record.ok else record

        labelled = [slide for slide in work.slides if slide.label is not None]
        done = _records(labelled, finished)
        todo = [slide for slide in labelled if slide.slide_id not in done]
        return label_stage(work, todo, len(done), self._machine)

    def _learning_stage(self, rates: Any, spec: Any, scratch: Store) -> Stage:
        """Estimate the epochs of a training or a search."""
        config, work, machine = self.job.config, self._work, self._machine
        sizes = [round(work.patches[slide.slide_id]) for slide in work.slides]
        used = [(slide, size) for slide, size in zip(work.slides, sizes, strict=True) if size]
        threads = machine.cpus if self.name == "train" else 1
        found = rates.time_epoch(
            config, spec, scratch, [slide for slide, _ in used], [size for _, size in used], threads=threads
        )
        counts = {split: sum(slide.split == split for slide, _ in used) for split in ("train", "val")}
        epoch_s = counts["train"] * found.train_slide_s + counts["val"] * found.val_slide_s
        if self.name == "tune":
            return search_stage(config, machine, epoch_s=epoch_s)
        start_s = found.start_s * counts["train"] / max(1, min(counts["train"], rates.TRIAL_SLIDES))
        return train_stage(config, self._epochs_done(), machine, epoch_s=epoch_s, start_s=start_s)

    def _epochs_done(self) -> int:
        """Count the epochs that a run of this name has."""
        run = self.job.config.training.run
        worker = importlib.import_module("distmil.pipeline.training.worker")
        history = worker.read_history(self.job.store, run) if run else None
        return len(history.rows) if history else 0

    def _predict_stages(self, rates: Any, spec: Any, bundle: Any) -> list[Stage]:
        """Estimate the predictions, and the record of a training."""
        config, work, machine = self._opened[0].config, self._work, self._machine
        slides = [slide for slide in held_out(self._cohort, config, job=self.name) if work.patches[slide.slide_id]]
        record = [Stage("record", "", 0, 1, "bundle, MLflow", 0.0, RECORD_S)] if self.name == "train" else []
        if not slides:
            return record
        median = sorted(slides, key=lambda slide: work.patches[slide.slide_id])[len(slides) // 2]
        count = round(work.patches[median.slide_id])
        reader = importlib.import_module("distmil.slides.reader")
        with reader.open_slide(median.path, reader=config.tiling.reader) as image:
            size = image.size
        heads = bundle.heads if bundle else ()
        dimension = bundle.embedding_dim if bundle else spec.dimension
        score_s, maps_s = self._one_thread(
            lambda: rates.time_predicting(heads, config, median, dimension=dimension, num_patches=count, size=size)
        )
        done = len(self.job.store.names(f"predictions/{self._output}/records")) if self._output else 0
        stage = predict_stage(
            work, slides, min(done, len(slides)), config, machine, score_s=score_s / max(1, count), maps_s=maps_s
        )
        return [stage, *record]

    @property
    def _output(self) -> str | None:
        """Name the predictions where their name is known ahead."""
        config = self.job.config
        return config.prediction.run or (config.training.run if self.name == "train" else None)

    @staticmethod
    def _one_thread(work: Callable[[], Any]) -> Any:
        """Do work as a process of a stage does it, on one core."""
        torch = importlib.import_module("torch")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with importlib.import_module("threadpoolctl").threadpool_limits(limits=1):  # numpy's, too
                return work()
        finally:
            torch.set_num_threads(before)


def _records(slides: Sequence[Slide], find: Callable[[Slide], Record | None]) -> dict[str, Record]:
    """Find the records of the slides that are done, as far as the store answers in time."""
    found = answers_within(RECORDS_S, slides, lambda: Calls(find))
    return {slides[number].slide_id: record for number, record in found.items() if record is not None}
