"""A small pre-training: shards of random patches in a store, and a network of a few layers."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmil.bags.bag import BagEntry
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.networks.patch_encoder import PatchEncoder
from distmil.encoders.registry import EncoderSpec
from distmil.pretraining import run as runs
from distmil.pretraining.run import Run, open_run
from distmil.storage.schemas import PATCHES
from distmil.storage.store import Store
from distmil.tiling.shards import encode_shard
from tests.support.networks import patches

WIDTH = 12
ROW = EncoderRow("tiny", "own", width=WIDTH, input_px=24, prefix_tokens=0)
SPEC = EncoderSpec("tiny", "d" * 64, WIDTH, "encoders/tiny.safetensors")
SIZES = ((9, 14), (16,), (11, 5), (13,))
"""Patches of each shard of each slide."""


class SmallNetwork(nn.Module):
    """A convolution, a frozen batch norm, dropout and a linear layer on normalised images."""

    def __init__(self, seed: int = 0, *, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.norm = nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8)
            self.dropout, self.last = nn.Dropout(dropout), nn.Linear(8, WIDTH)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        found: Tensor = self.last(self.dropout(self.norm(self.stem(images_N3HW)).relu().mean((2, 3))))
        return found


def small_config(**settings: Any) -> Config:
    values = {
        "epochs": 2, "batch_patches": 16, "hidden_dim": 16, "projection_dim": 16, "probe_patches": 64,
        "learning_rate": 1e-3, "warmup_steps": 2,
    }  # fmt: skip
    return build_config({"encoder": {"name": "efficientnet_lite0"}, "pretraining": {**values, **settings}})


def images_of(slide: int, sizes: Sequence[int]) -> NDArray[np.uint8]:
    """The patches of a slide, wider than high."""
    return patches(sum(sizes), 20, 28, seed=slide)


def write_slides(store: Store, sizes: Sequence[Sequence[int]] = SIZES) -> list[BagEntry]:
    """Write the shards of slides; every second slide is positive."""
    entries = []
    for slide, counts in enumerate(sizes):
        images, parts, first = images_of(slide, counts), [], 0
        for number, count in enumerate(counts):
            own = images[first : first + count]
            encoded = [bytes(cv2.imencode(".png", image[..., ::-1])[1]) for image in own]
            values = {
                "slide_id": [f"s{slide}"] * count, "x": range(first, first + count), "y": [0] * count,
                "extent_px": [1] * count, "mpp": [0.5] * count, "tissue_fraction": [1.0] * count, "image": encoded,
            }  # fmt: skip
            table = pa.table({name: list(column) for name, column in values.items()}, schema=PATCHES)
            data = encode_shard(table)
            parts.append(store.write_part(f"patches/s{slide}", f"part-{number:05d}.parquet", data, rows=count))
            first += count
        entries.append(BagEntry(f"s{slide}", slide % 2, "train", False, f"patches/s{slide}", tuple(parts), None))
    return entries


def use_small_network(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Have every run begin with one small network."""
    monkeypatch.setattr(runs, "load_trainable", lambda *_: PatchEncoder(ROW, SmallNetwork(**options)))


def open_small(store: Store, entries: Sequence[BagEntry], config: Config, *, name: str | None = None) -> Run:
    return open_run(config, entries, SPEC, store, name=name, device=torch.device("cpu"))


def states_of(run: Run) -> dict[str, Tensor]:
    """Every tensor of the modules and of the optimiser."""
    found = {key: value.clone() for key, value in run.learner.modules.state_dict().items()}
    for number, state in run.learner.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{key}": value.clone() for key, value in state.items()}
    return found
