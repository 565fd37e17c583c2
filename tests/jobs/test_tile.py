"""The tile job: a slide of many chunks over all workers, its report, and damage that is found and repaired."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.pipeline.tile import MOST_CHUNKS
from distmil.storage.store import Store
from tests.support.jobs import Done, run_here
from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.slides import tissue_image
from tests.support.tiles import tile_slide

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray warns of its own settings
]

VALUES = {"patch_px": 32, "mpp": 0.5, "chunk_patches": 16, "encode": "png", "max_bad_fraction": 0.5}
OUTLINE = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [[[100, 80], [300, 80], [300, 200], [100, 80]]]},
    "properties": {"classification": {"name": "Tumor"}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a manifest: two slides of more chunks than a worker does in a row, a small one and a broken one."""
    home = tmp_path_factory.mktemp("home")
    sizes = {"large": (700, 420), "wide": (1100, 300), "small": (90, 70)}
    rows = [{"slide_id": "broken", "slide_path": "broken.svs", "label": "negative"}]
    (home / "broken.svs").write_bytes(b"no slide at all")
    (home / "large.geojson").write_text(json.dumps(OUTLINE))
    for seed, (slide_id, size) in enumerate(sizes.items()):
        save_jpeg_tiff(home / f"{slide_id}.tif", tissue_image(size, seed=seed), mpp=0.5)
        rows.append({"slide_id": slide_id, "slide_path": f"{slide_id}.tif", "label": "positive"})
    rows[1]["annotation_path"] = "large.geojson"
    with (home / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["slide_id", "slide_path", "label", "annotation_path"])
        writer.writeheader()
        writer.writerows(rows)
    return home


def run_tile(home: Path, *arguments: object, actors: int = 1) -> Done:
    values = [f"tiling.{name}={value}" for name, value in VALUES.items()]
    return run_here(home, "tile", f"cohort.manifest={home / 'manifest.csv'}", *values, *arguments, actors=actors)


@pytest.fixture(scope="module")
def tiled(home: Path) -> Done:
    done = run_tile(home, actors=2)
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    next_step = next(i for i, line in enumerate(lines) if line.startswith("next:"))
    assert "1 of 4 slides were dropped:" in lines[next_step - 3]
    assert lines[next_step - 1].split()[:4] == ["1", "x", "unreadable", "broken"]
    return done


def shards(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_slides_spread_over_workers_come_out_as_in_one_process(home: Path, tiled: Done, tmp_path: Path) -> None:
    assert tiled.answer["slides"] == {"ok": 3, "unreadable": 1}
    made = Path(tiled.answer["patches"])
    for slide_id in ("large", "wide", "small", "broken"):
        suffix = ".svs" if slide_id == "broken" else ".tif"
        slide = Slide(slide_id, str(home / f"{slide_id}{suffix}"))
        record = tile_slide(slide, TilingConfig(**VALUES), Store(str(tmp_path)))
        assert (len(record.parts) > MOST_CHUNKS) is (slide_id in {"large", "wide"})
        assert shards(made / slide_id) == shards(tmp_path / "patches" / made.name / slide_id)


def test_the_report_shows_every_slide(home: Path, tiled: Done) -> None:
    page = Path(tiled.answer["report"])
    summary = json.loads((page.parent / "summary.json").read_text())
    assert summary["totals"]["statuses"]["ok"] == 3
    assert summary["totals"]["patches_of_this_run"] == tiled.answer["num_patches"]
    slides = {row["slide_id"]: row for row in summary["slides"]}
    assert slides["large"]["labels"]["positive"] > 0
    assert slides["wide"]["labels"] is None
    assert "no whole-slide format" in slides["broken"]["error"]
    assert "broken.svs" not in page.read_text()

    class Pictures(HTMLParser):
        found: list[str] = []  # noqa: RUF012 (one page only)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "img":
                self.found.append(str(dict(attrs)["src"]))

    parser = Pictures()
    parser.feed(page.read_text())
    assert len(parser.found) == 3
    for address in parser.found:
        assert (page.parent / address).read_bytes()[:2] == b"\xff\xd8"


def test_a_second_run_touches_nothing(home: Path, tiled: Done) -> None:
    before = shards(home / "patches") | shards(home / "reports")
    done = run_tile(home)
    assert done.code == 0, done.err
    assert "\ntiling " not in done.err.replace("reports/tiling", "")
    assert shards(home / "patches") | shards(home / "reports") == before


def test_damage_is_found_and_repaired(home: Path, tiled: Done) -> None:
    folder = Path(tiled.answer["patches"])
    whole = shards(folder)
    (folder / "wide" / "plan.json").write_text("left by a kill just after the commit")
    assert run_tile(home, "tiling.verify=true").answer["verified"] == 4
    assert shards(folder) == whole
    part = folder / "wide" / "part-00007.parquet"
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    part.write_bytes(damaged)
    found = run_tile(home, "tiling.verify=true")
    assert found.code == 1
    assert "part-00007.parquet is damaged" in found.err
    assert "1 of 4 slides are damaged; tiling.verify=repair tiles them again" in found.err
    repaired = run_tile(home, "tiling.verify=repair")
    assert repaired.code == 0, repaired.err
    assert repaired.answer["repaired"] == 1
    assert shards(folder) == whole
