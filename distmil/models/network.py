"""The method's network, and what every network over patch embeddings shares: a normaliser, a feature, a classifier.

Under autocast only the wide products run in half precision; scores and logits are fp32.

T patches, B bags, E embedding, F feature, A attention, C classes.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from distmil.config.learning import ModelConfig
from distmil.models.layout import BagLayout
from distmil.models.normaliser import Normaliser
from distmil.models.pooling import PooledPart, Pooling, pool
from distmil.models.tensors import drop_by_bytes, widen


class Network(nn.Module):
    """A normaliser, phi and C1. Subclasses say how patches are attended and pooled, and what they learn from."""

    pooling: ClassVar[Pooling]
    losses: ClassVar[frozenset[str]] = frozenset({"bag"})
    """Losses that it can learn from."""
    bag_loss_on_patches: ClassVar[bool] = False
    """The bag loss is the mean over the bag's patches, each under the bag's label."""

    def __init__(self, config: ModelConfig, *, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.normaliser = Normaliser(embedding_dim)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.phi = nn.Linear(embedding_dim, config.feature_dim)
        self.feature_dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.feature_dim, num_classes)

    def draw_scale(self) -> Tensor:
        """Draw the factor of each dimension, E: 0 where it is dropped, alike for all patches of a pass."""
        scale_E: Tensor = self.input_dropout(self.normaliser.scale)
        return scale_E

    def forward(self, embedding_TE: Tensor, scale_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute patch features, T x F, and raw attention scores, T, from raw embeddings, T x E.

        Args:
            embedding_TE: Raw embeddings.
            scale_E: The factors of ``draw_scale``, for passes that belong together; None: a fresh draw.
        """
        # The normaliser's factors go into the weights: F x E products in place of T x E.
        weight_FE = (self.draw_scale() if scale_E is None else scale_E) * self.phi.weight
        feature_TF = nn.functional.linear(self.normaliser.centred(embedding_TE), weight_FE, self.phi.bias).relu_()
        if self.training and self.feature_dropout.p:
            is_stored = embedding_TE.device.type == "cpu" and not embedding_TE.requires_grad
            dropout = drop_by_bytes if is_stored else nn.functional.dropout
            feature_TF = dropout(feature_TF, self.feature_dropout.p)
        return feature_TF, self.attend(feature_TF)

    def attend(self, feature_TF: Tensor) -> Tensor:
        """Compute raw attention scores, T."""
        raise NotImplementedError

    def patch_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Compute C1's logits of single patches, T x C."""
        del attention_T
        return exact(self.classifier, feature_TF)

    def topk_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Compute the logits of single top-K patches, T x C; C1's, where there is no second classifier."""
        return self.patch_logits(feature_TF, attention_T)

    def bag_logits(self, feature_TF: Tensor, attention_T: Tensor, layout: BagLayout) -> Tensor:
        """Compute C1's logits of packed bags, B x C."""
        return self.pooled_logits(pool(feature_TF, attention_T, layout, self.pooling))

    def pool_part(self, feature_TF: Tensor, attention_T: Tensor, bag_T: Tensor, *, num_bags: int) -> PooledPart:
        """Sum some patches into parts of their bags' vectors."""
        return PooledPart.of(feature_TF, attention_T, bag_T, num_bags=num_bags, pooling=self.pooling)

    def pooled_logits(self, bag_BF: Tensor) -> Tensor:
        """Compute C1's logits of bag vectors, B x C."""
        return exact(self.classifier, bag_BF)


class GatedNetwork(Network):
    """Gated attention. Source: Ilse et al. 2018, equation 9, with both gates in one product."""

    def __init__(self, config: ModelConfig, *, embedding_dim: int, num_classes: int) -> None:
        super().__init__(config, embedding_dim=embedding_dim, num_classes=num_classes)
        self.gates = nn.Linear(config.feature_dim, 2 * config.attention_dim)
        self.score = nn.Linear(config.attention_dim, 1)

    def attend(self, feature_TF: Tensor) -> Tensor:
        """Compute raw attention scores, T."""
        value_TA, gate_TA = self.gates(feature_TF).chunk(2, dim=1)
        return exact(self.score, value_TA.tanh() * gate_TA.sigmoid())[:, 0]


class DualNetwork(GatedNetwork):
    """Attention block phi and gated attention, C1 for patches and bags, C2 for top-K patches.

    Source: DESIGN section 1.
    """

    pooling: ClassVar[Pooling] = "sigmoid"
    losses: ClassVar[frozenset[str]] = frozenset({"patch", "bag", "topk", "attention"})

    def __init__(self, config: ModelConfig, *, embedding_dim: int, num_classes: int) -> None:
        super().__init__(config, embedding_dim=embedding_dim, num_classes=num_classes)
        self.topk_classifier = nn.Linear(config.feature_dim, num_classes)

    def patch_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Compute C1's logits of single patches, T x C."""
        return _classify(self.classifier, self.config.patch_feature, feature_TF, attention_T)

    def topk_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Compute C2's logits of single patches, T x C; meant for the top-K patches alone."""
        return _classify(self.topk_classifier, self.config.topk_feature, feature_TF, attention_T)


def _classify(classifier: nn.Linear, form: str, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
    return exact(classifier, attention_T.sigmoid()[:, None] * feature_TF if form == "attended" else feature_TF)


def exact(layer: nn.Linear, values: Tensor) -> Tensor:
    """Apply a layer in its own precision, whatever autocast says."""
    with torch.autocast(values.device.type, enabled=False):
        return nn.functional.linear(widen(values), layer.weight, layer.bias)
