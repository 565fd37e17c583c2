"""What it brings to train the encoder's last block too: the same training with the block as published and in training.

    python -m benchmarks.finetuning select --root STORE [--seeds 1] NAME=KEY=VALUE,... ...
    python -m benchmarks.finetuning table  --root STORE [--seeds 5] [NAME=KEY=VALUE,...]

``table`` trains a narrow network together with the last block of efficientnet_lite0 (``encoder.trainable=last``) on
`pcam_cohort`'s 56 train slides, 96 px patches enlarged to 224 px, with the outlines of a quarter of the positive
slides, and scores val once against `truth.csv`. ``select`` measures settings such as
``mild=training.encoder_lr=1e-4,training.epochs=8`` on four folds inside train; val is not looked at. Beside `texture`
the trained block is an encoder like any other: a new network is trained on the embeddings of both.

The layers before the block stay as they are, and training shows patches without augmentation. So what these layers give
for each patch is computed once and kept in half precision, and a step costs what the last block costs.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.dual_supervision import Row, measure_bags, measure_val, nest, run_on_val, score
from benchmarks.dualrows import QUARTER, Setting, narrow
from benchmarks.inprocess import spread, train_here
from benchmarks.pcambags import Cohort, cohort_config, folds, load_cohort, with_budget
from benchmarks.pretraining import COLUMNS, NETWORK, PLAIN, beside
from distmil.bags.bag import Bag
from distmil.bags.source import EmbeddingSource
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.engines import EngineChoice
from distmil.encoders.engines.openvino_engine import OpenVINOEngine
from distmil.encoders.registry import Encoder, load_trainable, prepare_encoder
from distmil.encoders.trainable import set_trainable
from distmil.pipeline.cluster import stop_ray
from distmil.storage.store import Store
from distmil.training.learner import Learner
from tests.support.data import PCAM_COHORT

TRAINABLE: Mapping[str, Any] = {"name": NETWORK, "trainable": "last", "trained_blocks": 1}
MILD: Mapping[str, Any] = {"training.encoder_lr": 1e-4}
SHORT: Mapping[str, Any] = {"training.epochs": 8, "bags.sample": 50, "training.precision": "bf16"}
"""Of trainings with the block, where nothing else is named: a fifth of the steps of the others, each half as large."""
WIDTH = 1280
_BATCH = 32


class Trunk(nn.Module):
    """The layers before the last block, from patches to maps of features; an engine can compute it as an encoder."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.at_size = encoder, encoder.at_size
        net = encoder.net
        self.layers = nn.Sequential(net.conv_stem, net.bn1, net.blocks[:-1])

    def from_sized(self, images_NCHW: Tensor) -> Tensor:
        """Return maps of features, N x C x H x W, of patches of the network's size."""
        maps_NCHW: Tensor = self.layers((images_NCHW - self.encoder.mean) / self.encoder.std)
        return maps_NCHW


class Tail(nn.Module):
    """The last block and what follows it, from maps of features to embeddings; batch norms keep their statistics."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        net = encoder.net
        self.layers = nn.Sequential(net.blocks[-1], net.conv_head, net.bn2, net.global_pool)

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        """Return embeddings, N x E."""
        embedding_NE: Tensor = self.layers(maps_NCHW.float())
        return embedding_NE

    def train(self, mode: bool = True) -> "Tail":
        """Stay in evaluation mode: all that would change is batch normalisation, which the encoder keeps too."""
        return self if mode else super().train(mode)


@dataclass(frozen=True)
class World:
    """What every row needs."""

    maps: Cohort
    """Bags of the trunk's maps."""
    texture: Cohort
    make_tail: Callable[[], Tail]
    """The published one."""


def open_world(data: Path, root: Path) -> World:
    """Tile, label and pass every patch through the trunk, or read what that gave."""
    try:
        images = load_cohort(data, root, encoder={**PLAIN, **TRAINABLE})
        texture = load_cohort(data, root)
    finally:
        stop_ray()
    store, config = Store(str(root)), cohort_config(data, encoder=TRAINABLE).encoder
    spec = prepare_encoder(config, store)

    def make_tail() -> Tail:
        encoder = load_trainable(spec, store)
        set_trainable(encoder, config)
        return Tail(encoder)

    choice = EngineChoice("openvino", "fp32")
    trunk = OpenVINOEngine(Trunk(load_trainable(spec, store)).eval(), choice, threads=1, quantised=None)
    return World(_with_maps(images, trunk, root / "maps"), texture, make_tail)


def _with_maps(images: Cohort, trunk: Encoder, folder: Path) -> Cohort:
    """Put the trunk's maps in the place of the patches, kept in files by slide."""
    folder.mkdir(exist_ok=True)

    def mapped(bag: Bag) -> Bag:
        file = folder / f"{bag.slide_id}.npy"
        if not file.exists():
            patches = np.asarray(bag.source.take(slice(None)))
            partial = file.with_suffix(".part.npy")
            pieces = [trunk.embed(patches[at : at + _BATCH]) for at in range(0, len(patches), _BATCH)]
            np.save(partial, np.concatenate(pieces).astype(np.float16))
            partial.rename(file)
        return replace(bag, source=EmbeddingSource([np.load(file)]), views=())

    return Cohort([mapped(bag) for bag in images.train], [mapped(bag) for bag in images.val], images.cells)


