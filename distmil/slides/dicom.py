"""Which series a DICOM file belongs to, by its header alone: explicit and implicit VR, little and big endian."""

import functools
from pathlib import Path
from typing import Literal

_MAGIC = b"DICM"
_PREAMBLE = 128
_MAX_HEADER_BYTES = 2**18
_SERIES = (0x0020, 0x000E)
"""Group and element of SeriesInstanceUID."""
_LONG_LENGTHS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_IMPLICIT = b"1.2.840.10008.1.2"
_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_TRANSFER_SYNTAX = (0x0002, 0x0010)
_UNDEFINED = 0xFFFFFFFF


@functools.lru_cache(maxsize=65_536)
def series_uid(path: Path, size: int, mtime_ns: int) -> str | None:
    """Read the SeriesInstanceUID of a file, once for each version of it.

    Args:
        path: A regular file.
        size: Its bytes.
        mtime_ns: Its modification time, which with the size tells versions apart.

    Returns:
        The UID, or None if the file is not DICOM or states none.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_PREAMBLE + len(_MAGIC))
        if not head.endswith(_MAGIC) or len(head) < _PREAMBLE:
            return None
        value = _element(file.read(_MAX_HEADER_BYTES), _SERIES)
    return value.decode("ascii", "replace") if value else None


def _element(data: bytes, wanted: tuple[int, int]) -> bytes | None:
    """Find the value of an element of the first level in a DICOM data set that starts with its file meta group.

    Elements stand in the order of their tags. Sequences of undefined length are passed element by element.

    Source: DICOM PS3.5, sections 7.1 and A; PS3.10, section 7.1.
    """
    at, depth, syntax = 0, 0, b""
    while at + 8 <= len(data):
        is_meta = data[at : at + 2] == b"\x02\x00"
        order: Literal["big", "little"] = "big" if syntax == _BIG_ENDIAN and not is_meta else "little"
        tag = (int.from_bytes(data[at : at + 2], order), int.from_bytes(data[at + 2 : at + 4], order))
        is_item = tag[0] == 0xFFFE
        kind = data[at + 4 : at + 6]
        if is_item or (syntax == _IMPLICIT and not is_meta):
            start, length = at + 8, int.from_bytes(data[at + 4 : at + 8], order)
        elif kind in _LONG_LENGTHS:
            start, length = at + 12, int.from_bytes(data[at + 8 : at + 12], order)
        else:
            start, length = at + 8, int.from_bytes(data[at + 6 : at + 8], order)
        if depth == 0 and not is_item and tag > wanted:
            return None
        if length == _UNDEFINED:
            depth, at = depth + 1, start
            continue
        if is_item:
            depth -= tag[1] in {0xE00D, 0xE0DD}  # the delimiters of an item and of a sequence
            at = start if tag[1] in {0xE00D, 0xE0DD} else start + length
            continue
        value = data[start : start + length].rstrip(b"\0 ")
        if depth == 0 and tag == wanted:
            return value if start + length <= len(data) else None
        if tag == _TRANSFER_SYNTAX:
            syntax = value
        at = start + length
    return None
