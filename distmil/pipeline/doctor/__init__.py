"""The doctor: checks of the installation, the storage, MLflow and the cluster, each in a process of its own."""

from typing import TYPE_CHECKING

from distmil.exports import lazy_exports

if TYPE_CHECKING:
    from distmil.pipeline.doctor.job import main

__all__ = ["main"]

lazy_exports(__name__)
