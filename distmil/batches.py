"""From a planned step to tensors on the device, read ahead in the background.

T patches of the step, B slide bags, N patches of the mixed bag, E embedding, C classes.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from distmil.bags import Bag, Indices, Patches, PatchSource
from distmil.models.pooling import Layout
from distmil.sampling import MIXED, Step
from distmil.tensors import Rows, in_one, num_rows, on_device, touch, without_copy

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step, packed: slide bags first, then the mixed bag."""

    patches: Rows
    layout: Layout
    """The slide bags, and the mixed bag as one more."""
    label_B: Tensor
    """Of the slide bags."""
    target_NC: Tensor
    has_target: bool
    """Whether any patch of the mixed bag holds target."""

    @property
    def num_bag_patches(self) -> int:
        """Return T without the mixed bag."""
        return num_rows(self.patches) - len(self.target_NC)


def load_batch(bags: Sequence[Bag], step: Step, mine: Sequence[int], device: torch.device) -> Batch | None:
    """Read a worker's share of a step; None if it has none."""
    if not mine:
        return None
    whole = slice(None)
    slides = [i for i in mine if i != MIXED]
    taken = [step.source(bags, i).pieces(step.samples.get(i, whole)) for i in slides]
    lengths = [sum(len(piece) for piece in pieces) for pieces in taken]
    target_NC = np.empty((0, bags[0].target_NC.shape[1]), np.float32)
    if MIXED in mine:
        drawn = [(i, step.mixed_patch[step.mixed_bag == i]) for i in np.unique(step.mixed_bag).tolist()]
        taken += [step.source(bags, i).pieces(patches) for i, patches in drawn]
        target_NC = np.concatenate([bags[i].target_NC[patches] for i, patches in drawn])
        lengths.append(len(target_NC))
    return Batch(
        patches=pack([piece for pieces in taken for piece in pieces], device),
        layout=Layout.of(lengths, device),
        label_B=on_device(np.array([bags[i].label or 0 for i in slides], np.int64), device),
        target_NC=torch.from_numpy(target_NC).to(device, non_blocking=True),
        has_target=bool((target_NC[:, 0] < 1).any()),
    )


def load_piece(source: PatchSource, indices: Indices | slice, device: torch.device) -> Rows:
    """Read some patches of a bag."""
    return pack(source.pieces(indices), device)


def pack(pieces: Sequence[Patches], device: torch.device) -> Rows:
    """Return pieces one after the other on the device; on a CPU embeddings stay where they are mapped."""
    if isinstance(pieces[0], Tensor):
        return in_one([torch.as_tensor(piece) for piece in pieces])
    if device.type == "cpu" and pieces[0].ndim == 2:
        for piece in pieces:
            touch(np.asarray(piece))
        return [without_copy(np.asarray(piece)) for piece in pieces]
    rows = sum(len(piece) for piece in pieces)
    shape = (rows, *pieces[0].shape[1:])
    is_gpu = device.type == "cuda"
    packed = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, pieces[0].dtype)).dtype, pin_memory=is_gpu)
    np.concatenate(pieces, out=packed.numpy())
    return packed.to(device, non_blocking=True)


@dataclass(frozen=True)
class ResidentSource:
    """A slide's embeddings in the device's memory."""

    patches: Tensor

    def __len__(self) -> int:
        return len(self.patches)

    def take(self, indices: Indices | slice) -> Tensor:
        """Return embeddings, N x E, on the device; a slice is not copied."""
        if isinstance(indices, slice):
            return self.patches[indices]
        return self.patches[on_device(indices, self.patches.device)]

    def pieces(self, indices: Indices | slice) -> list[Patches]:
        """Return the same as one piece."""
        return [self.take(indices)]


def make_resident(bags: Sequence[Bag], device: torch.device) -> list[Bag]:
    """Return the bags with their embeddings, views and all, copied to the device."""

    def copied(source: PatchSource) -> ResidentSource:
        return ResidentSource(in_one(load_piece(source, slice(None), device)))

    return [replace(bag, source=copied(bag.source), views=[copied(view) for view in bag.views]) for bag in bags]


def read_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield what ``make`` makes of each item, one ahead, in a thread; its errors are raised here."""
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    is_stopped = threading.Event()

    def put(value: tuple[bool, Any]) -> bool:
        while not is_stopped.is_set():
            try:
                made.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, make(item))):
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001  # raised again by the reader
            put((False, error))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = made.get()
            if not is_item:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        is_stopped.set()
        thread.join()
