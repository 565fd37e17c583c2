"""Which patches an encoder takes, and whether the ones asked for fit."""

import math
from collections.abc import Mapping
from typing import Any

from distmil.encoders.catalog.names import check_name
from distmil.encoders.catalog.row import EncoderRow


def tiling_for(name: str, said: Mapping[str, Any], *, tolerance: float) -> dict[str, Any]:
    """Return what an encoder, or several side by side, needs of ``tiling.patch_px`` and ``tiling.mpp``.

    Args:
        name: The encoder's.
        said: The two keys, where they are set; an mpp of None, unknown pixels, fits every encoder.
        tolerance: Relative difference up to which two resolutions count as one.

    Returns:
        The keys that are not set and do not stay at their defaults.

    Raises:
        ValueError: If what is set does not fit, or the encoders take no patch in common.
    """
    rows, needed = check_name(name), {}
    edges = _common(rows, "patch_px", lambda edge, other: edge == other)
    if "patch_px" in said:
        if edges and said["patch_px"] not in edges:
            raise ValueError(
                f"tiling.patch_px = {said['patch_px']}: {name} takes patches of {_words(edges)} px; leave it out"
            )
    elif edges:
        needed["patch_px"] = edges[0]
    scales = _common(rows, "mpp", math.isclose)
    if said.get("mpp") is not None:
        if scales and not any(math.isclose(said["mpp"], mpp, rel_tol=max(tolerance, 1e-9)) for mpp in scales):
            raise ValueError(
                f"tiling.mpp = {said['mpp']}: {name} was made for {_words(scales)} um/px; leave it out, or set null "
                "for images whose pixels are of that size already"
            )
    elif "mpp" not in said and scales:
        needed["mpp"] = scales[0]
    return needed


def _common(rows: list[EncoderRow], key: str, same: Any) -> list[Any]:
    """Return the values that fit every encoder, in the order of the first; empty: all. Raises: ValueError if none."""
    choices = [(row, list(getattr(row, key))) for row in rows if getattr(row, key)]
    if not choices:
        return []
    first, *others = choices
    found = [value for value in first[1] if all(any(same(value, other) for other in values) for _, values in others)]
    if not found:
        takes = "; ".join(f"{row.name} {_words(values)}" for row, values in choices)
        raise ValueError(f"encoder.name: these encoders take no common {key}: {takes}")
    return found


def _words(values: list[Any]) -> str:
    return " or ".join(f"{value:g}" for value in values)
