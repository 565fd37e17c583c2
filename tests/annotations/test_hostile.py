"""Annotations that are damaged or made to harm: each ends with a sentence, in bounded time and memory, or is right."""

import gzip
import io
import json
import os
import re
import struct
import time
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile

from distmil.annotations.arrow_file import decode_annotation
from distmil.annotations.reader import MAX_FILE_BYTES
from distmil.processes.child import Child

SIZE = (700, 400)
LIMIT_S = 20
SQUARE = [[10, 20], [40, 20], [40, 80], [10, 80], [10, 20]]


@pytest.fixture(scope="module")
def child():
    made = Child("distmil.labels.annotation_worker:work")
    yield made
    made.close()


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(ring=SQUARE, **properties):
    return feature({"type": "Polygon", "coordinates": [ring]}, **{"classification": {"name": "Tumor"}, **properties})


def packed(values):
    return json.dumps(values).encode()


def asap(inside):
    return f"<ASAP_Annotations><Annotations>{inside}</Annotations></ASAP_Annotations>".encode()


def crossing(num):
    ring = np.random.default_rng(num).uniform(0, 400, (num, 2)).round(1).tolist()
    return packed(polygon([*ring, ring[0]]))


def nested_feature(depth):
    text = '{"type":"Feature","geometry":null,"properties":{"childObjects":['
    return (text * depth + "]}}" * depth).encode()


def nested_collection(depth):
    return ('{"type":"GeometryCollection","geometries":[' * depth + "]}" * depth).encode()


def tiff(*offsets, start=8):
    """A TIFF whose directories hold size and format of a small image; ``offsets`` say where each leads next."""
    tags = [(256, 3, 1, SIZE[0]), (257, 3, 1, SIZE[1]), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 1)]
    pages = b""
    for following in offsets:
        pages += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        pages += struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", start) + pages


PAGE_BYTES = 2 + 9 * 12 + 4


@cache
def long_chain():
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as file:
        for _ in range(1005):
            file.write(np.zeros((4, 7), np.uint8), metadata=None, contiguous=False)
    return sink.getvalue()


