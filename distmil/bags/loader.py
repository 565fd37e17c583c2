"""From a planned step to tensors on the device, read ahead in the background.

T patches of the step, B slide bags, N patches of the mixed bag, E embedding, C classes.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmil.bags.bag import Bag
from distmil.bags.sampler import MIXED, Step
from distmil.bags.source import EmbeddingSource, Indices, Patches, PatchSource
from distmil.config.learning import BagsConfig
from distmil.models.layout import BagLayout, TopK
from distmil.models.tensors import as_tensor, on_device
from distmil.processes.background import read_ahead

Item = TypeVar("Item")
Result = TypeVar("Result")
Pick: TypeAlias = tuple[PatchSource, Indices | slice]
"""Some patches of a bag."""

SIZES = 8
"""Sizes that a GPU's steps are padded to, up to a whole one. CUDA graphs need few: they make a step 3.1x as fast."""
GPU_LOADERS = 2
PACKERS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step, packed: slide bags first, then padding, then the mixed bag."""

    patches: Tensor
    layout: BagLayout
    """The slide bags, padding as one more bag where there is any, and the mixed bag as one more."""
    top_k: TopK
    """Of the slide bags."""
    label_B: Tensor
    """Of the slide bags."""
    target_NC: Tensor
    has_target: bool
    """Whether any patch of the mixed bag holds target."""

    @property
    def num_slide_patches(self) -> int:
        """Return T without padding and mixed bag."""
        return sum(self.layout.lengths[: len(self.label_B)])

    @property
    def tensors(self) -> list[Tensor]:
        """List the tensors on the device."""
        top_k = [self.top_k.place_K, self.top_k.bag_K]
        return [self.patches, self.layout.bag_T, *top_k, self.label_B, self.target_NC]


def load_batch(
    bags: Sequence[Bag],
    step: Step,
    mine: Sequence[int],
    config: BagsConfig,
    device: torch.device,
    *,
    is_padded: bool = False,
) -> Batch | None:
    """Read a worker's share of a step; None if it has none.

    Args:
        bags: All training bags.
        step: The workers' step.
        mine: This worker's share of it.
        config: The step's size, and K.
        device: Where the tensors go.
        is_padded: Fill the slide bags up to a multiple of an eighth of a step with patches that no loss looks at, so
            that there are few sizes.
    """
    if not mine:
        return None
    slides = [i for i in mine if i != MIXED]
    picks: list[Pick] = [(step.source(bags, i), step.samples.get(i, slice(None))) for i in slides]
    lengths = [len(step.samples[i]) if i in step.samples else len(bags[i]) for i in slides]
    target_NC = np.empty((0, bags[0].target_NC.shape[1]), np.float32)
    if picks and is_padded:
        lengths.append(padding(sum(lengths), config.patches_per_step))
        picks.append(_repeat(picks[0][0], lengths[-1]))
    if MIXED in mine:
        drawn = _by_bag(step)
        picks += [(step.source(bags, i), patches) for i, patches in drawn]
        target_NC = np.concatenate([bags[i].target_NC[patches] for i, patches in drawn])
        lengths.append(len(target_NC))
    layout = BagLayout.of(lengths, device)
    return Batch(
        patches=pack(picks, device),
        layout=layout,
        top_k=layout.top_k(config.top_k, share=config.top_k_share, num_bags=len(slides)),
        label_B=on_device(np.array([bags[i].label or 0 for i in slides], np.int64), device),
        target_NC=on_device(target_NC, device),
        has_target=bool((target_NC[:, 0] < 1).any()),
    )


def padding(num_patches: int, patches_per_step: int) -> int:
    """Count the patches that fill up a step, at least one: the layout is then always the same."""
    unit = max(1, patches_per_step // SIZES)
    return unit - num_patches % unit


def _repeat(source: PatchSource, count: int) -> Pick:
    """Repeat a source's first patch."""
    if isinstance(source, ResidentSource):
        return source, np.zeros(count, np.int64)
    first = np.asarray(source.take(slice(0, 1)))
    return EmbeddingSource([np.broadcast_to(first, (count, *first.shape[1:]))]), slice(None)


def _by_bag(step: Step) -> list[tuple[int, Indices]]:
    """Return the mixed bag's patches of each bag."""
    order = step.mixed_bag.argsort(kind="stable")
    found, starts = np.unique(step.mixed_bag[order], return_index=True)
    edges, patches = [*starts.tolist(), len(order)], step.mixed_patch[order]
    return [(i, patches[a:b]) for i, (a, b) in zip(found.tolist(), itertools.pairwise(edges), strict=True)]


