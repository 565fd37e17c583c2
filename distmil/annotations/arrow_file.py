"""An annotation as one Arrow file: areas as WKB, a mask as PNG, the rest as JSON."""

import json
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import shapely

from distmil.annotations.outlines import Annotation

_ABOUT = b"about"


def encode_annotation(annotation: Annotation) -> bytes:
    """Encode an annotation as an Arrow file."""
    about: dict[str, Any] = {
        "mask_scale": annotation.mask_scale,
        "mask_corner": annotation.mask_corner,
        "num_repaired": annotation.num_repaired,
        "dropped": dict(annotation.dropped),
        "writer": annotation.writer,
        "class_property": annotation.class_property,
    }
    areas = [shapely.to_wkb(region) for region in annotation.regions.values()]
    masks = [] if annotation.mask is None else [cv2.imencode(".png", annotation.mask)[1].tobytes()]
    table = pa.table(
        {
            "group": pa.array([*annotation.regions, *([None] * len(masks))], pa.string()),
            "content": pa.array([*areas, *masks], pa.large_binary()),
        }
    ).replace_schema_metadata({_ABOUT: json.dumps(about)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def decode_annotation(data: bytes) -> Annotation:
    """Decode what ``encode_annotation`` made."""
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        table = reader.read_all()
    about = json.loads((table.schema.metadata or {})[_ABOUT])
    rows = list(zip(table["group"].to_pylist(), table["content"].to_pylist(), strict=True))
    masks = [np.frombuffer(content, np.uint8) for group, content in rows if group is None]
    regions = {group: shapely.from_wkb(content) for group, content in rows if group is not None}
    mask = np.asarray(cv2.imdecode(masks[0], cv2.IMREAD_UNCHANGED), np.uint8) if masks else None
    pairs = {key: tuple(about[key]) for key in ("mask_scale", "mask_corner") if key in about}  # older ones lack one
    return Annotation(**{**about, **pairs}, regions=regions, mask=mask)
