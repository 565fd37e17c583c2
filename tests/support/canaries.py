"""A cohort with a mark wherever a person's name may stand, and a search for the marks in what is stored.

Marks are in scanner metadata, label and macro images, every segment of the tiles' JPEG code, text of PNG and JPEG
files, names of files and folders, columns of the manifest, and all texts of annotations. Ids of slides have none: their
user chooses them.
"""

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tests.support.jpeg_tiff import save_jpeg_tiff, segments

MARK = "CNRY"
WIDTH, HEIGHT = 1152, 896
_TUMOUR = (256, 256, 640, 640)
_CODES = (269, 306, 315, 316, 33432, 65000)
"""Document name, date, artist, host computer, copyright, and a private tag."""
_DESCRIPTION = (
    f"Aperio Image Library v12\r\n{WIDTH}x{HEIGHT} [0,0 {WIDTH}x{HEIGHT}] (256x256) JPEG/RGB Q=70|AppMag = 20|"
    f"MPP = 0.5|ScanScope ID = {MARK}SCANNER|User = {MARK}USER|Date = {MARK}DATE|Patient = {MARK}PATIENT|"
    f"Barcode = {MARK}BARCODE"
)


def make_canaries(folder: Path, *, count: int = 10) -> Path:
    """Make the cohort, with so many whole slides of a scanner, and return its manifest."""
    home = folder / f"{MARK}FOLDER_Doe"
    home.mkdir(parents=True)
    rows = [_svs(home, number) for number in range(count)]
    rows += [_plain(home, "p0", 1), _plain(home, "p1", 0)]
    rows += _broken(home)
    manifest = folder / f"{MARK}MANIFEST_Doe.csv"
    with manifest.open("w", newline="") as file:
        names = ("slide_id", "slide_path", "label", "patient_id", "split", "annotation_path", "annotation_complete")
        writer = csv.DictWriter(file, [*names, "tissue_path", "site", f"{MARK}COLUMN", "notes"], restval="")
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow(
                {
                    "patient_id": f"{MARK}PATIENT{number}",
                    "site": f"{MARK}SITE",
                    f"{MARK}COLUMN": f"{MARK}CELL",
                    "notes": f"{MARK}NOTE",
                    **row,
                }
            )
    return manifest


def find_marks(folder: Path, *, mark: str = MARK) -> list[str]:
    """Search every file below a folder, and the files' names, for a mark."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if mark in name:
            found.append(f"{name}: its name")
        if path.is_file() and any(mark.encode() in piece for piece in _pieces(path)):
            found.append(name)
    return found


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield what a file holds: its bytes, and what is compressed in them."""
    data = path.read_bytes()
    yield data
    yield data.replace(b"\0", b"")  # text of two bytes a character
    if path.suffix == ".parquet":
        table = pq.read_table(pa.BufferReader(data))
        yield str(table.schema.metadata).encode() + str(table.schema).encode()
        for column in table.columns:
            kind = column.type
            if pa.types.is_string(kind) or pa.types.is_binary(kind):
                yield from (
                    value if isinstance(value, bytes) else value.encode() for value in column.to_pylist() if value
                )
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            yield repr(image.info).encode()
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def _svs(home: Path, number: int) -> dict[str, str]:
    """Make an Aperio slide of marked JPEG tiles, odd ones with a tumour, and its annotation."""
    path = home / f"{MARK}SLIDE{number}.svs"
    is_positive = bool(number % 2)
    picture = _picture(number, is_positive)
    save_jpeg_tiff(path, picture, tile=(256, 256), downsamples=(1, 4), change=_marked, tags=_tags(_DESCRIPTION))
    _add_images(path)
    row = {"slide_id": f"s{number}", "slide_path": f"{home.name}/{path.name}", "label": str(int(is_positive))}
    row["split"] = "val" if number in {4, 5} else "test" if number in {6, 7} else "train"
    if is_positive:
        annotation = home / f"{MARK}OUTLINES{number}"
        row |= {"annotation_path": f"{home.name}/{annotation.name}", "annotation_complete": "true"}
        annotation.write_text(_asap() if number % 4 == 1 else _geojson(), encoding="utf-8")
    return row


def _tags(description: str) -> list[tuple[int, int, int, str, bool]]:
    """Return marked tags, a private one among them."""
    return [(270, 2, 0, description, True), *((code, 2, 0, f"{MARK}TAG{code}", True) for code in _CODES)]


def _add_images(path: Path) -> None:
    """Add a label and a macro image of marks."""
    pixels = np.frombuffer((f"{MARK}PIXELS " * 4096).encode()[: 96 * 96 * 3], np.uint8).reshape(96, 96, 3)
    with tifffile.TiffWriter(path, append=True) as file:
        for name in ("label", "macro"):
            tags = _tags(f"Aperio Image Library v12\r\n{name} {MARK}LABEL")
            kind = {"label": 1, "macro": 9}[name]
            file.write(pixels, photometric="rgb", metadata=None, subfiletype=kind, rowsperstrip=96, extratags=tags)


def _marked(tile: bytes) -> bytes:
    """Put marks into every segment of a JPEG that may hold text, before, inside and after the scan."""
    text = f"{MARK}SEGMENT".encode()

    def segment(marker: int) -> bytes:
        return bytes((0xFF, marker)) + (len(text) + 2).to_bytes(2, "big") + text

    parts = list(segments(tile))
    before = b"".join(segment(marker) for marker in (0xE1, 0xED, 0xE5, 0xFE))
    head = b"".join(part for _, part in parts[:-1])
    return tile[:2] + before + head + segment(0xFE) + parts[-1][1] + text


