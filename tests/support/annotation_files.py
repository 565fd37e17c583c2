"""The same outlines in every format of annotations: bytes of files, for tests that compare formats.

An outline is a group (``Tumor`` or ``exclude``), its corners, and holes.
"""

import json

SIZE = (700, 400)
"""Of the slide, wide."""
PIXEL_NM = (500.0, 250.0)
CENTRE_NM = (40_000.0, -25_000.0)
CLASS_NUMBERS = {"Tumor": 0, "exclude": 1}


def _xml_layers(outlines, corner, *, root="", negative="", kind=""):
    layers: dict[str, str] = {}
    for group, shell, *holes in outlines:
        regions = layers.setdefault(group, "")
        for ring, number in ((shell, 0), *((hole, 1) for hole in holes)):
            corners = "".join(f'<{corner} X="{x}" Y="{y}"/>' for x, y in ring)
            regions += f'<Region {kind} NegativeROA="{number}"><Vertices>{corners}</Vertices></Region>'
        layers[group] = regions
    inside = "".join(
        f'<Annotation Name="{name}"><Regions>{text}</Regions></Annotation>' for name, text in layers.items()
    )
    return f"<Annotations{root}>{inside}</Annotations>".encode()


def halo(outlines):
    return _xml_layers(outlines, "V", kind='Type="Polygon" HasEndcaps="0"')


def imagescope(outlines):
    return _xml_layers(outlines, "Vertex", root=' MicronsPerPixel="0.5"', kind='Type="0" Text=""')


def _flat(outlines):
    """Holes as outlines of the group of carve-outs, for formats without holes."""
    for group, shell, *holes in outlines:
        yield group, shell
        yield from (("exclude", hole) for hole in holes)


def asap(outlines):
    text = "".join(
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring))
        + "</Coordinates></Annotation>"
        for group, ring in _flat(outlines)
    )
    return f"<ASAP_Annotations><Annotations>{text}</Annotations></ASAP_Annotations>".encode()


def ndpa(outlines):
    views = ""
    for group, ring in _flat(outlines):
        points = [
            [round((value - SIZE[axis] / 2) * PIXEL_NM[axis] + CENTRE_NM[axis]) for axis, value in enumerate(point)]
            for point in ring
        ]
        text = "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x, y in points)
        views += (
            f"<ndpviewstate><title>{group}</title><coordformat>nanometers</coordformat><x>1</x><y>2</y>"
            f'<annotation type="freehand" displayname="AnnotateFreehand"><closed>1</closed>'
            f"<pointlist>{text}</pointlist></annotation></ndpviewstate>"
        )
    return f"<annotations>{views}</annotations>".encode()


def voc(outlines):
    objects = ""
    for group, ring in _flat(outlines):
        corners = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(ring, start=1))
        objects += f"<object><name>{group}</name><polygon>{corners}</polygon></object>"
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>".encode()


def geojson(outlines):
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [list(map(list, ring)) for ring in rings]},
            "properties": {"objectType": "annotation", "classification": {"name": group}},
        }
        for group, *rings in outlines
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def darwin(outlines):
    annotations = [
        {"name": group, "polygon": {"paths": [[{"x": x, "y": y} for x, y in ring] for ring in rings]}}
        for group, *rings in outlines
    ]
    slots = [{"slot_name": "0", "width": SIZE[0], "height": SIZE[1]}]
    return json.dumps({"version": "2.0", "item": {"slots": slots}, "annotations": annotations}).encode()


def camelyon(outlines):
    found = {"positive": [], "negative": []}
    for group, ring in _flat(outlines):
        key = "positive" if group == "Tumor" else "negative"
        found[key].append({"name": "Annotation 0", "vertices": [list(point) for point in ring]})
    return json.dumps(found).encode()


def coco(outlines):
    annotations = [
        {"image_id": 7, "category_id": CLASS_NUMBERS[group], "segmentation": [[v for point in ring for v in point]]}
        for group, ring in _flat(outlines)
    ]
    images = [
        {"id": 7, "file_name": "folder/s1.jpg", "width": SIZE[0], "height": SIZE[1]},
        {"id": 8, "file_name": "s2.jpg", "width": 10, "height": 10},
    ]
    categories = [{"id": number, "name": name} for name, number in CLASS_NUMBERS.items()]
    return json.dumps({"images": images, "categories": categories, "annotations": annotations}).encode()


def yolo(outlines):
    lines = [
        " ".join([str(CLASS_NUMBERS[group]), *(repr(v / SIZE[axis]) for point in ring for axis, v in enumerate(point))])
        for group, ring in _flat(outlines)
    ]
    return "\n".join(lines).encode()


WRITERS = {
    "asap": asap, "halo": halo, "imagescope": imagescope, "ndpa": ndpa, "voc": voc, "qupath": geojson,
    "darwin": darwin, "camelyon": camelyon, "coco": coco, "yolo": yolo,
}  # fmt: skip
"""Writer, as ``Annotation.writer`` names it, -> function of outlines to bytes."""