def png(width, height, *, claimed=None, rows=None):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *(claimed or (width, height)), 8, 0, 0, 0, 0)
    data = rows if rows is not None else zlib.compress(b"\0" * (height * (width + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped(**files):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return sink.getvalue()


def too_much():
    return b" " * (MAX_FILE_BYTES + 1)


WHOLE = packed(polygon())
ANNOTATION = '<Annotation Type="Polygon" PartOfGroup="Tumor"><Coordinates>{}</Coordinates></Annotation>'
CORNERS = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(SQUARE[:4]))
ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)

HOSTILE = {  # what takes long to make is a function, called by its test alone
    # GeoJSON: types
    "names are a number": (packed(polygon(classification={"names": 5})), "right"),
    "names are objects": (packed(polygon(classification={"names": [{"a": 1}, None]})), "right"),
    "classification is a list": (packed(polygon(classification=[1, 2])), "right"),
    "classification is deep": (packed(polygon(classification={"name": {"name": {}}})), "right"),
    "properties are a list": (packed({**polygon(), "properties": [1]}), "right"),
    "identifier is a list": (packed({**polygon(), "id": [[1]]}), "right"),
    "object type is an object": (packed(polygon(objectType={"a": 1})), "right"),
    "children are a number": (packed(polygon(childObjects=5)), "'childObjects' in the GeoJSON is a number"),
    "children are numbers": (packed(polygon(childObjects=[5])), "holds a number instead of a Feat"),
    "geometry is a text": (packed(feature("Polygon")), "a geometry is none of GeoJSON's types"),
    "geometry type is a list": (packed(feature({"type": ["Polygon"]})), "a geometry is none of"),
    "type is a list": (b'{"type": [1]}', "a geometry is none of"),
    "type is an object": (b'{"type": {"a": {}}}', "a geometry is none of"),
    "features are an object": (b'{"type": "FeatureCollection", "features": {}}', "'features' in the GeoJSON is an obj"),
    "a ring is null": (packed(feature({"type": "Polygon", "coordinates": [None]})), "coordinate .* no level-0 pixel"),
    "a point is a text": (packed(polygon([["a", "b"]] * 4)), "coordinate .* no level-0 pixel"),
    "a point is an object": (packed(polygon([{"x": 1, "y": 2}] * 4)), "coordinate .* no level-0 pixel"),
    "polygons are a text": (packed(feature({"type": "MultiPolygon", "coordinates": "abc"})), "is a text, expected"),
    "polygons in wrong depth": (packed(feature({"type": "MultiPolygon", "coordinates": [SQUARE]})), "coordinate"),
    # GeoJSON: numbers
    "not a number": (b'{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 3], [4, 9]]]}', "coordinate .* no level-0"),
    "infinite": (b'{"type": "Polygon", "coordinates": [[[1e999, 1], [2, 3], [4, 9]]]}', "coordinate .* no level-0"),
    "huge": (packed(polygon([[0, 0], [1e300, 0], [1e300, 1e300], [0, 0]])), "coordinate .* no level-0 pixel"),
    "5,000 digits": (b'{"type": "Polygon", "coordinates": [[[' + b"9" * 5000 + b", 1]]]}", "malformed JSON"),
    "tiny": (packed(polygon([[0, 0], [5e-324, 0], [5e-324, 5e-324], [0, 0]])), "right"),
    # GeoJSON: form
    "nested lists": (b"[" * 1_000_000, "malformed JSON"),
    "nested objects": (b'{"a":' * 100_000, "malformed JSON"),
    "nested features": (nested_feature(150), "nested more than 100 levels"),
    "nested geometries": (nested_collection(150), "nested more than 100 levels"),
    "nested far too deep": (nested_collection(50_000), "malformed JSON"),
    "truncated": (WHOLE[:-9], "malformed JSON"),
    "wrong encoding": (b"\xff\xfe" + WHOLE, "malformed JSON|damaged"),
    "not UTF-8": (b'{"type": "\xff\xfe"}', "malformed JSON"),
    "UTF-16": (WHOLE.decode().encode("utf-16"), "right"),
    "lone surrogates": (b'{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": '
        + packed([SQUARE]) + b'}, "properties": {"classification": {"name": "\\ud800\\udfff\\ud800"}}}', "right"),
    "zeros": (b"\0" * 100_000, "neither XML, JSON, text, PNG nor TIFF"),
    "20,000 crossing corners": (lambda: crossing(20_000), "crosses itself about .* times"),
    "1,500 crossing corners": (lambda: crossing(1_500), "crosses itself about .* times"),
    "600 crossing corners": (crossing(600), "right"),
    # packed
    "gzip bomb": (lambda: gzip.compress(too_much(), 1), "holds more than the .* bytes that are read"),
    "gzip, truncated": (gzip.compress(WHOLE)[:-12], "cannot be unpacked"),
    "gzip, damaged": (gzip.compress(WHOLE)[:20] + b"\xff" * 50, "cannot be unpacked"),
    "gzip of gzip": (gzip.compress(gzip.compress(WHOLE)), "neither XML, JSON, text, PNG nor TIFF"),
    "zip bomb": (lambda: zipped(a_json=too_much()), "holds more than the .* bytes that are read"),
    "zip of two": (zipped(a_json=WHOLE, b_geojson=WHOLE), "holds 2 GeoJSON files, expected one"),
    "zip, damaged": (zipped(a_json=WHOLE)[:80], "cannot be unpacked"),
    "zip of nothing": (b"PK\x03\x04" + b"\0" * 500, "cannot be unpacked"),
    # XML
    "entity bomb": ((ENTITIES + "]><ASAP_Annotations>&j;</ASAP_Annotations>").encode(), "declares entities"),
    "external entity": (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ASAP_Annotations>&x;</ASAP_Annotations>',
        "declares entities"),
    "three million nested elements": (lambda: b"<ASAP_Annotations>" + b"<x>" * 3_000_000, "nested more than 100"),
    "a million empty elements": (lambda: asap("<x/>" * 1_000_000), "right"),
    "a long attribute": (lambda: asap(f'<x a="{"a" * 50_000_000}"/>'), "right"),
    "too much XML": (lambda: asap(" " * (65 * 2**20)), "bytes of XML, more than the"),
    "XML, truncated": (asap(ANNOTATION.format(CORNERS))[:150], "malformed XML"),
    "XML, not a number": (asap(ANNOTATION.format(CORNERS.replace('"40"', '"nan"'))), "coordinate .* no level-0 pixel"),
    "XML, order is not a number": (asap(ANNOTATION.format(CORNERS.replace('"2"', '"two"'))), "Order of a Coordinate"),
    "XML, annotations in annotations": (asap(ANNOTATION.format(ANNOTATION.format(CORNERS))), "right"),
    "XML, group of control characters": (asap(ANNOTATION.format(CORNERS).replace("Tumor", "&#x202e;&#10;")), "right"),
    "HALO, entity": (b'<!DOCTYPE a [<!ENTITY x "y">]><Annotations><Annotation Name="&x;"/></Annotations>', "declares"),
    "HALO, truncated": (b'<Annotations><Annotation Name="T"><Regions><Region Type="Polygon"><Vertices><V X="', "malf"),
    "ImageScope, two million layers": (lambda: b"<Annotations>" + b"<Annotation>" * 2_000_000, "nested more"),
    "NDPA, nested": (lambda: b"<annotations>" + b"<ndpviewstate>" * 200, "nested more than 100|malformed XML"),
    "VOC, box without a side": (b"<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>", "coord"),
    "XML, a root of megabytes": (lambda: b"<" + b"a" * 50_000_000 + b"/>", "malformed XML|none of the formats"),
    "60 MB of blank XML": (lambda: b"<Annotations>" + b" " * (60 * 2**20) + b"</Annotations>", "right"),
    # other JSON
    "Darwin, annotations are a number": (b'{"schema_ref": 1, "annotations": 5}', "is a number, expected a list"),
    "Darwin, paths are deep": (packed({"schema_ref": 1, "annotations": [{"polygon": {"paths": [[[[1]]]]}}]}), "coord"),
    "CAMELYON, vertices are a text": (b'{"positive": [{"vertices": "ab"}], "negative": []}', "is a text, expected"),
    "COCO, runs of terabytes": (packed({"images": [{"id": 1}], "categories": [], "annotations": [{"image_id": 1,
        "segmentation": {"size": [2**31, 2**31], "counts": [0, 2**62]}}]}), "runs, more than|is damaged|memory"),
    "COCO, runs of a wall of pixels": (packed({"images": [{"id": 1}], "categories": [], "annotations": [{"image_id": 1,
        "segmentation": {"size": [1, 10**9], "counts": [0, 10**9]}}]}), "has 1000000000 runs, more than 200000"),
    "COCO, ids are lists": (b'{"images": [{"id": []}], "categories": [], "annotations": []}', "expected objects"),
    "60 MB of one JSON text": (lambda: b'{"a": "' + b"x" * (60 * 2**20) + b'"}', "none of the formats"),
    # text
    "60 MB without a line": (lambda: b"x" * (60 * 2**20), "none of the formats"),
    "70 MB of YOLO": (lambda: b"0 0.5 0.5 0.1 0.1\n" * (4 * 2**20), "bytes of text, more than the"),
    "YOLO, huge numbers": (b"0 1e300 1e300 1 1", "no level-0 pixel"),
    "YOLO, a class of 5,000 digits": (b"1" * 5000 + b" 0.5 0.5 0.1 0.1", "right"),
    "table, not numbers": (b"x,y,label,size\nnan,1,1,5\n", "no level-0 pixel"),
    "table, infinite": (b"x,y,label,size\n1e400,1,1,5\n", "no level-0 pixel"),
    "table, a field of megabytes": (lambda: b"x,y,label,size\n" + b"1" * 10**7, "damaged|no number|no level-0"),
    "table, a label of 5,000 digits": (b"x,y,label,size\n1,1," + b"9" * 5000 + b",5\n", "right|damaged"),
    # images
    "TIFF, a page leads to itself": (tiff(8), "pages lead back to an earlier page"),
    "TIFF, pages lead in a circle": (tiff(8 + PAGE_BYTES, 8), "pages lead back to an earlier page"),
    "TIFF, too many pages": (long_chain, "more than 1000 pages"),
    "TIFF, first page beyond the file": (tiff(0, start=10**6), "the mask cannot be decoded"),
    "TIFF, no page": (b"II*\0\0\0\0\0" + b"\0" * 50, "the mask cannot be decoded"),
    "TIFF, pixels beyond the file": (tiff(0), "the mask cannot be decoded|damaged"),
    "PNG of a wall of pixels": (png(7, 4, claimed=(70_000_000, 40_000_000)), "more than .* pixels|cannot be decoded"),
    "PNG, truncated": (png(70, 40)[:60], "the mask cannot be decoded"),
    "PNG, pixels damaged": (png(70, 40, rows=b"\x78\x9c" + b"\xff" * 40), "the mask cannot be decoded"),
    "empty": (b"", "is empty"),
}  # fmt: skip


def ask(child, path, folder, **more):
    request = {
        "path": str(path), "slide_path": "", "size": SIZE, "bounds": None, "origin": "auto", "tissue": None,
        "scale": None, "known": ["tumor"], "out": str(folder / "out"), **more,
    }  # fmt: skip
    started = time.monotonic()
    answer = child.call(request, timeout_s=LIMIT_S)
    return answer, time.monotonic() - started


def peak_bytes(child):
    text = Path(f"/proc/{child._running[0].pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_annotation_ends_with_a_sentence_or_is_right(child, tmp_path, name):
    content, expected = HOSTILE[name]
    path = tmp_path / "CNRY_Doe.json"
    path.write_bytes(content() if callable(content) else content)
    answer, _ = ask(child, path, tmp_path)
    assert peak_bytes(child) < 3 * 2**30
    if expected == "right":
        assert "error" not in answer
        decode_annotation((tmp_path / "out").read_bytes())
    else:
        assert re.search(expected, answer["error"]), answer
        assert "CNRY" not in answer["error"]
        assert len(answer["error"]) < 400


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(child, tmp_path, kind):
    path = tmp_path / "CNRY_Doe.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    answer, seconds = ask(child, path, tmp_path)
    assert "not a regular file" in answer["error"]
    assert seconds < 2


def test_memory_is_limited(tmp_path):
    path = tmp_path / "large.json"
    ring = ",".join(["[1.5,2.5]"] * 40)
    path.write_text("[" + ",".join([f'{{"type":"Polygon","coordinates":[[{ring}]]}}'] * 200_000) + "]")
    limited = Child("tests.support.child_work:read_with_little_memory")
    try:
        answer = limited.call({"path": str(path), "size": SIZE}, timeout_s=60)
    finally:
        limited.close()
    assert "takes more memory than may be used" in answer["error"]


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_end_with_a_sentence_or_are_read(child, tmp_path, seed):
    rng = np.random.default_rng(seed)
    originals = [
        packed([polygon(), polygon(objectType="cell", childObjects=[polygon()])]),
        asap(ANNOTATION.format(CORNERS) * 3),
        gzip.compress(WHOLE),
        zipped(a_json=WHOLE),
        png(70, 40),
        long_chain()[:3000],
    ]
    for content in originals:
        damaged = np.frombuffer(content, np.uint8).copy()
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / "a.any").write_bytes(damaged.tobytes())
        answer, seconds = ask(child, tmp_path / "a.any", tmp_path)
        assert seconds < LIMIT_S / 2
        assert "error" in answer or decode_annotation((tmp_path / "out").read_bytes()) is not None
