"""How fast this machine embeds, trains and predicts, tried on a few patches for seconds. Torch, no Ray.

Seconds are those of an idle machine, see ``distmil.preflight.timing``.

N patches of a slide, E embedding, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distmil.bags.bag import Bag
from distmil.bags.source import EmbeddingSource
from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.encoders.embedder import decode_patches, embed_patches
from distmil.encoders.engines import EngineChoice, StoredEngine
from distmil.encoders.engines.stored import SAMPLE
from distmil.encoders.registry import Encoder, EncoderSpec
from distmil.inference.scoring import score_bag
from distmil.models.baselines import make_network
from distmil.models.network import Network
from distmil.preflight.timing import idle_clock, spread
from distmil.storage.store import Store
from distmil.training.learner import embed
from distmil.training.run import open_run
from distmil.training.workers import Workers
from distmil.visualization.slide_maps import MAPS, Reading, draw_maps

EMBED_S = 1.0
"""Shortest trial of the encoder, after one batch of each slide."""
TRIAL_SLIDES = 16
TRIAL_PATCHES = 100_000
"""Most patches of all slides of a trial epoch."""
POSITIVE_SHARE = 0.1
MAPPED = 2
"""Slides whose maps are drawn as a trial."""


@dataclass(frozen=True)
class LearningRates:
    """Seconds of one epoch, by slide."""

    train_slide_s: float
    val_slide_s: float
    start_s: float
    """Of opening the bags and the normaliser, once."""


def time_choice(files: Sequence[str], stored: StoredEngine, *, device: str) -> tuple[tuple[EngineChoice, ...], float]:
    """Choose an encoder's engine on patches that were cut as a trial, and return the seconds that it took too.

    Raises:
        EncoderError: If the engine that is asked for does not pass the gate, or is not here.
    """
    table, started = _trial_patches(files), idle_clock()
    if table is None:
        return (), 0.0
    rows = np.random.default_rng(0).permutation(table.num_rows)[:SAMPLE]
    return stored.choose(decode_patches(table.take(rows)), device=device), idle_clock() - started


def _trial_patches(files: Sequence[str]) -> pa.Table | None:
    """Read the patches that were cut as a trial; None if there are none."""
    tables = [pq.read_table(file) for file in files if Path(file).exists()]
    return pa.concat_tables(tables) if tables else None


def time_embedding(files: Sequence[str], encoder: Encoder, *, batch_size: int) -> float | None:
    """Embed patches that were cut as a trial, on one core or the GPU, and return the seconds for one patch."""
    cv2.setNumThreads(1)
    table = _trial_patches(files)
    if table is None:
        return None
    embed_patches(table.slice(0, 1), encoder, batch_size=1)  # the first call is slower
    started, num_patches = idle_clock(), 0
    while num_patches == 0 or idle_clock() - started < EMBED_S:
        embed_patches(table, encoder, batch_size=batch_size)
        num_patches += table.num_rows
    return (idle_clock() - started) / num_patches


def time_epoch(
    config: Config, spec: EncoderSpec, store: Store, slides: Sequence[Slide], sizes: Sequence[int], *, threads: int
) -> LearningRates:
    """Train an epoch on random embeddings of some slides' sizes.

    Args:
        config: The configuration.
        spec: The encoder.
        store: Not written.
        slides: Slides of the training, with their splits and labels.
        sizes: Patches of each slide.
        threads: CPU threads of the worker.
    """
    pairs = list(zip(slides, sizes, strict=True))
    learning = _mixed([pair for pair in pairs if pair[0].split == "train"])
    scored = spread([pair for pair in pairs if pair[0].split == "val"], TRIAL_SLIDES // 4)
    most = max(16, TRIAL_PATCHES // max(1, len(learning) + len(scored)))
    classes = len(config.cohort.classes)
    generator = np.random.default_rng(0)

    def bags(chosen: Sequence[tuple[Slide, int]]) -> list[Bag]:
        return [
            _bag(slide, min(size, most), generator, dimension=spec.dimension, num_classes=classes)
            for slide, size in chosen
        ]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain = config.model_copy(update={"encoder": config.encoder.model_copy(update={"trainable": False})})
        train, val = bags(learning), bags(scored)
        opened = idle_clock()
        run = open_run(plain, train, [], spec, store, name=None, device=_device())
        start_s = idle_clock() - opened
        run.advance(Workers())  # the first epoch is slower
        epoch_s = _seconds(lambda: run.advance(Workers()))
        run.validation_bags = val
        both_s = _seconds(lambda: run.advance(Workers())) if val else epoch_s
    finally:
        torch.set_num_threads(before)
    scale = sum(size for _, size in learning) / max(1, sum(map(len, train)))
    train_s = epoch_s / max(1, len(train)) * scale
    return LearningRates(train_s, max(0.0, both_s - epoch_s) / max(1, len(val)), start_s)


def time_predicting(
    head: Network | None, config: Config, slide: Slide, *, dimension: int, num_patches: int, size: tuple[int, int]
) -> tuple[float, float]:
    """Score random embeddings of one slide and draw its maps, and return the seconds of each.

    Args:
        head: The network; None: a new one as configured.
        config: The configuration.
        slide: A slide that can be read.
        dimension: E.
        num_patches: N.
        size: Slide (width, height) in level-0 pixels.
    """
    cv2.setNumThreads(1)
    generator = np.random.default_rng(0)
    count = max(1, min(num_patches, TRIAL_PATCHES))
    network = head or make_network(config.model, embedding_dim=dimension, num_classes=len(config.cohort.classes))
    network.train(False)
    source = EmbeddingSource([generator.standard_normal((count, dimension)).astype(np.float16)])
    bags = config.bags

    def score() -> object:
        return score_bag(
            network, source, lambda patches: embed(patches, None, torch.device("cpu")),
            top_k=bags.top_k, top_k_share=bags.top_k_share, with_shift=True,
        )  # fmt: skip

    score()
    score_s = _seconds(score) * num_patches / count
    return score_s, _time_maps(config, slide, count, size) if config.prediction.maps else 0.0


def _time_maps(config: Config, slide: Slide, count: int, size: tuple[int, int]) -> float:
    """Draw the maps of random scores of a slide."""
    generator = np.random.default_rng(0)
    edge = max(1, int((size[0] * size[1] / count) ** 0.5))
    columns = max(1, size[0] // edge)
    places = np.arange(count)
    table = pa.table(
        {
            "x": pa.array(places % columns * edge, pa.int32()),
            "y": pa.array(places // columns * edge, pa.int32()),
            "extent_px": pa.array(np.full(count, edge), pa.int32()),
            **{name: pa.array(generator.random(count), pa.float32()) for name in MAPS},
        }
    )
    reading = Reading(
        probability=0.5, slide_score="bag", threshold=0.5, predicted=config.cohort.classes[0],
        abnormal=config.cohort.classes[-1], patch_threshold=0.5, label=None,
    )  # fmt: skip
    settings = config.prediction
    return _seconds(
        lambda: draw_maps(
            slide, table, reading, outlines=lambda: None, size=size, mpp=None, max_px=settings.map_px,
            reader=config.tiling.reader, colours=settings.colours,
        )
    )  # fmt: skip


def _mixed(pairs: Sequence[tuple[Slide, int]]) -> list[tuple[Slide, int]]:
    """Choose some slides of every label, each class by its share of the slides."""
    ordered = sorted(pairs, key=lambda pair: pair[0].label or 0)
    return spread(ordered, TRIAL_SLIDES)


def _bag(slide: Slide, count: int, generator: np.random.Generator, *, dimension: int, num_classes: int) -> Bag:
    """Make a bag of random embeddings; on an annotated positive slide some patches are positive."""
    label = slide.label or 0
    label_N = np.zeros(count, np.int8)
    if label:
        label_N[:] = -1 if not slide.annotation_path else 0
        label_N[: max(1, round(count * POSITIVE_SHARE))] = label if slide.annotation_path else -1
    target_NC = np.eye(num_classes, dtype=np.float32)[np.maximum(label_N, 0)]
    target_NC[label_N < 0] = np.nan
    source = EmbeddingSource([generator.standard_normal((count, dimension)).astype(np.float16)])
    return Bag(slide.slide_id, label, source, label_N, target_NC, slide.is_pseudo, slide.split)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _seconds(work: Callable[[], object]) -> float:
    started = idle_clock()
    work()
    return idle_clock() - started
