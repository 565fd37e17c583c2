"""The network: an attention block and two classifiers over patch embeddings.

T patches, B bags, E embedding, F feature, A attention, C classes.
"""

import torch
from torch import Tensor, nn

from distmil.config import ModelConfig
from distmil.models.pooling import pool

CLIP = 6.0


class Normaliser(nn.Module):
    """Clips embeddings to the training patches' range and standardises them; its statistics travel with the weights."""

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((embedding_dim,), -torch.inf))
        self.register_buffer("high", torch.full((embedding_dim,), torch.inf))
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("scale", torch.ones(embedding_dim))

    def fit(self, embedding_TE: Tensor) -> None:
        """Take the statistics of training patches: the 0.1 to 99.9 % range, then mean and deviation inside it.

        A constant dimension becomes zero.
        """
        sample_TE = embedding_TE.float()
        ordered_TE = sample_TE.sort(dim=0).values
        last = len(ordered_TE) - 1
        self.low.copy_(ordered_TE[round(0.001 * last)])
        self.high.copy_(ordered_TE[round(0.999 * last)])
        clipped_TE = sample_TE.clamp(self.low, self.high)
        self.mean.copy_(clipped_TE.mean(0))
        deviation = clipped_TE.std(0, correction=0)
        self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0))

    def forward(self, embedding_TE: Tensor) -> Tensor:
        """Return normalised embeddings, T x E, within +-CLIP."""
        clipped_TE = embedding_TE.clamp(self.low, self.high)
        return ((clipped_TE - self.mean) * self.scale).clamp(-CLIP, CLIP)


class DualNetwork(nn.Module):
    """Attention block phi and gated attention, C1 for patches and bags, C2 for top-K patches.

    Source: DESIGN section 1; gated attention of Ilse et al. 2018, equation 9, with both gates in one product.
    """

    def __init__(self, config: ModelConfig, *, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.normaliser = Normaliser(embedding_dim)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.phi = nn.Sequential(nn.Linear(embedding_dim, config.feature_dim), nn.ReLU(), nn.Dropout(config.dropout))
        self.gates = nn.Linear(config.feature_dim, 2 * config.attention_dim)
        self.score = nn.Linear(config.attention_dim, 1)
        self.classifier = nn.Linear(config.feature_dim, num_classes)
        self.topk_classifier = nn.Linear(config.feature_dim, num_classes)

    def forward(self, embedding_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch features, T x F, and raw attention scores, T, from raw embeddings, T x E."""
        normal_TE = self.input_dropout(self.normaliser(embedding_TE))
        feature_TF = self.phi(normal_TE)
        value_TA, gate_TA = self.gates(feature_TF).chunk(2, dim=1)
        attention_T = self.score(value_TA.tanh() * gate_TA.sigmoid())[:, 0]
        return feature_TF, attention_T

    def patch_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Return C1's logits of single patches, T x C."""
        return self._judge(self.classifier, self.config.patch_feature, feature_TF, attention_T)

    def topk_logits(self, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        """Return C2's logits of single patches, T x C; meant for the top-K patches alone."""
        return self._judge(self.topk_classifier, self.config.topk_feature, feature_TF, attention_T)

    def bag_logits(self, feature_TF: Tensor, attention_T: Tensor, offsets: Tensor) -> Tensor:
        """Return C1's logits of packed bags, B x C."""
        return self.pooled_logits(pool(feature_TF, attention_T, offsets))

    def pooled_logits(self, bag_BF: Tensor) -> Tensor:
        """Return C1's logits of bag vectors, B x C."""
        logits_BC: Tensor = self.classifier(bag_BF)
        return logits_BC

    @staticmethod
    def _judge(classifier: nn.Module, form: str, feature_TF: Tensor, attention_T: Tensor) -> Tensor:
        if form == "attended":
            feature_TF = attention_T.sigmoid()[:, None] * feature_TF
        logits_TC: Tensor = classifier(feature_TF)
        return logits_TC
