"""The stages of a job ahead of time: what is done, what is left, how many bytes and how many seconds it will take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.pace import in_words
from distmil.preflight.amounts import LABEL_BYTES, MAPS_BYTES, PLACE_BYTES, SCORE_BYTES
from distmil.preflight.disk import in_bytes
from distmil.preflight.looks import Look
from distmil.storage.records import Record

COLUMNS = ("stage", "done", "to do", "amount", "written", "time")

RAY_S = 5.0
"""Ray's start and end, whatever the job; `benchmarks/dry_run.py` measures it."""
POOL_STARTS = 1.0
"""Start of the processes of a stage, in the time that this machine takes to import a job's libraries: they import them
too."""
GROUP_STARTS = 1.5
"""Start of training workers, likewise."""
COMMIT_S = 0.03
"""Work of committing a slide."""
EPOCH_EXTRA_S = 0.25
"""Of an epoch: its checkpoint, and the wait for the report."""
LABEL_S = 0.02
"""Work of labelling a slide, beside reading its annotation."""
PICTURE_S = 0.1
"""Work of drawing a slide for the tiling report."""
PICTURE_BYTES = 180_000
RECORD_S = 4.0
"""Of MLflow's record and its pictures, at the end of a training."""
ASHA_SHARE = 0.45
"""Share of the epochs that trials train where those behind are ended early."""


@dataclass(frozen=True)
class Stage:
    """One stage of a job."""

    name: str
    unit: str
    done: int
    todo: int
    amount: str = ""
    num_bytes: float = 0.0
    seconds: float = 0.0

    def row(self, noun: str) -> tuple[str, ...]:
        """Word the stage under ``COLUMNS``; the noun is slides or images."""
        unit = noun if self.unit == "slides" else self.unit
        counts = (f"{self.done} {unit}", f"{self.todo} {unit}") if unit else ("", "")
        return (self.name, *counts, self.amount, in_bytes(self.num_bytes), in_words(self.seconds))


@dataclass(frozen=True)
class Machine:
    """What the stages run on."""

    cpus: int
    gpus: int
    start_s: float
    """Of importing the job's libraries, as it was just measured."""


@dataclass(frozen=True)
class Work:
    """The slides of a job, and how much is known of them."""

    slides: Sequence[Slide]
    tiled: Mapping[str, Record]
    """Records of the slides that are tiled."""
    patches: Mapping[str, float]
    """Of every slide, by its record or as estimated."""
    looks: Sequence[Look]

    @property
    def todo(self) -> list[Slide]:
        """List the slides that are left to tile."""
        return [slide for slide in self.slides if slide.slide_id not in self.tiled]

    def count(self, slides: Sequence[Slide]) -> float:
        """Count the patches of some slides."""
        return sum(self.patches[slide.slide_id] for slide in slides)


