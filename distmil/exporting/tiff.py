"""Maps as TIFF that viewers of slides open, with their resolution.

Colours go into a plain tiled TIFF with one page a level, which OpenSlide, QuPath and ASAP open with all levels (of the
same as OME-TIFF OpenSlide sees the first alone). Values go into an OME-TIFF, which QuPath opens by Bio-Formats. Tiles
are compressed without loss.
"""

import hashlib
import io
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tifffile

from distmil.exporting.maps import Grid
from distmil.visualization.colours import Colours, colour

TILE_PX = 256
_UM_PER_CM = 1e4
_SOFTWARE = "distmil"


def encode_colours(levels: Sequence[Grid], *, um_per_px: float | None, colours: Colours, description: str) -> bytes:
    """Encode a map as RGB, white where no patch lies.

    Args:
        levels: Scores, each level half as large as the one before.
        um_per_px: Of the first level; None where it is not known.
        colours: Name of the colours.
        description: What the map shows.
    """
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number, level in enumerate(levels):
            writer.write(
                colour(level, colours=colours),
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                subfiletype=int(number > 0),
                description=description if number == 0 else None,
                software=_SOFTWARE,
                metadata=None,
                **_resolution(um_per_px and um_per_px * levels[0].shape[1] / level.shape[1],
                              um_per_px and um_per_px * levels[0].shape[0] / level.shape[0]),
            )  # fmt: skip
    return file.getvalue()


def encode_values(maps: Mapping[str, Grid], *, um_per_px: float | None) -> bytes:
    """Encode maps as float32 channels of one OME-TIFF, NaN where no patch lies.

    Args:
        maps: By the channel's name, all of one size.
        um_per_px: None where it is not known.
    """
    stack = np.stack(list(maps.values()))
    identity = uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(stack.tobytes()).hexdigest())  # tifffile's tells machines
    metadata: dict[str, Any] = {"axes": "CYX", "Channel": {"Name": list(maps)}, "UUID": str(identity)}
    metadata["Creator"] = _SOFTWARE
    if um_per_px is not None:
        units = {"PhysicalSizeXUnit": "\N{MICRO SIGN}m", "PhysicalSizeYUnit": "\N{MICRO SIGN}m"}
        metadata |= {"PhysicalSizeX": um_per_px, "PhysicalSizeY": um_per_px, **units}
    file = io.BytesIO()
    with tifffile.TiffWriter(file, ome=True) as writer:
        writer.write(
            stack,
            photometric="minisblack",
            tile=(TILE_PX, TILE_PX),
            compression="zlib",
            software=_SOFTWARE,
            metadata=metadata,
            **_resolution(um_per_px, um_per_px),
        )
    return file.getvalue()


def _resolution(um_x: float | None, um_y: float | None) -> dict[str, Any]:
    """Name pixels per cm for TIFF's tags; nothing where they are not known."""
    if not um_x or not um_y:
        return {}
    return {"resolution": (_UM_PER_CM / um_x, _UM_PER_CM / um_y), "resolutionunit": "CENTIMETER"}