def _applied(network: nn.Module, given: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [network(torch.from_numpy(given[at : at + _BATCH])).numpy() for at in range(0, len(given), _BATCH)]
    return np.concatenate(parts)


def embedded(bags: Sequence[Bag], tail: nn.Module) -> list[Bag]:
    """Embed bags of maps."""
    tail.eval()
    return [
        replace(bag, source=EmbeddingSource([_applied(tail, np.asarray(bag.source.take(slice(None))))]))
        for bag in bags
    ]  # fmt: skip


def tune(world: World, bags: Sequence[Bag], setting: Setting, seed: int) -> tuple[Learner, Config]:
    """Train a network and the last block together."""
    config = build_config(nest({**setting.overrides, "training.seed": seed}))
    torch.manual_seed(seed)
    own = with_budget(bags, setting.share, seed=seed)
    return train_here(own, config, embedding_dim=WIDTH, encoder=world.make_tail())


def tuned_on_val(world: World, tuning: Setting, seed: int) -> tuple[Row, nn.Module]:
    """Train on train and score val, and return the encoder too."""
    learner, config = tune(world, world.maps.train, tuning, seed)
    scores = [score(learner, bag, config) for bag in world.maps.val]
    assert learner.encoder is not None
    return measure_val(world.maps, scores), learner.encoder


def tuned_on_folds(world: World, tuning: Setting, seed: int) -> Row:
    """Train on each fold's rest, and score all folds together."""
    bags, judged = world.maps.train, list[Bag]()
    scores = []
    for learning, judging in folds(bags):
        learner, config = tune(world, [bags[i] for i in learning], tuning, seed)
        judged += [bags[i] for i in judging]
        scores += [score(learner, bags[i], config) for i in judging]
        _note(f"fold {len(judged)}")
    return measure_bags(judged, scores)


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return settings by name, from NAME=KEY=VALUE,KEY=VALUE."""
    found = {}
    for text in texts:
        name, _, rest = text.partition("=")
        found[name] = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in rest.split(","))}
    return found


def main() -> None:
    """Print a row for each kind of embeddings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["select", "table"])
    parser.add_argument("settings", nargs="*", help="NAME=KEY=VALUE,KEY=VALUE of trainings")
    parser.add_argument("--seeds", type=int, default=None, help="default: 1 for select, 5 for table")
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--root", type=Path, required=True, help="store, to use again")
    options = parser.parse_intermixed_args()
    seeds = range(options.seeds or {"select": 1, "table": 5}[options.kind])
    settings = parse_settings(options.settings) or {"last block trained": dict(MILD)}
    torch.set_num_threads(1)
    print("| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1), flush=True)
    with threadpool_limits(limits=1):
        world = open_world(options.data, options.root)
        _note("maps")
        for name, overrides in settings.items():
            tuning = narrow(name, QUARTER, {**SHORT, **overrides})
            if options.kind == "select":
                show(f"{NETWORK}, {name}", [tuned_on_folds(world, tuning, seed) for seed in seeds])
            else:
                show_table(world, tuning, seeds)


def show_table(world: World, tuning: Setting, seeds: Sequence[int]) -> None:
    """Print the rows of a setting on val, and those of the encoders as published with as many steps."""
    published, found = _embedded(world, world.make_tail()), dict[str, list[Row]]()
    for seed in seeds:
        row, tail = tuned_on_val(world, tuning, seed)
        cohorts = {
            f"texture+{NETWORK}, {tuning.name}": beside(world.texture, _embedded(world, tail)),
            NETWORK: published,
            f"texture+{NETWORK}": beside(world.texture, published),
        }
        rows = {f"{NETWORK}, {tuning.name}": row}
        rows |= {name: run_on_val(cohort, tuning, seed) for name, cohort in cohorts.items()}
        for name, one in rows.items():
            found.setdefault(name, []).append(one)
            _note(f"seed {seed}, {name}: " + ", ".join(f"{column} {one[column]:.3f}" for column in COLUMNS))
    for name, measured in found.items():
        show(name, measured)


def _embedded(world: World, tail: nn.Module) -> Cohort:
    return Cohort(embedded(world.maps.train, tail), embedded(world.maps.val, tail), world.maps.cells)


def show(name: str, rows: Sequence[Row]) -> None:
    """Print a row, with the CPU time so far beside it on the other stream."""
    print(f"| {name} | {' | '.join(spread([row[column] for row in rows]) for column in COLUMNS)} |", flush=True)
    _note(name)


def _note(what: str) -> None:
    print(f"{what}: {time.process_time() / 60:.1f} CPU min so far, load {os.getloadavg()[0]:.1f}", file=sys.stderr,
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
