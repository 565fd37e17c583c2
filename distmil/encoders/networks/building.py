"""Rows to networks; each library is imported where it is used."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from distmil.encoders.catalog.row import EncoderRow, OwnRow
from distmil.errors import EncoderError


def build_net(row: EncoderRow, *, allow_remote_code: bool = False) -> nn.Module:
    """Build the network of a row; its weights come later, but for a user's own encoder.

    Args:
        row: The encoder's, with its architecture.
        allow_remote_code: Whether code from a hub may run.

    Raises:
        EncoderError: If it cannot be built here.
    """
    if isinstance(row, OwnRow):
        return _build_own(row)
    arguments: dict[str, Any] = {"allow_remote_code": allow_remote_code} if row.source == "remote" else {}
    library = {"torchvision": "torchvision_nets", "remote": "remote_nets"}.get(row.source, "timm_nets")
    net: nn.Module = importlib.import_module(f"distmil.encoders.networks.{library}").build(row, **arguments)
    return net


def random_state(row: EncoderRow) -> dict[str, Tensor]:
    """Return random weights, always the same, and leave other draws alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build_net(row).state_dict())


def shapes_of(row: EncoderRow) -> dict[str, Tensor]:
    """Return the names and shapes of a row's weights, without values."""
    with torch.device("meta"):
        return dict(build_net(row).state_dict())


def _build_own(row: OwnRow) -> nn.Module:
    """Call a user's own function. Raises: EncoderError if it does not give a module."""
    assert row.build is not None
    net = row.build()
    if not isinstance(net, nn.Module):
        raise EncoderError(f"the package of encoder {row.name} built {type(net).__name__}; expected a torch.nn.Module")
    return net
