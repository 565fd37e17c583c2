"""Networks, pooling and loss formulas."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.models.baselines import NETWORKS, make_network
    from distmil.models.layout import top_k_patches, top_k_size
    from distmil.models.losses import LOSSES, attention_loss, bag_loss, patch_loss, topk_loss
    from distmil.models.network import Network
    from distmil.models.pooling import pool

__all__ = [
    "LOSSES",
    "NETWORKS",
    "Network",
    "attention_loss",
    "bag_loss",
    "make_network",
    "patch_loss",
    "pool",
    "top_k_patches",
    "top_k_size",
    "topk_loss",
]

lazy_exports(__name__)
