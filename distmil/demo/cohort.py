"""The demo's cohort on disk: slides, outlines and a manifest, made from a seed alone."""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import tifffile

from distmil.demo.drawing import Lesion, Pixels, draw_slide
from distmil.errors import ConfigError

MPP = 0.5
TILE_PX = 256
COLUMNS = ("slide_id", "slide_path", "label", "patient_id", "annotation_path", "annotation_complete")


def make_cohort(folder: Path, *, num_slides: int, seed: int = 0, progress: Callable[[], None] | None = None) -> Path:
    """Write ``num_slides`` slides (at least 2), annotations and a manifest to ``folder``; return the manifest's path.

    Of every two slides one is positive; of every five, two belong to one patient. A quarter of the positive slides has
    no annotation, the others a complete one, by turns ASAP XML and QuPath GeoJSON; half have a normal island in their
    lesion. A cohort is the start of every larger one of its seed. ``progress`` is called after each slide. The manifest
    comes last and in one step: where it exists the cohort counts as finished, whatever its seed and size, and the
    function returns at once.

    Raises:
        ConfigError: If ``num_slides`` is below 2 or ``seed`` is negative.
    """
    manifest_path = folder / "manifest.csv"
    if manifest_path.exists():
        return manifest_path
    if num_slides < 2 or seed < 0:
        raise ConfigError(f"demo cohort: num_slides {num_slides}, seed {seed}; give 2 slides or more and a seed from 0")
    rows: list[Sequence[str]] = [COLUMNS]
    for index in range(num_slides):
        rows.append(_make_slide(folder, index, seed))
        if progress is not None:
            progress()
    _write(manifest_path, "".join(",".join(row) + "\n" for row in rows).encode())
    return manifest_path


def _make_slide(folder: Path, index: int, seed: int) -> Sequence[str]:
    """Draw and write one slide with its annotation and return its manifest row."""
    slide_id, patient_id = f"demo-{index + 1:03d}", f"patient-{index + 1 - (index + 4) // 5:03d}"
    pair, place = divmod(index, 2)
    is_positive = place == int(np.random.default_rng([seed, pair, 1]).integers(2))
    rng = np.random.default_rng([seed, index])
    pixels, lesions = draw_slide(rng, is_positive=is_positive, has_island=pair % 4 < 2)
    slide_path = f"slides/{slide_id}.tif"
    _write(folder / slide_path, encode_slide(pixels, downsamples=(1, 2, 4) if pair % 2 else (1, 4)))
    if not is_positive or pair % 4 == 2:
        return slide_id, slide_path, "positive" if is_positive else "negative", patient_id, "", ""
    num_annotated = pair - (pair + 1) // 4  # in the pairs before
    ending, encode = (("xml", encode_asap), ("geojson", encode_geojson))[num_annotated % 2]
    annotation_path = f"annotations/{slide_id}.{ending}"
    _write(folder / annotation_path, encode(lesions).encode())
    return slide_id, slide_path, "positive", patient_id, annotation_path, "true"


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step, so that a crash never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def encode_slide(pixels: Pixels, *, downsamples: Sequence[int]) -> bytes:
    """Encode RGB pixels as a tiled JPEG TIFF with one level per downsample, 1 first.

    tifffile wants imagecodecs for JPEG even where the tiles come ready: so it takes them for deflated ones, and the two
    tags that say so are put right.
    """
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for downsample in downsamples:
            size = (pixels.shape[1] // downsample, pixels.shape[0] // downsample)
            level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            writer.write(
                _jpeg_tiles(level),
                shape=level.shape,
                dtype="uint8",
                tile=(TILE_PX, TILE_PX),
                compression="zlib",
                photometric="rgb",
                resolution=(1e4 / MPP / downsample,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(downsample > 1),
                metadata=None,
            )
    file.seek(0)
    with tifffile.TiffFile(file) as written:
        for page in written.pages:
            page.tags["Compression"].overwrite(7)  # JPEG
            page.tags["PhotometricInterpretation"].overwrite(6)  # YCbCr
        return file.getvalue()


def _jpeg_tiles(level: Pixels) -> Iterator[bytes]:
    """Encode a level's tiles, row by row, edge tiles filled up with their last pixels."""
    full = cv2.copyMakeBorder(level, 0, -level.shape[0] % TILE_PX, 0, -level.shape[1] % TILE_PX, cv2.BORDER_REPLICATE)
    for band in np.split(full, full.shape[0] // TILE_PX):
        for tile in np.split(band, full.shape[1] // TILE_PX, axis=1):
            yield simplejpeg.encode_jpeg(
                np.ascontiguousarray(tile), quality=85, colorspace="RGB", colorsubsampling="420"
            )


def encode_asap(lesions: Sequence[Lesion]) -> str:
    """Write lesions as ASAP XML: outlines in group "Tumor", islands as polygons of their own in the carving "_2"."""
    polygons = [("Tumor", lesion.outline) for lesion in lesions]
    polygons += [("_2", lesion.island) for lesion in lesions if lesion.island is not None]
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "<Annotations>"]
    for number, (group, outline) in enumerate(polygons):
        lines += [f'<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">']
        points = (f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in enumerate(outline))
        lines += ["<Coordinates>", *points, "</Coordinates>", "</Annotation>"]
    groups = (f'<Group Name="{group}" PartOfGroup="None" Color="#64FE2E" />' for group in ("Tumor", "_2"))
    lines += ["</Annotations>", "<AnnotationGroups>", *groups, "</AnnotationGroups>", "</ASAP_Annotations>", ""]
    return "\n".join(lines)


def encode_geojson(lesions: Sequence[Lesion]) -> str:
    """Write lesions as QuPath 0.5 does: a Feature each, the island a hole of its polygon."""
    properties = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    features = []
    for number, lesion in enumerate(lesions):
        rings = [ring.tolist() for ring in lesion if ring is not None]
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]}
        identity = f"00000000-0000-4000-8000-{number:012d}"
        features.append({"type": "Feature", "id": identity, "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features})
