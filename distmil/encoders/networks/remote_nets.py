"""Encoders whose repository brings its own code; it runs with ``encoder.allow_remote_code=true`` alone."""

import importlib
from types import ModuleType
from typing import Any

from torch import nn

from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.weights.hub import explain
from distmil.encoders.weights.states import State
from distmil.errors import ConfigError, EncoderError


def check_allowed(row: EncoderRow, *, allow_remote_code: bool) -> None:
    """Refuse code of a repository that the user did not allow. Raises: ConfigError."""
    if not allow_remote_code:
        raise ConfigError(
            f"encoder.name = {row.name!r}: this encoder is code in the repository {row.hub} that would run on your "
            "machines; read it, and then set encoder.allow_remote_code=true, or choose an encoder that needs none"
        )


def build(row: EncoderRow, *, allow_remote_code: bool) -> nn.Module:
    """Build a network by its repository's code, without its weights.

    Raises:
        ConfigError: If that is not allowed.
        EncoderError: If transformers or the code is not there.
    """
    check_allowed(row, allow_remote_code=allow_remote_code)
    transformers = _transformers(row)
    try:
        config = transformers.AutoConfig.from_pretrained(row.hub, trust_remote_code=True)
        net = transformers.AutoModel.from_config(config, trust_remote_code=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise explain(row, error) from error
    return _trunk(net)


def download(row: EncoderRow, *, allow_remote_code: bool) -> State:
    """Return the published weights.

    Raises:
        ConfigError: If the code that reads them is not allowed.
        EncoderError: If they cannot be had.
    """
    check_allowed(row, allow_remote_code=allow_remote_code)
    transformers = _transformers(row)
    try:
        net = transformers.AutoModel.from_pretrained(row.hub, trust_remote_code=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise explain(row, error) from error
    return dict(_trunk(net).state_dict())


def _trunk(net: Any) -> nn.Module:
    """Return TITAN's patch encoder CONCH v1.5, and any other network as it is."""
    if hasattr(net, "return_conch"):
        trunk: nn.Module = net.return_conch()[0]
        return trunk
    found: nn.Module = net
    return found


def _transformers(row: EncoderRow) -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise EncoderError(
            f"encoder.name = {row.name!r} needs the package transformers, which is not installed here: "
            "pip install 'distmil[encoders]', on every node"
        ) from error
