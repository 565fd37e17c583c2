"""The table of named encoders as text: ``distmil encoders``."""

import argparse
import sys
from collections.abc import Sequence

from distmil.encoders.catalog.names import FOLDER, HUB, TIMM
from distmil.encoders.catalog.own import own_names, own_row
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.catalog.rows import ROWS

_COLUMNS = ("name", "px", "um/px", "width", "licence", "asks for", "weights from")
_EPILOG = f"""
px, um/px: what tiling follows; "+": other sizes are resized; several: the first is the usual one.
token: accept the licence on its page and set HF_TOKEN. code: set encoder.allow_remote_code=true.
Besides: {TIMM}MODEL, {HUB}OWNER/NAME, {FOLDER}/PATH; several side by side: texture+efficientnet_lite0.
Whether a licence fits your use is for its own text to say."""


def main(description: str, argv: Sequence[str], *, program: str = "distmil encoders") -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.parse_args(argv)
    sys.stdout.write(f"{encoders_text()}\n")
    return 0


def encoders_text() -> str:
    """Write the table of all named encoders, and how to name others."""
    own = [row for name in own_names() if (row := own_row(name))]
    rows = [_COLUMNS, *(_cells(row) for row in (*ROWS.values(), *own))]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    return "\n".join([*lines, _EPILOG])


def _cells(row: EncoderRow) -> tuple[str, ...]:
    asks = [word for word, is_true in (("token", row.is_gated), ("code", row.source == "remote")) if is_true]
    return (
        row.name,
        _numbers(row.patch_px) + ("+" if row.is_resizable else ""),
        _numbers(row.mpp),
        str(row.width),
        row.licence,
        ", ".join(asks),
        row.origin,
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "any"
