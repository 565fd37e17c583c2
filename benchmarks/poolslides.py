"""Slides of any size put together from embeddings of the single patches of `pcam_pool`.

Each patch is embedded once, in two turns by 90 degrees; a slide is a grid of them, and a positive one has a connected
lesion of tumour patches. Patches of train.zip are cut into two parts, to learn on and to choose by; val.zip is for the
table alone, and its patches are from other scanned slides. Within a part, patches repeat from slide to slide, and
within the largest slides.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distmil.bags.bag import Bag
from distmil.config.loading import build_config
from distmil.encoders.registry import load_encoder, prepare_encoder
from distmil.models.regions import Places
from distmil.storage.store import Store

TURNS = 2
BATCH = 64
SIZES = {140: (10, 14), 600: (20, 30), 2400: (40, 60), 10_000: (100, 100)}
"""Rows and columns of the slides of each size."""
LEARN = 0.7
"""Share of the train patches to learn on; the others are to choose by."""


@dataclass(frozen=True)
class Pool:
    """Embeddings of normal and of tumour patches, N x E."""

    normal: NDArray[np.float16]
    tumour: NDArray[np.float16]

    @cached_property
    def all(self) -> NDArray[np.float16]:
        """Take the embeddings of all patches, the normal ones first."""
        return np.concatenate([self.normal, self.tumour])

    def halves(self) -> tuple["Pool", "Pool"]:
        """Cut the pool in two, every second patch each."""
        return Pool(self.normal[::2], self.tumour[::2]), Pool(self.normal[1::2], self.tumour[1::2])


def pools(data: Path, root: Path, *, encoder: str) -> dict[str, Pool]:
    """Embed the patches that are not embedded yet, and return the pools learn, choose and val."""
    found = {}
    for split in ("train", "val"):
        for kind in "01":
            file = root / f"{encoder}_{split}_{kind}.npy"
            if not file.exists():
                embedded = _embed(data / f"{split}.zip", kind, root, encoder)
                root.mkdir(parents=True, exist_ok=True)
                np.save(file, embedded)
            found[split, kind] = np.load(file)
    cut = {kind: _is_learned(found["train", kind].shape[1]) for kind in "01"}
    train = {part: Pool(*(_flat(found["train", kind][:, cut[kind] == (part == "learn")]) for kind in "01"))
             for part in ("learn", "choose")}  # fmt: skip
    return {**train, "val": Pool(*(_flat(found["val", kind]) for kind in "01"))}


def _is_learned(count: int) -> NDArray[np.bool_]:
    """Mark the patches to learn on, always the same; both turns of a patch are on one side."""
    return np.random.default_rng([5, count]).permutation(count) < LEARN * count


def _flat(turns_TNE: NDArray[np.float16]) -> NDArray[np.float16]:
    return turns_TNE.swapaxes(0, 1).reshape(-1, turns_TNE.shape[2])


def _embed(archive: Path, kind: str, root: Path, name: str) -> NDArray[np.float16]:
    """Embed all patches of a kind, turns x patches x E."""
    torch.set_num_threads(1)
    store = Store(str(root / "weights"))
    encoder = load_encoder(prepare_encoder(build_config({"encoder": {"name": name}}).encoder, store), store)
    with zipfile.ZipFile(archive) as pack:
        names = sorted(item for item in pack.namelist() if item.startswith(f"{kind}/") and item.endswith(".jpg"))
        images = np.stack([np.asarray(Image.open(io.BytesIO(pack.read(item))).convert("RGB")) for item in names])
    turned = [np.ascontiguousarray(np.rot90(images, turn, axes=(1, 2))) for turn in range(TURNS)]
    return np.stack([
        np.concatenate([encoder.embed(views[i : i + BATCH]) for i in range(0, len(views), BATCH)]).astype(np.float16)
        for views in turned
    ])  # fmt: skip


@dataclass(frozen=True)
class PoolSource:
    """A slide's patches as rows of a pool: many slides fit into memory, for none is copied."""

    embedding_PE: NDArray[np.float16]
    row_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_N)

    def take(self, indices: NDArray[np.int64] | slice) -> NDArray[np.float16]:
        """Take embeddings, N x E."""
        return self.embedding_PE[self.row_N[indices]]

    def pieces(self, indices: NDArray[np.int64] | slice) -> list[NDArray[np.float16]]:
        """Take embeddings in one piece."""
        return [self.take(indices)]


