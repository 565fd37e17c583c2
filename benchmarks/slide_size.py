"""Slides of 140 to 10,000 patches with small lesions: which read-out, which labels, which sizes to train on.

    python -m benchmarks.slide_size choose [--seeds 3] [--root FOLDER] --out FOLDER [ROW ...]
    python -m benchmarks.slide_size table [--seeds 5] [--root FOLDER] --out FOLDER [ROW ...]
    python -m benchmarks.slide_size pairs --out FOLDER
    python -m benchmarks.slide_size lesions --out FOLDER [ROW ...]
    python -m benchmarks.slide_size figure --out FOLDER --png FILE.png

A row trains a narrow network on 64 slides from the patches to learn on. ``choose`` judges patches of train.zip that no
row learned from; ``table`` judges val.zip. The judged patches are cut in two: one half makes the validation slides of
all sizes that evidence and thresholds are fitted on, the other the judged slides. Figures are means over seeds with
their standard deviation, of every read-out at every size: AUC, sensitivity and specificity at the threshold; then AUC
over all sizes together, and the share of slides of 10,000 patches with a single tumour patch that are found at 90 %
specificity. ``pairs`` compares rows of the table with intervals over slides, ``lesions`` gives the figures by the size
of the lesion, ``figure`` draws AUC against the size of the slide. The scores lie in the folder --out; what it holds is
not measured again. Slides are assembled, not scanned.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.clam import train_clam
from benchmarks.dual_supervision import nest
from benchmarks.inprocess import train_here
from benchmarks.poolhead import as_rows, remembering
from benchmarks.poolslides import SIZES, Pool, make_slides, pools
from benchmarks.sizefigures import draw, lesion_lines, pair_lines, table_lines
from distmil.bags.bag import Bag
from distmil.config.loading import build_config
from distmil.inference.scoring import READ_OUTS, score_bag
from distmil.models.regions import PatchEvidence
from distmil.training.engine import evaluate
from distmil.training.learner import Learner
from distmil.training.workers import Workers
from tests.support.data import DATA

ALL = tuple(SIZES)
LESION = (2, 12)
LESIONS = (1, 2, 5, 12, 40)
LESION_SLIDE = 2400
TRAIN_SLIDES, VALIDATION, JUDGED, SINGLE = 64, 16, 40, 60
"""Slides in train; slides of each size and class that thresholds are chosen on, and that are judged."""
NARROW = {"model.feature_dim": 128, "model.attention_dim": 64, "model.dropout": 0.5, "training.epochs": 30}


@dataclass(frozen=True)
class Row:
    """What is trained, on which sizes, and with the outlines of which share of the positive slides."""

    sizes: tuple[int, ...] = (140, 600)
    annotated: float = 1.0
    overrides: dict[str, Any] = field(default_factory=dict)
    is_clam: bool = False


HARD = {"bags.hard_negatives": True}
ROWS = {
    "dual, trained at 140": Row((140,)),
    "dual, trained at 140 and 600": Row(),
    "dual, trained at 140 and 600, hard negatives": Row(overrides=HARD),
    "dual, trained at all sizes": Row(ALL),
    "dual, trained at all sizes, hard negatives": Row(ALL, overrides=HARD),
    "dual, a quarter annotated": Row(annotated=0.25),
    "dual, a quarter annotated, hard negatives": Row(annotated=0.25, overrides=HARD),
    "dual, a tenth annotated": Row(annotated=0.1),
    "slide labels: L2 + L3": Row(annotated=0.0),
    "slide labels: softmax attention": Row(annotated=0.0, overrides={"model.name": "attention"}),
    "slide labels: gated attention": Row(annotated=0.0, overrides={"model.name": "gated_attention"}),
    "slide labels: like CLAM": Row(annotated=0.0, is_clam=True),
    "slide labels: max": Row(annotated=0.0, overrides={"model.name": "max"}),
    "patches only": Row(overrides={"model.name": "patches"}),
    "patches only, hard negatives": Row(overrides={"model.name": "patches", **HARD}),
}


def main() -> None:
    """Measure rows, or print and draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["choose", "table", "pairs", "lesions", "figure"])
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--encoder", default="texture+efficientnet_lite0")
    parser.add_argument("--data", type=Path, default=DATA / "pcam_pool")
    parser.add_argument("--root", type=Path, default=None, help="folder of embeddings; default: a temporary one")
    parser.add_argument("--out", type=Path, required=True, help="folder of scores")
    parser.add_argument("--png", type=Path, default=None)
    options = parser.parse_intermixed_args()
    if options.kind in {"choose", "table"}:
        measure(options)
        return
    found = {name: runs for name in options.rows if (runs := saved(options.out / "table", name))}
    if options.kind == "figure":
        draw(found, options.png)
    else:
        print("\n".join(pair_lines(found) if options.kind == "pairs" else lesion_lines(found)))


