"""Encoders whose repository brings its own code; it runs with ``encoder.allow_remote_code=true`` alone."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from distmil.encoders.catalog.demands import check_demands
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.weights.hub import explain
from distmil.encoders.weights.states import State


def build(row: EncoderRow, *, allow_remote_code: bool) -> nn.Module:
    """Build a network by its repository's code, without its weights.

    Raises:
        ConfigError: If that is not allowed, or transformers is not installed.
        EncoderError: If the code cannot be had.
    """

    def make(transformers: Any) -> Any:
        config = transformers.AutoConfig.from_pretrained(row.hub, trust_remote_code=True)
        return transformers.AutoModel.from_config(config, trust_remote_code=True)

    return _make(row, make, allow_remote_code=allow_remote_code)


def download(row: EncoderRow, *, allow_remote_code: bool) -> State:
    """Return the published weights, read by the repository's code.

    Raises:
        ConfigError: If that is not allowed, or transformers is not installed.
        EncoderError: If they cannot be had.
    """

    def make(transformers: Any) -> Any:
        return transformers.AutoModel.from_pretrained(row.hub, trust_remote_code=True)

    return dict(_make(row, make, allow_remote_code=allow_remote_code).state_dict())


def _make(row: EncoderRow, make: Callable[[Any], Any], *, allow_remote_code: bool) -> nn.Module:
    """Call transformers where it may run; of TITAN only the patch encoder CONCH v1.5 is wanted."""
    check_demands(row, allow_remote_code=allow_remote_code)
    try:
        net = make(importlib.import_module("transformers"))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise explain(row, error) from error
    found: nn.Module = net.return_conch()[0] if hasattr(net, "return_conch") else net
    return found
