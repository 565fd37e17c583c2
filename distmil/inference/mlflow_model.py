"""The network as a model of plain MLflow: without pickle and without distmil, for bags of any size.

N patches of a bag, E embedding, F feature, C classes, S scores.
"""

import copy
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
from distmil.inference.scoring import NETWORK_READ_OUTS
from distmil.models.layout import top_k_mean
from distmil.models.network import Network
from distmil.models.pooling import RunningPool
from distmil.tracking.training_run import DIGEST

MODEL_SCORES = ("attention", "probability", "topk_probability", "fused")
_EXAMPLE_PATCHES = 3  # torch.export takes sizes 0 and 1 for constants


def score_names(classes: Sequence[str]) -> list[str]:
    """List the columns of the exported network's answer.

    Each row has the patch's four scores, then the slide's read-outs that need no places, repeated in every row. Where
    there are more than two classes, the probability of each follows, of the patch and of the slide.
    """
    names = [*MODEL_SCORES, *NETWORK_READ_OUTS]
    if len(classes) > 2:
        names += [*(f"probability_{name}" for name in classes), *(f"bag_{name}" for name in classes)]
    return names


class ExportableNetwork(nn.Module):
    """Scores one bag as ``scoring.score_bag`` does, in one graph for bags of any size."""

    def __init__(self, heads: Sequence[Network], *, top_k: int, top_k_share: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(head).cpu().float().eval().requires_grad_(False) for head in heads)
        self.top_k, self.top_k_share = top_k, top_k_share

    def forward(self, embedding_NE: Tensor) -> Tensor:
        """Compute scores, N x S, from raw embeddings, N x E; see ``score_names``."""
        scored = [_scored(head, embedding_NE) for head in self.heads]
        attention_N, class_NC, topk_N, bag_C = (torch.stack(same).mean(0) for same in zip(*scored, strict=True))
        probability_N = class_NC[:, 1:].sum(1)
        fused_N = attention_N * probability_N
        read_outs = [bag_C[1:].sum(), fused_N.amax(), top_k_mean(fused_N, self.top_k, share=self.top_k_share)]
        slide_S = torch.stack([value.to(fused_N.dtype) for value in read_outs])
        num_patches = fused_N.shape[0]  # len() would be a constant of the exported graph
        parts = [torch.stack([attention_N, probability_N, topk_N, fused_N], 1), slide_S.expand(num_patches, -1)]
        if class_NC.shape[1] > 2:
            parts += [class_NC, bag_C.to(fused_N.dtype).expand(num_patches, -1)]
        return torch.cat(parts, 1)


def _scored(head: nn.Module, embedding_NE: Tensor) -> tuple[Tensor, ...]:
    """Compute one network's attention, N, class probabilities, N x C, C2's probability, N, and the bag's, C."""
    assert isinstance(head, Network)
    feature_NF, raw_N = head(embedding_NE)
    class_NC = head.patch_logits(feature_NF, raw_N).softmax(1)
    topk_N = 1 - head.topk_logits(feature_NF, raw_N).softmax(1)[:, 0]
    pooled = RunningPool(head.pooling)
    pooled.add(feature_NF, raw_N)
    bag_C = head.pooled_logits(pooled.result().to(feature_NF.dtype)[None]).double().softmax(1)[0]
    return raw_N.sigmoid(), class_NC, topk_N, bag_C


def save_model(folder: Path, bundle: Bundle) -> None:
    """Write a bundle's network as an MLflow model, which ``mlflow.pyfunc`` and ``mlflow.pytorch`` load.

    Args:
        folder: Where; it must not be there yet.
        bundle: The model.
    """
    names = score_names(bundle.classes)
    example_NE = bundle.heads[0].normaliser.mean.detach().cpu().float().expand(_EXAMPLE_PATCHES, -1).numpy()
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
        ExportableNetwork(bundle.heads, top_k=bags.top_k, top_k_share=bags.top_k_share),
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
