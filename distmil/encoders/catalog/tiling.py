"""Which patches an encoder takes, and whether the ones asked for fit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distmil.encoders.catalog.names import check_name


def tiling_for(name: str, said: Mapping[str, Any], *, tolerance: float) -> dict[str, Any]:
    """Compute the keys ``tiling.patch_px`` and ``tiling.mpp`` that an encoder, or several side by side, need.

    Args:
        name: The encoder's.
        said: The two keys, where they are set; an mpp of None, unknown pixels, fits every encoder.
        tolerance: Relative difference up to which two resolutions count as one.

    Returns:
        Those of the two keys that are not set and that the encoder decides.

    Raises:
        ValueError: If what is set does not fit, or the encoders take no patches in common.
    """
    rows = check_name(name)
    needed: dict[str, Any] = {}
    edges = _common("px", {row.name: row.patch_px for row in rows if not row.is_resizable})
    usual = edges or [row.patch_px[0] for row in rows if row.patch_px]
    if "patch_px" not in said:
        needed |= {"patch_px": usual[0]} if usual else {}
    elif edges and said["patch_px"] not in edges:
        raise ValueError(
            f"tiling.patch_px = {said['patch_px']}: {name} takes patches of {_words(edges)} px; leave it out"
        )
    scales = _common("um/px", {row.name: row.mpp for row in rows})
    if "mpp" not in said:
        needed |= {"mpp": scales[0]} if scales else {}
    elif said["mpp"] is not None and scales and not any(_is_near(said["mpp"], mpp, tolerance) for mpp in scales):
        raise ValueError(
            f"tiling.mpp = {said['mpp']}: {name} was made for {_words(scales)} um/px; leave it out, or set null for "
            "images whose pixels are of that size already"
        )
    return needed


def _is_near(mpp: float, other: float, tolerance: float) -> bool:
    return math.isclose(mpp, other, rel_tol=max(tolerance, 1e-9))


def _common(unit: str, choices: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the values that fit every encoder, in the order of the first; empty: all. Raises: ValueError if none."""
    limited = {name: values for name, values in choices.items() if values}
    first = next(iter(limited.values()), ())
    found = [value for value in first if all(value in values for values in limited.values())]
    if limited and not found:
        takes = "; ".join(f"{name} {_words(values)}" for name, values in limited.items())
        raise ValueError(f"encoder.name: side by side these encoders need patches of equal {unit}: {takes}")
    return found


def _words(values: Sequence[float]) -> str:
    return " or ".join(f"{value:g}" for value in values)
