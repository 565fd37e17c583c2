"""States to encoders: one, or several side by side, each with its golden vector. Imports torch.

The state of several encoders holds the entries of each under its number: ``1/blocks.0.norm1.weight``.
"""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distmil.config.data import EncoderConfig
from distmil.encoders.catalog.names import check_name, find_row, names_of
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.golden import check_golden, golden_patch, remembered
from distmil.encoders.networks.building import build_net
from distmil.encoders.networks.patch_encoder import PatchEncoder
from distmil.encoders.registry import TEXTURE_VERSION, Encoder, TextureEncoder
from distmil.encoders.side_by_side import SideBySide
from distmil.encoders.weights.sources import load_state as load_one_state
from distmil.encoders.weights.states import (
    GOLDEN,
    ROW,
    State,
    decode_state,
    encode_state,
    fitting,
    joined,
    part_of,
    state_digest,
    tensor_text,
    weights_in,
)
from distmil.errors import EncoderError

__all__ = ["confirmed", "decode_state", "digest_of", "encode_state", "has_golden", "load", "load_state", "width_in"]


def load_state(config: EncoderConfig) -> State:
    """Return the configured weights of an encoder, or of each of several.

    Raises:
        ConfigError: If a file, a folder or a name does not exist, or a hub's code is not allowed.
        EncoderError: If weights cannot be had or do not fit.
    """
    states = [load_one_state(row, config.only(row)) if row.has_weights else {} for row in check_name(config.name)]
    return states[0] if len(states) == 1 else joined(states)


def digest_of(name: str, state: Mapping[str, Tensor]) -> str:
    """Return the digest of an encoder's weights; that of several is one of theirs, in order."""
    names = names_of(name)
    if len(names) == 1:
        return state_digest(state)
    texture = f"v{TEXTURE_VERSION}"
    digests = [texture if one == "texture" else state_digest(part_of(state, i)) for i, one in enumerate(names)]
    return hashlib.sha256(json.dumps(list(zip(names, digests, strict=True))).encode()).hexdigest()


def has_golden(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a state holds the golden vector of each of its encoders."""
    return all(GOLDEN in part for _, part in _parts(name, state))


def confirmed(name: str, state: Mapping[str, Tensor], *, allow_remote_code: bool) -> tuple[State, int]:
    """Ask every encoder for its answer to the fixed image; compare it with the one in the state, or add it.

    Returns:
        The state with all golden vectors, and the length of an embedding of all encoders together.

    Raises:
        EncoderError: If the weights do not fit, or an answer is not that of before.
    """
    made, width = [], 0
    for row, part in _parts(name, state):
        answer_E = _ask(_build(row, part, allow_remote_code=allow_remote_code), row)
        check_golden(answer_E, part, name=row.name)
        made.append(part if GOLDEN in part else {**part, **remembered(answer_E)})
        width += len(answer_E)
    return (made[0] if len(made) == 1 else joined(made)), width


def width_in(name: str, state: Mapping[str, Tensor]) -> int:
    """Return the length of an embedding of all encoders of a state by their golden vectors."""
    return sum(len(part[GOLDEN]) for _, part in _parts(name, state))


def load(name: str, state: Mapping[str, Tensor], *, device: str, allow_remote_code: bool = False) -> Encoder:
    """Build an encoder, or several side by side, in evaluation mode from stored weights.

    Raises:
        EncoderError: If weights do not fit, or give another answer here than when they were first loaded.
    """
    encoders: list[Encoder] = []
    for row, part in _parts(name, state):
        encoder = _build(row, part, allow_remote_code=allow_remote_code)
        check_golden(_ask(encoder, row), part, name=row.name)
        encoders.append(encoder.to(device) if isinstance(encoder, nn.Module) else encoder)
    if len(encoders) == 1:
        return encoders[0]
    goldens = [part.get(GOLDEN) for _, part in _parts(name, state)]
    if any(golden is None for golden in goldens):
        raise EncoderError(f"the weights of {name} lack their golden vectors; embed again from a new storage.root")
    return SideBySide.of(encoders, [golden for golden in goldens if golden is not None])


def _parts(name: str, state: Mapping[str, Tensor]) -> list[tuple[EncoderRow, State]]:
    """Split a state into the row and the state of each encoder."""
    names = names_of(name)
    states = [dict(state)] if len(names) == 1 else [part_of(state, i) for i in range(len(names))]
    return [(_row_of(one, part), part) for one, part in zip(names, states, strict=True)]


def _row_of(name: str, state: Mapping[str, Tensor]) -> EncoderRow:
    """Return an encoder's row, out of its state where the name does not say it all. Raises: EncoderError."""
    row = find_row(name)
    if not row.is_generic:
        return row
    try:
        return EncoderRow.from_json(tensor_text(state[ROW]))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise EncoderError(f"the weights of {name} do not say which network they are of") from error


def _build(row: EncoderRow, state: Mapping[str, Tensor], *, allow_remote_code: bool) -> Encoder:
    """Build one encoder. Raises: EncoderError if its weights do not fit."""
    if not row.has_weights:
        return TextureEncoder()
    net = build_net(row, allow_remote_code=allow_remote_code)
    given = fitting(weights_in(state), net.state_dict(), origin=row.name, names=row.arch or "its network")
    net.load_state_dict(given, strict=False)
    return PatchEncoder(row, net).eval()


def _ask(encoder: Encoder, row: EncoderRow) -> NDArray[np.float32]:
    """Return an encoder's answer to the fixed image, E. Raises: EncoderError if it is none of the encoder's width."""
    with torch.inference_mode():
        answer_NE = encoder.embed(golden_patch(row))
    width = answer_NE.shape[-1] if answer_NE.ndim == 2 else None
    if width is None or (row.width not in {None, width}) or not np.isfinite(answer_NE).all():
        raise EncoderError(
            f"{row.name} gives {answer_NE.shape} for one patch, expected (1, {row.width or 'any'}) of finite numbers; "
            "check its weights"
        )
    answer_E: NDArray[np.float32] = answer_NE[0].astype(np.float32)
    return answer_E