class _Deck:
    """Deals rows in random order, all of them before any comes again."""

    def __init__(self, count: int, generator: np.random.Generator) -> None:
        self._count, self._generator = count, generator
        self._rows = np.empty(0, np.int64)

    def deal(self, number: int) -> NDArray[np.int64]:
        while len(self._rows) < number:
            self._rows = np.concatenate([self._rows, self._generator.permutation(self._count)])
        dealt, self._rows = self._rows[:number], self._rows[number:]
        return dealt


def make_slides(
    pool: Pool, sizes: Sequence[int], per_class: int, *, lesion: tuple[int, int], seed: int, annotated: float = 1.0
) -> list[Bag]:
    """Put slides together, positive and negative ones in turn.

    Args:
        pool: Where the patches are from.
        sizes: Patches of the slides.
        per_class: Slides of each size and class.
        lesion: Fewest and most patches of a lesion.
        seed: Of patches, places and annotations.
        annotated: Share of the positive slides whose patches have labels; the others' are unknown.
    """
    generator = np.random.default_rng([seed, 11])
    normal, tumour = _Deck(len(pool.normal), generator), _Deck(len(pool.tumour), generator)
    count = per_class * len(sizes)
    known = set(generator.permutation(count)[: int(np.ceil(annotated * count))].tolist())
    slides = []
    for number, size in enumerate(np.repeat(sizes, per_class).tolist()):
        for label in (1, 0):
            is_target = np.zeros(SIZES[size], bool)
            if label:
                for cell in _lesion(SIZES[size], int(generator.integers(lesion[0], lesion[1] + 1)), generator):
                    is_target[cell] = True
            target_N = is_target.ravel()
            row_N = np.empty(len(target_N), np.int64)
            row_N[~target_N] = normal.deal(int((~target_N).sum()))
            row_N[target_N] = len(pool.normal) + tumour.deal(int(target_N.sum()))
            is_known = not label or number in known
            slides.append(
                _bag(f"{size}-{number}-{label}", label, PoolSource(pool.all, row_N), is_target, is_known=is_known)
            )
    return slides


def _lesion(shape: tuple[int, int], size: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Grow a connected lesion cell by cell from a random place."""
    cells = [(int(generator.integers(shape[0])), int(generator.integers(shape[1])))]
    while len(cells) < size:
        row, column = cells[int(generator.integers(len(cells)))]
        down, right = ((0, 1), (0, -1), (1, 0), (-1, 0))[int(generator.integers(4))]
        cell = (row + down, column + right)
        if cell not in cells and 0 <= cell[0] < shape[0] and 0 <= cell[1] < shape[1]:
            cells.append(cell)
    return cells


def _bag(slide_id: str, label: int, source: PoolSource, is_target: NDArray[np.bool_], *, is_known: bool) -> Bag:
    row_N, column_N = (axis.ravel().astype(np.int32) for axis in np.indices(is_target.shape))
    label_N = is_target.ravel().astype(np.int8) if is_known else np.full(is_target.size, -1, np.int8)
    target_NC = np.full((is_target.size, 2), np.nan, np.float32)
    target_NC[label_N >= 0] = np.eye(2, dtype=np.float32)[label_N[label_N >= 0]]
    places = Places(column_N * 96, row_N * 96, 96)
    return Bag(slide_id, label, source, label_N, target_NC, places=places)
