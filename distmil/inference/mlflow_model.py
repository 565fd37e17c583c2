"""The network as a model of plain MLflow: without pickle and without distmil, for bags of any size.

N patches of a bag, E embedding, F feature, C classes, S scores.
"""

import copy
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from torch import Tensor, nn

from distmil.inference.bundle import Bundle
from distmil.inference.scoring import READ_OUTS
from distmil.models.network import Network
from distmil.models.pooling import log_weight
from distmil.tracking.models import DIGEST

logger = logging.getLogger(__name__)

PATCH_SCORES = ("attention", "probability", "topk_probability", "fused")
_EXAMPLE_PATCHES = 3  # torch.export takes sizes 0 and 1 for constants
_ROUNDING = 1e-5


def score_names(classes: Sequence[str]) -> list[str]:
    """Return what the columns of the exported network's answer are.

    Per patch its four scores, then the slide's three read-outs, the same in every row. Where there are more than two
    classes, the probability of each follows, of the patch and of the slide.
    """
    names = [*PATCH_SCORES, *READ_OUTS]
    if len(classes) > 2:
        names += [*(f"probability_{name}" for name in classes), *(f"bag_{name}" for name in classes)]
    return names


class ExportableNetwork(nn.Module):
    """Judges one bag as ``scoring.score_bag`` does, in one graph whose size is the bag's."""

    def __init__(self, head: Network, *, top_k: int, top_k_share: float) -> None:
        super().__init__()
        self.head = copy.deepcopy(head).cpu().float().eval().requires_grad_(False)
        self.top_k, self.top_k_share = top_k, top_k_share

    def forward(self, embedding_NE: Tensor) -> Tensor:
        """Return scores, N x S, from raw embeddings, N x E; see ``score_names``."""
        head = self.head
        feature_NF = self._feature(embedding_NE)
        raw_N = head.attend(feature_NF)
        class_NC = head.patch_logits(feature_NF, raw_N).softmax(1)
        topk_N = 1 - head.topk_logits(feature_NF, raw_N).softmax(1)[:, 0]
        attention_N, probability_N = raw_N.sigmoid(), class_NC[:, 1:].sum(1)
        fused_N = attention_N * probability_N
        bag_C = self._bag(feature_NF, raw_N)
        read_outs = [bag_C[1:].sum(), fused_N.amax(), self._topk_mean(fused_N)]
        slide_S = torch.stack([value.to(fused_N.dtype) for value in read_outs])
        patch_NS = torch.stack([attention_N, probability_N, topk_N, fused_N], 1)
        parts = [patch_NS, slide_S.expand(len_of(fused_N), -1)]
        if class_NC.shape[1] > 2:
            parts += [class_NC, bag_C.to(fused_N.dtype).expand(len_of(fused_N), -1)]
        return torch.cat(parts, 1)

    def _feature(self, embedding_NE: Tensor) -> Tensor:
        """Return patch features, N x F, without the blocks that save time in training."""
        normaliser, phi = self.head.normaliser, self.head.phi
        return nn.functional.linear(normaliser.centred(embedding_NE), normaliser.scale * phi.weight, phi.bias).relu()

    def _bag(self, feature_NF: Tensor, raw_N: Tensor) -> Tensor:
        """Return the bag's class probabilities, C."""
        log_N = log_weight(raw_N.double(), self.head.pooling)
        if self.head.pooling == "max":
            peak_N = (log_N == log_N.amax()).double()
            share_N = peak_N / peak_N.sum()
        else:
            share_N = log_N.softmax(0)
        bag_F = (share_N @ feature_NF.double()).to(feature_NF.dtype)
        return self.head.pooled_logits(bag_F[None]).double().softmax(1)[0]

    def _topk_mean(self, fused_N: Tensor) -> Tensor:
        """Return the mean of the K highest scores; a rank is below K = min(top_k, ceil(share n)) without naming it."""
        ordered_N = fused_N.double().sort(descending=True).values
        rank_N = torch.arange(len_of(fused_N), device=fused_N.device)
        chosen_N = (rank_N < self.top_k) & (rank_N.double() / self.top_k_share + _ROUNDING < len_of(fused_N))
        return (ordered_N * chosen_N).sum() / chosen_N.sum()


def len_of(values: Tensor) -> int:
    """Return a tensor's length; ``len`` would make it a constant of the exported graph."""
    return values.shape[0]


def save_model(folder: Path, bundle: Bundle) -> None:
    """Write a bundle's network as an MLflow model, which ``mlflow.pyfunc`` and ``mlflow.pytorch`` load.

    Args:
        folder: Where; it must not be there yet.
        bundle: The model.
    """
    names = score_names(bundle.classes)
    example_NE = bundle.head.normaliser.mean.detach().cpu().float().expand(_EXAMPLE_PATCHES, -1).numpy()
    with warnings.catch_warnings():
        # MLflow warns of its own type hints when its pyfunc is first imported, which is here.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        _save(folder, bundle, names, example_NE.copy())
    _forget_places(folder / "data" / "model.pt2")
    described = Model.load(str(folder))
    # The graph is a CPU's: where MLflow finds a GPU, it would refuse to load it.
    described.flavors["python_function"]["config"] = {"device": "cpu"}
    described.save(str(folder / "MLmodel"))


def _save(folder: Path, bundle: Bundle, names: Sequence[str], example_NE: NDArray[np.float32]) -> None:
    bags = bundle.config.bags
    mlflow.pytorch.save_model(
        ExportableNetwork(bundle.head, top_k=bags.top_k, top_k_share=bags.top_k_share),
        str(folder),
        serialization_format="pt2",
        input_example=example_NE,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, example_NE.shape[1]))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(names)))]),
        ),
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "torch", "numpy")],
        metadata={
            "columns": list(names),
            "classes": bundle.classes,
            "patch_threshold": bundle.patch_threshold,
            "slide_thresholds": dict(bundle.slide_thresholds),
            "encoder": bundle.config.encoder.name,
            "patch_px": bundle.config.tiling.patch_px,
            "mpp": bundle.config.tiling.mpp,
            DIGEST: bundle.digest,
        },
    )


def _forget_places(path: Path) -> None:
    """Take the paths of this machine out of a saved graph, where torch keeps them for its error messages."""
    program = torch.export.load(path)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
