"""Bags of embeddings: on disk, sampled, packed into batches."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.bags.bag import Bag, BagEntry, open_all_bags, open_bag, open_source
    from distmil.bags.sampler import StepPlanner
    from distmil.bags.source import PatchSource

__all__ = ["Bag", "BagEntry", "PatchSource", "StepPlanner", "open_all_bags", "open_bag", "open_source"]

lazy_exports(__name__)
