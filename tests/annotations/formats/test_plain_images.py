"""Plain images: COCO boxes, VOC boxes, YOLO boxes and masks of the same objects give the same patch labels."""

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from distmil.bags.bag import read_labels
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.labels.tables import SlideLabeller
from tests.support.slides import save_image, tissue_image
from tests.support.tiles import tile_slide

NUM_IMAGES = 24
SIZE = (160, 96)
TILING = {"strategy": "crop", "patch_px": 32, "mpp": None, "encode": "png"}
RULE = {"positive_at": 0.3, "negative_below": 0.1}
GROUP = {"coco": "car", "voc": "car", "yolo": "0", "mask": "255"}


def config_of(kind):
    return build_config({"tiling": TILING, "labels": {**RULE, "groups": {GROUP[kind]: "positive"}}})


def draw_boxes(rng):
    """Boxes of whole pixels, (left, top, width, height), some of which overlap."""
    corner = rng.integers(0, np.array(SIZE) - 10, (rng.integers(1, 4), 2))
    edge = rng.integers(8, np.minimum(np.array(SIZE) - corner, 60) + 1)
    return np.column_stack([corner, edge]).tolist()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Write 24 images, and what they show in every format; return the paths of annotations by format."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    images, annotations, files = [], [], []
    for number in range(NUM_IMAGES):
        name = f"frame_{number:04d}"
        save_image(folder / f"{name}.png", tissue_image(SIZE, seed=number))
        boxes = draw_boxes(rng)
        images.append({"id": number + 100, "file_name": f"{name}.png", "width": SIZE[0], "height": SIZE[1]})
        annotations += [{"image_id": number + 100, "category_id": 1, "bbox": box, "iscrowd": 0} for box in boxes]
        text = "".join(
            f"<object><name>car</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            "</bndbox></object>"
            for x, y, w, h in boxes
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        (folder / f"{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
        lines = [f"0 {(x + w / 2) / SIZE[0]!r} {(y + h / 2) / SIZE[1]!r} {w / SIZE[0]!r} {h / SIZE[1]!r}"
                 for x, y, w, h in boxes]  # fmt: skip
        (folder / f"{name}.txt").write_text("\n".join(lines))
        mask = np.zeros(SIZE[::-1], np.uint8)
        for x, y, w, h in boxes:
            mask[y : y + h, x : x + w] = 255
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
        files.append({"coco": folder / "all.json", "voc": folder / f"{name}.xml", "yolo": folder / f"{name}.txt",
                      "mask": folder / f"{name}_mask.png"})  # fmt: skip
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    (folder / "all.json").write_text(json.dumps(coco))
    return folder, files


def test_every_format_gives_the_labels_of_the_mask(cohort, store):
    folder, files = cohort
    states = set()
    for number, paths in enumerate(files):
        found = {}
        for kind, path in paths.items():
            slide = Slide(f"s{number}", str(folder / f"frame_{number:04d}.png"), label=1, annotation_path=str(path),
                          annotation_complete=True)  # fmt: skip
            config = config_of(kind)
            labeller = SlideLabeller(slide, config, store, tile_slide(slide, config.tiling, store))
            record = labeller.label()
            assert (record.status, record.info["doubts"]) == ("ok", []), kind
            found[kind] = read_labels(store, labeller.table_name)
        expected = found.pop("mask")
        states |= set(expected["label"].to_pylist())
        for kind, table in found.items():
            assert table["label"].equals(expected["label"]), (number, kind)
            shares = [np.asarray(one["target_fraction"].to_numpy()) for one in (table, expected)]
            np.testing.assert_allclose(*shares, atol=1e-6)
        assert isinstance(expected, pa.Table)
    assert states == {0, 1, None}
