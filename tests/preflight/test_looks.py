"""Slides and annotations are looked at as the job will see them, and finished ones are left alone."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.preflight import looks as looks_module
from distmil.preflight.amounts import estimate_amounts, file_sizes
from distmil.preflight.looks import MOST_LOOKS, MOST_TRIALS, Look, Task, choose_tasks, look_at
from distmil.storage.store import Store
from distmil.tiling.plan import plan_tiling
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

CONFIG = build_config({"tiling": {"patch_px": 32, "mpp": 1.0}})
WAIT_S = 100.0


@pytest.fixture
def slides(tmp_path: Path) -> list[Slide]:
    """Slides of 1 and of 2 um/px, one that is no image, and an annotation that is none."""
    fine = save_pyramid(tmp_path / "fine.tiff", tissue_image((300, 200), box=(40, 40, 200, 150)), mpp=1.0)
    coarse = save_pyramid(tmp_path / "coarse.tiff", tissue_image((300, 200)), mpp=2.0)
    (tmp_path / "broken.svs").write_bytes(b"nothing")
    (tmp_path / "broken.xml").write_text("<ASAP_Annotations><oh")
    outlines = str(tmp_path / "broken.xml")
    return [
        Slide("fine", str(fine), 1, annotation_path=outlines),
        Slide("coarse", str(coarse), 0),
        Slide("broken", str(tmp_path / "broken.svs"), 0),
    ]


def test_each_slide_has_the_status_that_tiling_gives_it(slides: list[Slide], store: Store) -> None:
    tasks = [Task(slides[0], num_cut=5, with_annotation=True), *map(Task, slides[1:])]
    found = {look.slide.slide_id: look for look in look_at(tasks, CONFIG, store, limit_s=WAIT_S)}
    assert {name: look.status for name, look in found.items()} == {
        "fine": "ok", "coarse": "too_coarse", "broken": "unreadable"
    }  # fmt: skip
    assert found["coarse"].mpp == pytest.approx(2.0)
    assert found["fine"].num_patches == plan_tiling(slides[0], CONFIG.tiling).grid.num_rows
    assert found["fine"].num_bytes > 100
    assert min(found["fine"].plan_s, found["fine"].patch_s) > 0
    assert "XML" in (found["fine"].annotation_error or "")
    assert str(Path(slides[2].path).parent) not in (found["broken"].error or "")


def test_patches_without_pixels_take_few_bytes_and_are_tried_with_them(
    slides: list[Slide], store: Store, tmp_path: Path
) -> None:
    tiling = CONFIG.tiling.model_copy(update={"store": "coords"})
    config = CONFIG.model_copy(update={"tiling": tiling})
    trial = tmp_path / "trial.parquet"
    (found,) = look_at([Task(slides[0], num_cut=5, file=str(trial))], config, store, limit_s=WAIT_S)
    record = tile_slide(slides[0], tiling, store)
    assert found.num_bytes == pytest.approx(sum(part.size_bytes for part in record.parts) / record.rows, rel=0.1)
    assert "image" in pq.read_schema(trial).names


def test_what_is_done_is_not_looked_at_again(
    slides: list[Slide], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tile_slide(slides[0], CONFIG.tiling, store)
    tile_slide(slides[1], CONFIG.tiling, store)

    class NoChild:
        def __init__(self, *_: object, **__: object) -> None: ...
        def close(self) -> None: ...
        def call(self, *_: object, **__: object) -> None:
            pytest.fail("a finished slide was looked at")

    monkeypatch.setattr(looks_module, "Child", NoChild)
    found = {look.slide.slide_id: look for look in look_at([Task(s, 9) for s in slides[:2]], CONFIG, store)}
    assert (found["fine"].is_done, found["fine"].num_patches) == (True, record.rows)
    assert found["coarse"].status == "too_coarse"


def test_a_look_that_is_late_is_left_out(slides: list[Slide], store: Store) -> None:
    assert look_at([Task(slides[0])], CONFIG, store, limit_s=0.01) == []


def test_many_slides_are_sampled_and_annotated_ones_too() -> None:
    many = [Slide(f"s{i}", "x", 1, annotation_path="a" if i in {1, 999} else None) for i in range(2000)]
    tasks = choose_tasks(many, with_annotations=True)
    assert len(tasks) <= MOST_LOOKS + 2 + MOST_TRIALS
    assert {task.slide.slide_id for task in tasks if task.with_annotation} == {"s1", "s999"}
    assert not any(task.with_annotation for task in choose_tasks(many, with_annotations=False))


def test_patches_are_estimated_by_the_size_of_files() -> None:
    slides = [Slide(f"s{i}", "x") for i in range(4)]
    looks = [Look(slides[0], num_patches=10, num_bytes=100.0), Look(slides[1], num_patches=30, num_bytes=200.0)]
    sizes = {"s0": 1000, "s1": 3000, "s2": 8000, "s3": 4000}
    found = estimate_amounts(looks, slides, sizes)
    assert found is not None
    assert found.num_patches == pytest.approx(160)  # 16000 bytes at 100 a patch
    assert found.patch_bytes == pytest.approx(175)
    assert found.of(2).num_patches == pytest.approx(80)
    assert estimate_amounts([Look(slides[0], "no_tissue")], slides, sizes) is None


def test_sizes_of_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert file_sizes([Slide("a", str(tmp_path / "a")), Slide("b", str(tmp_path / "b"))]) == {"a": 5}
