"""JPEG as bytes: whole without metadata, the same pixels, and damage found without decoding."""

import cv2
import numpy as np
import pytest
import simplejpeg

from distmil.slides.jpeg import EOI, IS_RGB, IS_YCBCR, SOI, decode, encode, is_whole_scan, read_header
from tests.support.jpeg_tiff import RGB, YCBCR, encode_tile
from tests.support.slides import tissue_image

MARKER = b"JOHN-DOE-1970"
PIXELS = cv2.GaussianBlur(tissue_image((96, 64), seed=3), (0, 0), 1.5)


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def whole(tile, *, tables=b"", colours=IS_YCBCR):
    header = read_header(tile, tables=tables, colours=colours)
    return header.whole + tile[len(header.stored) :]


@pytest.mark.parametrize(("photometric", "colours"), [(YCBCR, IS_YCBCR), (RGB, IS_RGB)])
def test_the_tiff_says_the_colours_whatever_the_tile_says(photometric, colours):
    tile = encode_tile(PIXELS, photometric, (2, 2), 90)
    other = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([1 - colours]))
    for stored in (tile, SOI + other + tile[2:], SOI + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + tile[2:]):
        assert np.abs(decode(whole(stored, colours=colours)).astype(int) - PIXELS).mean() < 6


def test_metadata_is_left_out_and_pixels_stay():
    tile = encode_tile(PIXELS, YCBCR, (2, 2), 80)
    hidden = b"".join(segment(marker, MARKER) for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEF, 0xFE))
    marked = SOI + hidden + b"\xff" + tile[2:]  # and a fill byte
    assert MARKER not in whole(marked)
    assert np.array_equal(decode(whole(marked)), decode(whole(tile)))


def test_a_header_says_size_and_kind():
    frame = read_header(encode_tile(PIXELS, YCBCR, (2, 1), 80), tables=b"", colours=IS_YCBCR).frame
    assert (frame.width, frame.height, frame.components, frame.is_baseline) == (96, 64, 3, True)
    progressive = bytes(cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])
    assert not read_header(progressive, tables=b"", colours=IS_YCBCR).frame.is_baseline


@pytest.mark.parametrize("data", [b"", SOI, b"II*\0" * 20, SOI + EOI, SOI + b"\0" * 30, b"\xff\xd8\xff\xdb\x00"])
def test_what_is_no_jpeg_is_said(data):
    with pytest.raises(ValueError, match=r"marker|JPEG"):
        read_header(data, tables=b"", colours=IS_YCBCR)


def test_a_whole_scan_ends_the_data_and_nothing_hides_in_it():
    tile = encode_tile(PIXELS, YCBCR, (2, 2), 95)
    start = len(read_header(tile, tables=b"", colours=IS_YCBCR).stored)
    assert is_whole_scan(tile, start=start)
    assert not is_whole_scan(tile[:-2], start=start)
    assert not is_whole_scan(tile[: len(tile) // 2], start=start)
    assert not is_whole_scan(tile + MARKER, start=start)
    assert not is_whole_scan(tile[:-2] + segment(0xFE, MARKER) + EOI, start=start)
    assert not is_whole_scan(tile + SOI + tile[2:], start=start)  # a second picture


def test_restarts_are_part_of_a_scan():
    with_restarts = bytes(cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1])
    assert b"\xff\xd1" in with_restarts
    header = read_header(with_restarts, tables=b"", colours=IS_YCBCR)
    assert is_whole_scan(with_restarts, start=len(header.stored))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_scaling_in_the_dct_domain_stays_near_the_average_by_area(factor):
    data = simplejpeg.encode_jpeg(PIXELS, 95, "RGB")
    size = (96 // factor, 64 // factor)
    out = np.zeros((size[1], size[0], 3), np.uint8)
    scaled = decode(data, reduced_to=size, out=out)
    averaged = cv2.resize(decode(data), size, interpolation=cv2.INTER_AREA)
    assert np.abs(scaled.astype(int) - averaged).mean() < 2
    assert np.array_equal(out, scaled)


def test_a_damaged_jpeg_raises_where_libjpeg_would_carry_on():
    data = encode(PIXELS, quality=90)
    assert np.abs(decode(data).astype(int) - PIXELS).mean() < 6
    with pytest.raises(ValueError):  # noqa: PT011 (libjpeg's words differ)
        decode(data[: len(data) // 2])


def test_an_encoded_patch_holds_no_more_than_its_pixels_need():
    data = encode(PIXELS, quality=95)
    assert simplejpeg.decode_jpeg_header(data)[2:] == ("YCbCr", "444")
    assert simplejpeg.decode_jpeg_header(encode(PIXELS[:, ::-1], quality=90))[2:] == ("YCbCr", "420")
    assert b"Exif" not in data
