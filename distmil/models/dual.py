"""The method's network: an attention block and two classifiers over patch embeddings.

T patches, F feature, C classes.
"""

from typing import ClassVar

from torch import Tensor, nn

from distmil.config.learning import ModelConfig
from distmil.models.network import GatedNetwork, exact
from distmil.models.pooling import Pooling


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
