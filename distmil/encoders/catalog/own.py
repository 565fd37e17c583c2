"""Encoders of users' own packages, found by their entry points."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from distmil.encoders.catalog.row import IMAGENET_MEAN, IMAGENET_STD, OwnRow, Rgb
from distmil.errors import ConfigError

ENTRY_POINTS = "distmil.encoders"
"""The group of entry points; each names a function without arguments that returns an ``OwnEncoder``."""


@dataclass(frozen=True)
class OwnEncoder:
    """What a user's package says of its encoder."""

    build: Callable[[], Any]
    """Makes the network with its weights: a ``torch.nn.Module`` from normalised images, N x 3 x H x W, to N x E."""
    width: int
    """Length of an embedding, E."""
    px: int
    """Edge of the patches that it takes."""
    mpp: tuple[float, ...] = ()
    """Resolutions in um/px that it was made for, the usual one first; empty: any."""
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    licence: str = ""


def own_names() -> list[str]:
    """List the names of the encoders that installed packages bring."""
    return sorted(point.name for point in entry_points(group=ENTRY_POINTS))


def own_row(name: str) -> OwnRow | None:
    """Find the encoder of an installed package by its name; None if there is none.

    Raises:
        ConfigError: If the package cannot be loaded, or says something else than an encoder.
    """
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = point.load()()
        except Exception as error:  # the code of another package
            raise ConfigError(
                f"encoder.name = {name!r}: the entry point {point.value} of the group {ENTRY_POINTS} failed: "
                f"{type(error).__name__}: {error}; mend or uninstall its package"
            ) from error
        if not isinstance(found, OwnEncoder):
            raise ConfigError(
                f"encoder.name = {name!r}: {point.value} returned {type(found).__name__}; expected a "
                "distmil.encoders.OwnEncoder"
            )
        return OwnRow(
            name, "own", width=found.width, input_px=found.px, patch_px=(found.px,), mpp=found.mpp, mean=found.mean,
            std=found.std, licence=found.licence, build=found.build,
        )  # fmt: skip
    return None