def _plain(home: Path, slide_id: str, label: int) -> dict[str, str]:
    """Make a PNG or a JPEG with marked text."""
    picture = Image.fromarray(_picture(100 + label, bool(label)))
    path = home / f"{MARK}PLAIN{slide_id}{'.png' if label else '.jpg'}"
    if label:
        info = PngImagePlugin.PngInfo()
        info.add_text("Patient", f"{MARK}TEXT")
        info.add_text("Comment", f"{MARK}ZTEXT", zip=True)
        picture.save(path, pnginfo=info, dpi=(50_800, 50_800))
    else:
        exif = Image.Exif()
        exif[315] = f"{MARK}EXIF"
        picture.save(path, exif=exif, comment=f"{MARK}COMMENT", quality=90)
    return {"slide_id": slide_id, "slide_path": f"{home.name}/{path.name}", "label": str(label), "split": "train"}


def _broken(home: Path) -> list[dict[str, str]]:
    """Make slides, annotations and tissue files that fail, each with a mark in its name."""
    whole = home / f"{MARK}SLIDE0.svs"
    files = {
        f"{MARK}TEXTFILE_Doe.svs": f"{MARK}CONTENT no slide".encode(),
        f"{MARK}CUTOFF_Doe.svs": whole.read_bytes()[:3000],
        f"{MARK}NOTPNG_Doe.png": b"\x89PNG\r\n\x1a\n" + f"{MARK}CONTENT".encode() * 9,
        f"{MARK}EMPTY_Doe.svs": b"",
    }
    rows = []
    for number, (name, data) in enumerate(files.items()):
        (home / name).write_bytes(data)
        split = "train" if number % 2 else "test"
        rows.append({"slide_id": f"b{number}", "slide_path": f"{home.name}/{name}", "label": "0", "split": split})
    outlines = {
        f"{MARK}BADXML_Doe.xml": f"<ASAP_Annotations><!-- {MARK}XML --><Annotations><{MARK}".encode(),
        f"{MARK}BADJSON_Doe.geojson": f'{{"type": "FeatureCollection", "features": "{MARK}FEATURES"}}'.encode(),
        f"{MARK}GROUP_Doe.geojson": _geojson(group=f"{MARK}GROUP_Doe").encode(),
        f"{MARK}MASK_Doe.png": b"\x89PNG\r\n\x1a\n broken",
    }
    for number, (name, data) in enumerate(outlines.items()):
        (home / name).write_bytes(data)
        path = home / f"{MARK}OUTLINED{number}.svs"
        save_jpeg_tiff(path, _picture(200 + number, True), tile=(256, 256), mpp=0.5, change=_marked)
        row = {"slide_id": f"o{number}", "slide_path": f"{home.name}/{path.name}", "label": "1", "split": "test"}
        rows.append(row | {"annotation_path": f"{home.name}/{name}"})
    tissue = home / f"{MARK}TISSUE_Doe.geojson"
    tissue.write_text(f"{MARK}TISSUE", encoding="utf-8")
    row = {"slide_id": "t0", "slide_path": f"{home.name}/{whole.name}", "label": "0", "split": "train"}
    copy = home / f"{MARK}SLIDE0copy.svs"
    copy.write_bytes(whole.read_bytes())
    return [*rows, row | {"slide_path": f"{home.name}/{copy.name}", "tissue_path": f"{home.name}/{tissue.name}"}]


def _picture(seed: int, is_positive: bool) -> NDArray[np.uint8]:
    """Draw tissue, with a dark patch where it is positive."""
    rng = np.random.default_rng(seed)
    picture = np.full((HEIGHT, WIDTH, 3), 243, np.uint8)
    cv2.ellipse(picture, (WIDTH // 2, HEIGHT // 2), (520, 400), 0, 0, 360, (226, 162, 200), -1)
    if is_positive:
        left, top, right, bottom = _TUMOUR
        cv2.rectangle(picture, (left, top), (right, bottom), (96, 48, 140), -1)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def _corners() -> Sequence[tuple[int, int]]:
    left, top, right, bottom = _TUMOUR
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _asap() -> str:
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(_corners()))
    return (
        f'<?xml version="1.0"?><!-- {MARK}XMLCOMMENT --><ASAP_Annotations user="{MARK}USER"><Annotations>'
        f'<Annotation Name="{MARK}OBJECT" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>{points}'
        f'</Coordinates></Annotation></Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None"/>'
        f"</AnnotationGroups></ASAP_Annotations>"
    )


def _geojson(group: str = "Tumor") -> str:
    ring = [list(point) for point in (*_corners(), _corners()[0])]
    properties = {
        "objectType": "annotation",
        "name": f"{MARK}REMARK",
        "classification": {"name": group, "color": [200, 0, 0]},
        "metadata": {f"{MARK}KEY": f"{MARK}VALUE"},
        "measurements": {f"{MARK}MEASURE": 1.0},
    }
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "id": f"{MARK}ID", "geometry": geometry, "properties": properties}
    return json.dumps({"type": "FeatureCollection", "name": f"{MARK}NAME", "features": [feature]})