def measure(options: argparse.Namespace) -> None:
    """Train and score the rows that the folder lacks, and print each when it is complete."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distmil-sizes-") as scratch:
        found = pools(options.data, options.root or Path(scratch), encoder=options.encoder)
    judged = found["val" if options.kind == "table" else "choose"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {options.encoder}\n")
    for number, name in enumerate(options.rows):
        for seed in range(options.seeds):
            file = options.out / options.kind / _file_name(name, seed)
            made_from = np.array(f"{ROWS[name]}, {options.encoder}")
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, made_from=made_from, **run(ROWS[name], found["learn"], judged, seed=seed))
            elif (there := np.load(file)["made_from"]) != made_from:
                sys.exit(f"{file} holds scores of something else ({there}); give another folder as --out")
        lines = table_lines({name: saved(options.out / options.kind, name)})
        print("\n".join(lines[2 * bool(number) :]), flush=True)


def saved(folder: Path, name: str) -> list[dict[str, NDArray[Any]]]:
    """Read a row's scores, one for each seed that there is."""
    files = sorted(folder.glob(_file_name(name, None)))
    return [dict(np.load(file)) for file in files]


def _file_name(name: str, seed: int | None) -> str:
    words = "".join(letter if letter.isalnum() else "_" for letter in name)
    return f"{words}.{'[0-9]' if seed is None else seed}.npz"


def run(row: Row, learn: Pool, judged: Pool, *, seed: int) -> dict[str, NDArray[Any]]:
    """Train a row and score slides by every read-out, slides x read-outs, with their labels and sizes."""
    started = time.process_time()
    learner, config = _train(row, learn, seed)
    seconds = time.process_time() - started
    validation, test = judged.halves()
    chosen_on = as_rows(make_slides(validation, ALL, VALIDATION, lesion=LESION, seed=100 + seed))
    there, here = remembering(learner, validation), remembering(learner, test)
    metrics = evaluate(there, chosen_on, config, workers=Workers())
    evidence = PatchEvidence.in_row({f"val_{name}": value for name, value in metrics.items()})
    slides = make_slides(test, ALL, JUDGED, lesion=LESION, seed=200)
    found = {"seconds": np.array(seconds), "validation": _scores(there, chosen_on, evidence)}
    found |= {"label_validation": _labels(chosen_on), "label": _labels(slides)}
    found["size"] = np.array([len(slide) for slide in slides])
    found["slides"] = _scores(here, as_rows(slides), evidence)
    more = {"single": make_slides(test, ALL[-1:], SINGLE, lesion=(1, 1), seed=300)}
    for cells in LESIONS:
        more[f"lesion_{cells}"] = make_slides(test, (LESION_SLIDE,), JUDGED, lesion=(cells, cells), seed=400 + cells)
    for name, made in more.items():
        found[name] = _scores(here, as_rows([slide for slide in made if slide.label]), evidence)
    return found


def _train(row: Row, learn: Pool, seed: int) -> tuple[Learner, Any]:
    config = build_config(nest({**NARROW, **row.overrides, "training.seed": seed}))
    per_class = TRAIN_SLIDES // 2 // len(row.sizes)
    slides = make_slides(learn, row.sizes, per_class, lesion=LESION, seed=seed, annotated=row.annotated)
    torch.manual_seed(seed)
    if row.is_clam:
        return train_clam(slides, config, embedding_dim=learn.normal.shape[1]), config
    return train_here(slides, config, embedding_dim=learn.normal.shape[1])


def _scores(learner: Learner, slides: Sequence[Bag], evidence: PatchEvidence | None) -> NDArray[np.float64]:
    """Score slides by every read-out, slides x read-outs."""
    rows = []
    for slide in slides:
        assert slide.places is not None
        found = score_bag((learner.eval_model.head,), slide.source, learner.embed, top_k=8)
        found = found.with_regions(slide.places, evidence)
        rows.append([getattr(found, name) for name in READ_OUTS])
    return np.array(rows)


def _labels(slides: Sequence[Bag]) -> NDArray[np.bool_]:
    return np.array([bool(slide.label) for slide in slides])


if __name__ == "__main__":
    main()
