"""Baselines behind the method's interface, and the choice among all networks by name.

T patches, F feature, A attention, C classes.
"""

from typing import ClassVar

from torch import Tensor, nn

from distmil.config.learning import ModelConfig
from distmil.models.network import DualNetwork, GatedNetwork, Network, exact
from distmil.models.pooling import Pooling


class AttentionMIL(Network):
    """Attention pooling with softmax weights. Source: Ilse et al. 2018, equations 7 and 8."""

    pooling: ClassVar[Pooling] = "softmax"

    def __init__(self, config: ModelConfig, *, embedding_dim: int, num_classes: int) -> None:
        super().__init__(config, embedding_dim=embedding_dim, num_classes=num_classes)
        self.value = nn.Linear(config.feature_dim, config.attention_dim)
        self.score = nn.Linear(config.attention_dim, 1)

    def attend(self, feature_TF: Tensor) -> Tensor:
        """Return raw attention scores, T."""
        return exact(self.score, self.value(feature_TF).tanh())[:, 0]


class GatedAttentionMIL(GatedNetwork):
    """Gated attention pooling with softmax weights. Source: Ilse et al. 2018, equation 9."""

    pooling: ClassVar[Pooling] = "softmax"


class PatchScorer(Network):
    """No attention block: what C1 sees in a patch, as log odds of any class but 0, is its attention."""

    def attend(self, feature_TF: Tensor) -> Tensor:
        """Return the log odds of any class but 0, T."""
        logits_TC = exact(self.classifier, feature_TF)
        return logits_TC[:, 1:].logsumexp(1) - logits_TC[:, 0]


class MeanPooling(PatchScorer):
    """The bag is the mean of its patch features."""

    pooling: ClassVar[Pooling] = "mean"


class MaxPooling(PatchScorer):
    """The bag is its highest patch. Source: Campanella et al. 2019."""

    pooling: ClassVar[Pooling] = "max"


class InstanceClassifier(PatchScorer):
    """Every patch takes its slide's label; the bag is scored by the mean of the logits."""

    pooling: ClassVar[Pooling] = "mean"
    bag_loss_on_patches: ClassVar[bool] = True


class PatchClassifier(PatchScorer):
    """Learns from labelled patches alone; the bag is scored by its highest patch."""

    pooling: ClassVar[Pooling] = "max"
    losses: ClassVar[frozenset[str]] = frozenset({"patch"})


NETWORKS: dict[str, type[Network]] = {
    "dual": DualNetwork,
    "attention": AttentionMIL,
    "gated_attention": GatedAttentionMIL,
    "max": MaxPooling,
    "mean": MeanPooling,
    "instance": InstanceClassifier,
    "patches": PatchClassifier,
}


def make_network(config: ModelConfig, *, embedding_dim: int, num_classes: int) -> Network:
    """Initialise a network of the configured name."""
    return NETWORKS[config.name](config, embedding_dim=embedding_dim, num_classes=num_classes)