def pack(picks: Sequence[Pick], device: torch.device) -> Tensor:
    """Copy patches of bags one after the other to the device."""
    resident = [(source, indices) for source, indices in picks if isinstance(source, ResidentSource)]
    if resident:
        return gather(resident)
    pieces = [np.asarray(piece) for source, indices in picks for piece in source.pieces(indices)]
    shape = (sum(map(len, pieces)), *pieces[0].shape[1:])
    dtype = torch.from_numpy(np.empty(0, pieces[0].dtype)).dtype
    packed = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    copy_together(pieces, packed.numpy())
    return packed.to(device, non_blocking=True)


def copy_together(pieces: Sequence[NDArray[Any]], packed: NDArray[Any]) -> None:
    """Copy pieces one after the other, in several threads: one copies an eighth of what a GPU can take in."""
    stops = np.cumsum([len(piece) for piece in pieces])
    cuts = np.searchsorted(stops, np.linspace(0, stops[-1], PACKERS + 1))
    cuts[-1] = len(pieces)

    def copy(start: int, stop: int) -> None:
        if stop > start:
            np.concatenate(pieces[start:stop], out=packed[stops[start] - len(pieces[start]) : stops[stop - 1]])

    list(_packers().map(copy, cuts[:-1], cuts[1:]))


@functools.cache
def _packers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(PACKERS, thread_name_prefix="pack")


@dataclass(frozen=True)
class ResidentSource:
    """A slide's embeddings in the device's memory, among those of all slides."""

    all_ME: Tensor
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def take(self, indices: Indices | slice) -> Tensor:
        """Return embeddings, N x E, on the device; a slice is not copied."""
        return gather([(self, indices)])

    def pieces(self, indices: Indices | slice) -> list[Patches]:
        """Take embeddings as one piece."""
        return [self.take(indices)]

    def rows(self, indices: Indices | slice) -> Indices:
        """Return where patches are among those of all slides."""
        if isinstance(indices, slice):
            start, stop, _ = indices.indices(self.count)
            return np.arange(self.start + start, self.start + stop)
        return self.start + indices


def gather(picks: Sequence[tuple[ResidentSource, Indices | slice]]) -> Tensor:
    """Return patches of resident slides one after the other, in one pass over them; one slice is not copied."""
    (source, indices), *others = picks
    if isinstance(indices, slice) and not others:
        start, stop, _ = indices.indices(source.count)
        return source.all_ME[source.start + start : source.start + stop]
    row_T = np.concatenate([source.rows(indices) for source, indices in picks])
    return source.all_ME.index_select(0, on_device(row_T, source.all_ME.device))


def make_resident(bags: Sequence[Bag], device: torch.device) -> list[Bag]:
    """Return the bags with their embeddings, views and all, copied to the device."""
    sources = [source for bag in bags for source in (bag.source, *bag.views)]
    first = as_tensor(np.asarray(bags[0].source.take(slice(0, 1))))
    all_ME = first.new_empty((sum(map(len, sources)), first.shape[1]), device=device)
    copied, start = [], 0
    for rows in load_ahead(lambda source: pack([(source, slice(None))], device), sources, device):
        stop = start + len(rows)
        all_ME[start:stop] = rows
        copied.append(ResidentSource(all_ME, start, stop - start))
        start = stop
    taken = iter(copied)
    return [replace(bag, source=next(taken), views=list(itertools.islice(taken, len(bag.views)))) for bag in bags]


def load_ahead(load: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """Load items ahead of their use and yield them in order; copies to a GPU run beside its computations.

    Args:
        load: Returns tensors on the device: a batch, rows, or a tuple of them.
        items: The items.
        device: Where it goes.
    """
    if device.type != "cuda":
        yield from read_ahead(load, items)
        return
    current = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(current)  # resident embeddings may still be on their way

    def on_stream(item: Item) -> tuple[Result, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return load(item), stream.record_event()

    for made, is_loaded in read_ahead(on_stream, items, ahead=GPU_LOADERS):
        current.wait_event(is_loaded)
        for tensor in _tensors(made):
            tensor.record_stream(current)  # its memory goes back to the other stream, not before this one is done
        yield made


def _tensors(made: object) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, Batch):
        yield from made.tensors
    elif isinstance(made, list | tuple):
        for part in made:
            yield from _tensors(part)
