"""JPEG as bytes: what a TIFF keeps of it is made whole and stripped of metadata; decoding and encoding by simplejpeg.

A tile of a TIFF is an abbreviated stream: its tables may stand in the JPEGTables tag, and its colours are said by the
tag Photometric alone. Source: ITU-T T.81 annex B; TIFF Technical Note 2; Adobe's APP14 segment in Technical Note 5116.
"""

import re
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
IS_RGB, IS_YCBCR = 0, 1
_SOS = 0xDA
_BASELINE = {0xC0, 0xC1}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan: not stuffing, restarts and fill
_METADATA = {*range(0xE0, 0xF0), 0xFE}  # APPn and COM


@dataclass(frozen=True)
class Frame:
    """What a JPEG's header says."""

    width: int
    height: int
    components: int
    is_baseline: bool
    """Sequential, Huffman coded, 8 bit, one scan of all components."""


@dataclass(frozen=True)
class Header:
    """A tile's header up to its scan, and what stands in for it in a whole JPEG."""

    stored: bytes
    whole: bytes
    frame: Frame

    def complete(self, tile: bytes) -> bytes:
        """Make a tile of this header a JPEG that stands alone."""
        return b"".join((self.whole, memoryview(tile)[len(self.stored) :]))


def read_header(tile: bytes, *, tables: bytes, colours: int) -> Header:
    """Make the header of a TIFF's tile whole.

    Args:
        tile: The tile as the file holds it.
        tables: The JPEGTables tag, or nothing.
        colours: IS_RGB or IS_YCBCR, by the tag Photometric; it overrules what the tile itself says, as in libtiff.

    Raises:
        ValueError: If it is not a JPEG.
    """
    shared, _, _ = _segments(tables[: -len(EOI)], start=len(SOI)) if tables else (b"", 0, None)
    own, end, frame = _segments(tile, start=len(SOI))
    if not tile.startswith(SOI) or frame is None or end == len(tile):
        raise ValueError("not a JPEG with a frame and a scan")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([colours])
    return Header(tile[:end], SOI + adobe + shared + own, frame)


def _segments(data: bytes, *, start: int) -> tuple[bytes, int, Frame | None]:
    """Split off the segments up to and with the start of a scan, metadata left out, where they end, and the frame."""
    kept, position, frame = [], start, None
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise ValueError(f"no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position:end]
        if marker in _FRAMES and len(segment) >= 10:
            height, width = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
            frame = Frame(width, height, segment[9], is_baseline=marker in _BASELINE and segment[4] == 8)
        if marker not in _METADATA:
            kept.append(segment)
        position = end
        if marker == _SOS:
            if frame and segment[4] != frame.components:
                frame = Frame(frame.width, frame.height, frame.components, is_baseline=False)
            break
    return b"".join(kept), min(position, len(data)), frame


def is_whole_scan(data: bytes, *, start: int) -> bool:
    """Test whether nothing but one coded scan stands between ``start`` and an end-of-image marker that ends the data.

    It finds cut-off and many damaged tiles without decoding them, and metadata hidden behind the scan.
    """
    found = _MARKER.search(data, start)
    return found is not None and found.start() == len(data) - len(EOI) and data.endswith(EOI)


def decode(
    data: bytes, *, reduced_to: tuple[int, int] | None = None, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Decode to RGB, H x W x 3, exactly as libjpeg does by default.

    Args:
        data: A whole JPEG.
        reduced_to: Width and height, each the JPEG's own divided by 2, 4 or 8 and rounded up: scale in the DCT domain.
        out: Where to put the pixels, contiguous and of the right size; a new array without it.

    Raises:
        ValueError: If the data is damaged, even where libjpeg would carry on.
    """
    width, height = reduced_to or (0, 0)
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height, buffer=out))


def encode(pixels: NDArray[np.uint8], *, quality: int) -> bytes:
    """Encode RGB, H x W x 3, without metadata; 4:4:4 chroma from quality 95 on, else 4:2:0."""
    subsampling = "444" if quality >= 95 else "420"
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality, "RGB", colorsubsampling=subsampling, fastdct=False
        )
    )
