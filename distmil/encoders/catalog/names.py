"""From the words of ``encoder.name`` to rows: named encoders, any network of timm, a repository, a folder, several."""

import difflib
import re

from distmil.encoders.catalog.own import own_names, own_row
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.catalog.rows import ROWS

TIMM, HUB, FOLDER = "timm:", "hf-hub:", "local-dir:"
_GENERIC = {
    TIMM: re.compile(r"[A-Za-z0-9_.]{1,128}"),
    HUB: re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"),
    FOLDER: re.compile(r"[^/\\+]{1,128}"),
}
_EXPECTED = {TIMM: "timm:MODEL, such as timm:vit_base_patch16_224.augreg_in21k",
             HUB: "hf-hub:OWNER/NAME", FOLDER: "local-dir:/path/of/a/folder"}  # fmt: skip
MAX_TOGETHER = 8


def names_of(name: str) -> list[str]:
    """Split the name of encoders side by side, such as ``texture+efficientnet_lite0``; one encoder is one name."""
    return name.split("+")


def find_row(name: str) -> EncoderRow:
    """Find the row of one encoder. Raises: ValueError for an unknown name."""
    for prefix, pattern in _GENERIC.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if not pattern.fullmatch(rest):
                raise ValueError(f"encoder.name = {name!r}: expected {_EXPECTED[prefix]}")
            hub = rest if prefix == HUB else None
            return EncoderRow(name, "generic", arch=rest if prefix == TIMM else "", hub=hub, is_resizable=True)
    row = ROWS.get(name) or own_row(name)
    if row is None:
        raise ValueError(_unknown(name))
    return row


def check_name(name: str) -> list[EncoderRow]:
    """Return the rows of the encoders that a name has, in order. Raises: ValueError if one does not exist."""
    names = names_of(name)
    if len(set(names)) != len(names) or len(names) > MAX_TOGETHER:
        raise ValueError(f"encoder.name = {name!r}: expected {MAX_TOGETHER} encoders at most, each once")
    return [find_row(part) for part in names]


def width_of(name: str) -> int | None:
    """Return the length of the embeddings of encoders side by side; None where it takes building them to know."""
    widths = [row.width for row in check_name(name)]
    return None if None in widths else sum(width for width in widths if width is not None)


def _unknown(name: str) -> str:
    """Word the refusal of an unknown name, with the names that are near."""
    names = [*ROWS, *own_names()]
    plain = {re.sub(r"[^a-z0-9]", "", known.lower()): known for known in names}
    close = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), plain, n=3, cutoff=0.6)
    meant = f"; did you mean {' or '.join(plain[each] for each in close)}?" if close else "."
    return (
        f"encoder.name = {name!r}: there is no such encoder{meant} `distmil encoders` lists them; "
        f"others by {TIMM}MODEL, {HUB}OWNER/NAME or {FOLDER}/PATH"
    )
