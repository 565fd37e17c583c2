"""CUDA graphs of a step's losses and gradients, replayed without the host.

On an H100 7.2 million patches/s against 2.3 million without them (``docs/training.md``).

A step of the default network is some 200 small kernels. Launching them takes the host several times as long as the GPU
takes to run them; a graph of them is one launch. A graph is bound to the sizes and the memory that it was made with:
there is one for each size of batch that came twice, and all read from one buffer of patches.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distmil.bags.loader import Batch
from distmil.models.layout import TopK

MAX_GRAPHS = 48

Work = Callable[[Batch], Tensor | None]


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    batch: Batch
    """What the graph reads."""
    numbers: Tensor | None
    gradients: list[Tensor | None]
    work: Work
    """Holds all other memory that the graph reads."""


class StepGraphs:
    """Does a batch's work the first time, records it the second, and replays it from then on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, _Recorded] = {}
        self._patches: Tensor | None = None
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def num_recorded(self) -> int:
        """Return how many graphs there are."""
        return len(self._recorded)

    def run(self, work: Work, batch: Batch, parameters: list[nn.Parameter], constants: Hashable) -> Tensor | None:
        """Do the work of a batch and leave its gradients in the parameters, which had none.

        Args:
            work: Computes numbers and gradients, without waiting for the device.
            batch: Its input, on the GPU.
            parameters: What gets gradients.
            constants: All else that the work depends on, apart from weights and random numbers.
        """
        shapes = tuple(tensor.shape for tensor in batch.tensors)
        key = (constants, batch.has_target, len(batch.layout.lengths), shapes)
        if key not in self._recorded and (key not in self._seen or len(self._recorded) >= MAX_GRAPHS):
            self._seen.add(key)
            return work(batch)
        if key not in self._recorded:
            self._recorded[key] = self._record(work, batch, parameters)
        found = self._recorded[key]
        for mine, given in zip(found.batch.tensors, batch.tensors, strict=True):
            mine.copy_(given)
        found.graph.replay()
        for parameter, gradient in zip(parameters, found.gradients, strict=True):
            parameter.grad = gradient
        return found.numbers

    def _record(self, work: Work, batch: Batch, parameters: list[nn.Parameter]) -> _Recorded:
        own, graph = self._own(batch), torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")  # other threads go on loading
            try:
                numbers = work(own)
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return _Recorded(graph, own, numbers, [parameter.grad for parameter in parameters], work)

    def _own(self, batch: Batch) -> Batch:
        """Return a batch of the same sizes in memory that stays."""
        patches, *others = batch.tensors
        if self._patches is None or len(self._patches) < len(patches):
            self._patches = torch.empty_like(patches)  # graphs of smaller batches keep the buffer that they read
        bag_T, place_K, bag_K, label_B, is_hard_B, target_NC = (torch.empty_like(tensor) for tensor in others)
        return replace(
            batch,
            patches=self._patches[: len(patches)],
            layout=replace(batch.layout, bag_T=bag_T),
            top_k=TopK(place_K, bag_K),
            label_B=label_B,
            is_hard_B=is_hard_B,
            target_NC=target_NC,
        )
