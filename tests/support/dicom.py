"""DICOM files of a few tags, in every transfer syntax that tells a header apart."""

from pathlib import Path

import numpy as np

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_LONG = {"OB", "SQ", "UN", "UT"}
_UNDEFINED = 0xFFFFFFFF


def element(tag: tuple[int, int], kind: str, value: bytes, syntax: str, *, length: int | None = None) -> bytes:
    """Encode one element."""
    order = "big" if syntax == BIG else "little"
    value += b"\0" * (len(value) % 2)
    size = len(value) if length is None else length
    head = tag[0].to_bytes(2, order) + tag[1].to_bytes(2, order)
    if syntax == IMPLICIT or tag[0] == 0xFFFE:
        return head + size.to_bytes(4, order) + value
    if kind in _LONG:
        return head + kind.encode() + b"\0\0" + size.to_bytes(4, order) + value
    return head + kind.encode() + size.to_bytes(2, order) + value


def sequence(tag: tuple[int, int], syntax: str, rng: np.random.Generator, *, decoy: str) -> bytes:
    """Encode a sequence of items that hold a series of their own, lengths stated or not."""
    items = b""
    for _ in range(rng.integers(0, 3)):
        inner = element((0x0008, 0x1150), "UI", b"1.2.3", syntax)
        inner += element((0x0020, 0x000E), "UI", decoy.encode(), syntax)
        if rng.random() < 0.5:
            items += element((0xFFFE, 0xE000), "", inner, syntax)
        else:
            items += element((0xFFFE, 0xE000), "", inner, syntax, length=_UNDEFINED)
            items += element((0xFFFE, 0xE00D), "", b"", syntax)
    if rng.random() < 0.5:
        return element(tag, "SQ", items, syntax)
    return element(tag, "SQ", items, syntax, length=_UNDEFINED) + element((0xFFFE, 0xE0DD), "", b"", syntax)


def save_dicom(path: Path, series: str | None, *, syntax: str = EXPLICIT, seed: int = 0) -> Path:
    """Save a file of a series, with other elements before and after, and pixels that are none."""
    rng = np.random.default_rng(seed)
    meta = element((0x0002, 0x0001), "OB", b"\0\1", EXPLICIT)
    meta += element((0x0002, 0x0010), "UI", syntax.encode(), EXPLICIT)
    data = b""
    for number, kind in ((0x0005, "CS"), (0x0020, "DA"), (0x0060, "CS"), (0x0070, "LO")):
        if rng.random() < 0.5:
            data += element((0x0008, number), kind, rng.bytes(int(rng.integers(0, 40))), syntax)
    if rng.random() < 0.7:
        data += sequence((0x0008, 0x1140), syntax, rng, decoy="9.9.9")
    if rng.random() < 0.5:
        data += element((0x0010, 0x0010), "PN", b"Doe^Jane", syntax)
    data += element((0x0020, 0x000D), "UI", b"5.5.5", syntax)
    if series is not None:
        data += element((0x0020, 0x000E), "UI", series.encode(), syntax)
    data += element((0x0028, 0x0010), "US", b"\1\0", syntax)
    data += element((0x7FE0, 0x0010), "OB", rng.bytes(200), syntax)
    path.write_bytes(rng.bytes(128) + b"DICM" + meta + data)
    return path
