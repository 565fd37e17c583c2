"""Golden vectors: an encoder's answer to a fixed image, kept beside its weights and compared when it is loaded.

The same weights may give another answer under another version of timm or torch: another interpolation, activation or
position. Embeddings of both would not compare, so that such a difference is refused.
"""

import json
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmil.command.versions import version_of
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.weights.states import GOLDEN, VERSIONS, State, tensor_text, text_tensor
from distmil.errors import EncoderError

TOLERANCE = 1e-3
"""Largest relative difference of the two vectors; another order of additions gives about 1e-6."""
_EDGE_PX = 160


def golden_image(edge_px: int) -> NDArray[np.uint8]:
    """Draw the fixed image, edge x edge x 3: rose ground with violet spots, in integers, alike on every machine."""
    y, x = np.mgrid[:edge_px, :edge_px]
    spots = (x % 37 - 18) ** 2 + (y % 29 - 14) ** 2 < 60 + (x // 37 * 7 + y // 29 * 11) % 80
    waves = abs((3 * x + 5 * y) % 64 - 32) + abs((7 * x - 2 * y) % 46 - 23)
    ground = np.stack([230 - waves // 2, 170 - waves, 200 - waves // 2], -1)
    nuclei = np.stack([90 + waves, 60 + waves // 2, 140 + waves // 2], -1)
    return np.where(spots[..., None], nuclei, ground).astype(np.uint8)


def golden_patch(row: EncoderRow) -> NDArray[np.uint8]:
    """Return the fixed image as a batch of one, of the encoder's patch size; resized where any size fits."""
    return golden_image(row.patch_px[0] if row.patch_px else _EDGE_PX)[None]


def remembered(answer_E: NDArray[np.float32]) -> State:
    """Make the entries beside the weights: the answer, and the versions that gave it."""
    return {
        GOLDEN: torch.from_numpy(np.ascontiguousarray(answer_E)),
        VERSIONS: text_tensor(json.dumps(_versions(), sort_keys=True)),
    }


def check_golden(answer_E: NDArray[np.float32], state: Mapping[str, Tensor], *, name: str) -> None:
    """Compare an encoder's answer with the one kept beside its weights, if any.

    Raises:
        EncoderError: If they differ by more than rounding does.
    """
    if GOLDEN not in state:
        return
    kept_E = state[GOLDEN].numpy()
    if kept_E.shape != answer_E.shape:
        raise EncoderError(f"{name} gives {len(answer_E)} values here, {len(kept_E)} when it was first loaded")
    difference = float(np.linalg.norm(answer_E - kept_E) / max(float(np.linalg.norm(kept_E)), 1e-12))
    if not difference <= TOLERANCE:
        raise EncoderError(
            f"{name} answers otherwise here than when it was first loaded: its embedding of a fixed image differs by "
            f"{100 * difference:.2g} % (at most {100 * TOLERANCE:g} %). Then {_words(json.loads(_text(state)))}; here "
            f"{_words(_versions())}. Install those versions, or begin with a new storage.root and train again: "
            "embeddings of the two do not compare"
        )


def rms_of(golden_E: Tensor) -> float:
    """Return the root mean square of a golden vector, the unit in which encoders side by side are given."""
    return float(golden_E.double().square().mean().sqrt()) or 1.0


def _text(state: Mapping[str, Tensor]) -> str:
    return tensor_text(state[VERSIONS]) if VERSIONS in state else "{}"


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "transformers")
    return {name: found for name in names if (found := version_of(name)) is not None}


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items()) or "unknown versions"