def patches_by_slide(
    slides: Sequence[Slide], tiled: Mapping[str, Record], looks: Sequence[Look], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Estimate the patches of every slide: as tiled or planned, else by the size of its file.

    Args:
        slides: The slides of a job.
        tiled: Records of those that are tiled.
        looks: Looks at some of the others.
        sizes: Bytes of the slides' files, where they are known.
    """
    known = {look.slide.slide_id: float(look.num_patches) for look in looks if look.num_patches is not None}
    known |= {look.slide.slide_id: 0.0 for look in looks if look.status != "ok"}
    known |= {slide_id: float(record.rows) for slide_id, record in tiled.items()}
    if not known:
        return dict.fromkeys((slide.slide_id for slide in slides), 0.0)
    measured = [slide_id for slide_id in known if sizes.get(slide_id)]
    total = sum(sizes[slide_id] for slide_id in measured)
    per_byte = sum(known[slide_id] for slide_id in measured) / total if total else None
    mean = fmean(known.values())

    def estimate(slide_id: str) -> float:
        return per_byte * sizes[slide_id] if per_byte is not None and slide_id in sizes else mean

    return {slide.slide_id: known.get(slide.slide_id, estimate(slide.slide_id)) for slide in slides}


def start_stage(machine: Machine) -> Stage:
    """Estimate the start of the job and of Ray."""
    return Stage("start", "", 0, 1, "imports, Ray", 0.0, machine.start_s + RAY_S)


def tile_stage(work: Work, machine: Machine) -> Stage:
    """Estimate the tiling."""
    todo, tried = work.todo, [look for look in work.looks if look.plan_s]
    patches = work.count(todo)
    num_bytes = patches * (fmean(look.num_bytes for look in tried) if tried else 0.0)
    seconds = 0.0
    if todo and tried:
        each = fmean(look.plan_s for look in tried) + COMMIT_S
        total = len(todo) * each + patches * fmean(look.patch_s for look in tried)
        seconds = total / _at_once(machine.cpus, len(todo)) + POOL_STARTS * machine.start_s
    return Stage("tile", "slides", len(work.tiled), len(todo), _patches(patches), num_bytes, seconds)


def report_stage(work: Work, machine: Machine) -> Stage:
    """Estimate the pictures of the tiling report."""
    num = len(work.todo)
    seconds = num * PICTURE_S / _at_once(machine.cpus, num)
    return Stage("report", "slides", len(work.tiled), num, f"{num} pictures", num * PICTURE_BYTES, seconds)


def embed_stage(
    name: str, work: Work, todo: Sequence[Slide], done: int, machine: Machine, *, patch_s: float, dimension: int,
    is_gpu: bool, copies: int = 1,
) -> Stage:  # fmt: skip
    """Estimate the embedding of slides, or of ``copies`` views of each."""
    patches = work.count(todo) * copies
    seconds = 0.0
    if todo:
        at_once = machine.gpus if is_gpu else machine.cpus
        total = patches * patch_s + len(todo) * copies * COMMIT_S
        seconds = total / _at_once(at_once, len(todo) * copies) + POOL_STARTS * machine.start_s
    num_bytes = patches * (2 * dimension + PLACE_BYTES)
    return Stage(name, "slides", done, len(todo), _patches(patches), num_bytes, seconds)


def label_stage(work: Work, todo: Sequence[Slide], done: int, machine: Machine) -> Stage:
    """Estimate the labelling."""
    read = [look.annotation_s for look in work.looks if look.annotation_s is not None]
    annotated = sum(slide.annotation_path is not None for slide in todo)
    total = len(todo) * LABEL_S + annotated * (fmean(read) if read else 0.0)
    seconds = total / _at_once(machine.cpus, len(todo)) + POOL_STARTS * machine.start_s if todo else 0.0
    patches = work.count(todo)
    return Stage("label", "slides", done, len(todo), f"{annotated} outlines", patches * LABEL_BYTES, seconds)


def train_stage(config: Config, done: int, machine: Machine, *, epoch_s: float, start_s: float) -> Stage:
    """Estimate the training that is left of a run."""
    todo = max(0, config.training.epochs - done)
    workers = config.training.num_workers
    seconds = todo * (epoch_s / workers + EPOCH_EXTRA_S) + start_s + GROUP_STARTS * machine.start_s if todo else 0.0
    return Stage("train", "epochs", done, todo, f"{workers} worker(s)", 0.0, seconds)


def search_stage(config: Config, machine: Machine, *, epoch_s: float) -> Stage:
    """Estimate the trials of a search and its comparison."""
    search, epochs = config.search, config.training.epochs
    folds = max(1, search.folds)
    share = ASHA_SHARE if search.stopping == "asha" and epochs > search.grace_epochs else 1.0
    settings = 2 + (4 if search.ablations else 0)
    trainings = search.trials * share * folds + search.repeats * settings
    at_once = min(search.concurrent or sum((machine.cpus, machine.gpus)), machine.gpus or machine.cpus)
    num_trainings = search.trials + search.repeats * settings
    seconds = trainings * epochs * epoch_s / max(1, at_once) + GROUP_STARTS * machine.start_s
    return Stage("search", "trainings", 0, num_trainings, f"{at_once} at once", 0.0, seconds)


def predict_stage(
    work: Work, slides: Sequence[Slide], done: int, config: Config, machine: Machine, *, score_s: float, maps_s: float
) -> Stage:
    """Estimate the prediction of slides; ``score_s`` is for one patch, ``maps_s`` for one slide."""
    todo = max(0, len(slides) - done)
    patches = work.count(slides) * todo / max(1, len(slides))
    maps = MAPS_BYTES * (config.prediction.map_px / 1024) ** 2 if config.prediction.maps else 0.0
    seconds = 0.0
    if todo:
        total = patches * score_s + todo * (maps_s + COMMIT_S)
        seconds = total / _at_once(machine.cpus, todo) + POOL_STARTS * machine.start_s
    return Stage("predict", "slides", done, todo, _patches(patches), patches * SCORE_BYTES + todo * maps, seconds)


def _at_once(workers: int, items: int) -> int:
    return max(1, min(workers, items))


def _patches(count: float) -> str:
    digits = max(0, math.floor(math.log10(count)) - 1) if count >= 1 else 0
    return f"{round(count, -digits):,.0f} patches"
