"""The job in this process: what is written, what is kept, what is made again, and what a bad slide costs."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from distmil.config.loading import build_config
from distmil.errors import ConfigError, TooManyBadSlides
from distmil.inference.bundle import Bundle, save_bundle
from distmil.pipeline.export import job as export_job
from distmil.pipeline.export.slide import _ENDINGS
from distmil.pipeline.job import Job
from tests.support.predicted import RUN, SIZES, Predicted, commit, make_predicted

QUICK = ["geojson", "csv"]


@pytest.fixture
def predicted(tmp_path: Path) -> Predicted:
    return make_predicted(tmp_path)


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which slides a job wrote; they are mapped here, without Ray."""
    found: list[str] = []

    def here(items, worker, **arguments):
        work = worker(**arguments)
        for item in items:
            found.append(item[0].slide.slide_id)
            yield item, work(item)

    monkeypatch.setattr(export_job, "map_slides", here)
    return found


def run(predicted: Predicted, *, prediction=None, tiling=None, cohort=None, **export):
    config = build_config(
        {
            "cohort": {"manifest": str(predicted.manifest), **(cohort or {})},
            "prediction": {"model": "a-run", "map_px": 100, **(prediction or {})},
            "tiling": {"max_bad_fraction": 0.5, **(tiling or {})},
            "export": {"formats": QUICK, **export},
        }
    )
    job = Job(config, predicted.store)
    return export_job.run(job), job


def files(folder: str | Path) -> set[str]:
    root = Path(folder)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "records" not in path.parts}


def test_every_format_of_every_slide_is_written(predicted: Predicted) -> None:
    answer, _ = run(
        predicted, formats=["png", "tiff", "ome", "geojson", "csv", "parquet"], scores=["fused", "agreement"]
    )
    assert (answer["slides"], answer["run"], answer["threshold"]) == ({"ok": 3}, RUN, 0.6)
    expected = {"slides.csv"}
    for name in SIZES:
        expected |= {f"png/{name}_{score}.png" for score in ("fused", "agreement")}
        expected |= {f"tiff/{name}_{score}.tif" for score in ("fused", "agreement")}
        expected |= {
            f"ome/{name}_scores.ome.tif",
            *(f"geojson/{name}_{kind}.geojson" for kind in ("regions", "patches")),
        }
        expected |= {f"{kind}/{name}_{table}.{kind}" for kind in ("csv", "parquet") for table in ("regions", "patches")}
    assert files(answer["export"]) == expected
    table = pq.read_table(Path(answer["export"]) / "parquet/s1_patches.parquet")
    made = predicted.table("s1")
    for name in ("x", "y", "extent_px", "fused"):
        assert table[name].to_pylist() == made[name].to_pylist()
    classes = [found if found != "normal" else "" for found in made["predicted"].to_pylist()]
    assert table["class"].to_pylist() == classes  # the rule of the predictions, at the bundle's threshold
    regions = json.loads((Path(answer["export"]) / "geojson/s1_regions.geojson").read_text())["features"]
    assert sum(found["properties"]["measurements"]["distmil: patches"] for found in regions) == len(
        [name for name in classes if name]
    )
    with Image.open(Path(answer["export"]) / "png/s2_agreement.png") as picture:
        assert picture.height > picture.width
    with (Path(answer["export"]) / "slides.csv").open() as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert int(rows["s1"]["num_regions"]) == len(regions)
    area = sum(found["properties"]["measurements"]["distmil: area mm2"] for found in regions)
    assert float(rows["s1"]["area_mm2"]) == pytest.approx(area)
    assert answer["num_regions"] == sum(int(row["num_regions"]) for row in rows.values())


def test_a_second_run_writes_what_is_missing_or_damaged_and_nothing_else(
    predicted: Predicted, written: list[str]
) -> None:
    answer, _ = run(predicted)
    assert sorted(written) == ["s1", "s2", "s3"]
    folder = Path(answer["export"])
    before = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    written.clear()
    assert run(predicted)[0] == answer
    assert written == []
    (folder / "csv/s2_regions.csv").unlink()
    (folder / "geojson/s3_regions.geojson").write_text("{}")
    assert run(predicted)[0] == answer
    assert sorted(written) == ["s2", "s3"]
    after = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"slides.csv", *(f"{kind}.{kind.partition('/')[0]}" for kind in (
        "csv/s2_regions", "csv/s2_patches", "geojson/s3_regions", "geojson/s3_patches"))}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "remade"),
    [
        ({"threshold": 0.3}, {"png", "geojson", "csv"}),
        ({"min_area_mm2": 0.002}, {"geojson", "csv"}),
        ({"origin": "bounds"}, {"tiff", "ome", "geojson", "csv"}),
        ({"downsample": 3}, {"tiff"}),
        ({"scores": ["fused"]}, {"png", "tiff", "ome", "geojson", "csv"}),
        ({"target": "tumour"}, {"png", "tiff", "ome", "geojson", "csv"}),
        ({"prediction": {"colours": "viridis"}}, {"png", "tiff"}),
        ({"prediction": {"map_px": 120}}, {"png"}),
    ],
)
def test_a_changed_setting_makes_the_formats_again_that_depend_on_it(predicted: Predicted, change, remade) -> None:
    formats = ["png", "tiff", "ome", "geojson", "csv"]
    answer, _ = run(predicted, formats=formats)
    folder = Path(answer["export"])

    def times() -> dict[str, int]:
        return {str(path.parent.name): path.stat().st_mtime_ns for path in (folder / "records").rglob("s1.json")}

    before = times()
    run(predicted, formats=formats, **change)
    after = times()
    assert {kind for kind in after if after[kind] != before[kind]} == remade


def test_no_file_of_other_settings_stays(predicted: Predicted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a name that is not written any more, nor of a slide that was not asked for this time."""
    answer, _ = run(predicted, formats=["tiff", *QUICK])
    folder = Path(answer["export"])
    (folder / "geojson/s1_mine.geojson").write_text("drawn by hand")
    monkeypatch.setattr("distmil.exporting.slide_export.MAX_PLAIN_BYTES", 10)
    _, job = run(predicted, formats=["tiff", *QUICK], scores=["fused"], slides=["s1"], threshold=0.2)
    assert {name for name in files(folder) if "s1" in name} == {
        "tiff/s1_fused.tif", "csv/s1_regions.csv", "csv/s1_patches.csv", "geojson/s1_mine.geojson",
        "geojson/s1_regions.geojson.gz", "geojson/s1_patches.geojson.gz",
    }  # fmt: skip
    assert {name for name in files(folder) if "s1" not in name} == {"slides.csv"}
    assert job.outcomes.dropped == {}
    data = json.loads(gzip.decompress((folder / "geojson/s1_regions.geojson.gz").read_bytes()))
    assert data["features"]


def test_new_predictions_or_another_bundle_are_never_served_from_old_files(predicted: Predicted, written) -> None:
    answer, _ = run(predicted)
    folder = Path(answer["export"])
    before = (folder / "csv/s1_patches.csv").read_bytes()
    table = predicted.table("s1")
    commit(predicted, "s1", table=table.set_column(5, "probability", [table["attention"].combine_chunks()]))
    commit(predicted, "s2", bundle="another")
    written.clear()
    answer, job = run(predicted)
    assert written == ["s1"]
    assert (folder / "csv/s1_patches.csv").read_bytes() != before
    assert not [name for name in files(folder) if "s2" in name]
    assert answer["slides"] == {"ok": 2, "failed": 1}
    assert job.outcomes.dropped["s2"][1] == (
        "its predictions are not of the bundle a-run as it is now; run predict again"
    )
    renamed = Bundle(**{**vars(predicted.bundle), "patch_threshold": 0.7, "digest": ""})
    save_bundle(predicted.store, renamed)
    with pytest.raises(ConfigError, match="the store has no predictions of the bundle a-run as it is now; run predict"):
        run(predicted)
    with pytest.raises(ConfigError, match=r"prediction.run = 'p': these predictions are not of the bundle a-run"):
        run(predicted, prediction={"run": RUN})


def test_a_faulty_slide_costs_itself_and_its_old_files(predicted: Predicted) -> None:
    answer, _ = run(predicted)
    table = Path(predicted.store.path(f"predictions/{RUN}/patches/s2.parquet"))
    table.write_bytes(table.read_bytes()[:-9])
    (Path(answer["export"]) / "csv/s2_patches.csv").unlink()
    answer, job = run(predicted)
    assert answer["slides"] == {"ok": 2, "failed": 1}
    why = "its table of predictions is gone or damaged; run the job that predicted it again"
    assert job.outcomes.dropped["s2"] == ("failed", why)
    assert not [name for name in files(answer["export"]) if "s2" in name]
    with (Path(answer["export"]) / "slides.csv").open() as file:
        assert [(row["slide_id"], row["status"], row["reason"]) for row in csv.DictReader(file)] == [
            ("s1", "ok", ""), ("s2", "failed", why), ("s3", "ok", ""),
        ]  # fmt: skip
    with pytest.raises(TooManyBadSlides, match="1 of 3 slides cannot be used"):
        run(predicted, tiling={"max_bad_fraction": 0.1})


def test_a_slide_that_was_replaced_is_not_laid_under_old_scores(predicted: Predicted) -> None:
    run(predicted)
    path = Path(predicted.slides["s3"].path)
    path.write_bytes(Path(predicted.slides["s1"].path).read_bytes())
    answer, job = run(predicted)
    assert answer["slides"] == {"ok": 2, "failed": 1}
    assert "file, resolution or tissue is another one than was predicted" in job.outcomes.dropped["s3"][1]
    assert "s3.tif" not in job.outcomes.dropped["s3"][1]


def test_scores_of_another_grid_are_refused(predicted: Predicted) -> None:
    commit(predicted, "s1", table=predicted.table("s1").slice(1))
    answer, job = run(predicted)
    assert answer["slides"] == {"ok": 2, "failed": 1}
    assert job.outcomes.dropped["s1"][1].startswith("its predictions are of other patches than its tiling has")


def test_what_is_asked_for_and_not_there_is_said(predicted: Predicted) -> None:
    with pytest.raises(ConfigError, match=r"export.slides: s9: not in the manifest, which has 3 slides"):
        run(predicted, slides=["s1", "s9"])
    with pytest.raises(ConfigError, match=r"prediction.run = 'q': there is no .*/q; those of the bundle: p"):
        run(predicted, prediction={"run": "q"})
    with pytest.raises(ConfigError, match=r"export.target = 'normal': expected a class of the bundle a-run .*: tumour"):
        run(predicted, target="normal")
    predicted.store.delete(f"predictions/{RUN}/records/s2.json")
    with pytest.raises(ConfigError, match=r"export.slides: s2: not among the predictions p; run predict on them first"):
        run(predicted, slides=["s2"])
    answer, _ = run(predicted)
    assert answer["slides"] == {"ok": 2}
    predicted.store.write("predictions/q/question.json", predicted.store.read(f"predictions/{RUN}/question.json"))
    with pytest.raises(ConfigError, match=r"prediction.run: the store has several predictions .* one of p, q"):
        run(predicted)
    with pytest.raises(ConfigError, match=r"prediction.run = 'q': none of its slides is in the manifest"):
        run(predicted, prediction={"run": "q"})


def test_a_folder_elsewhere_takes_the_files(predicted: Predicted, tmp_path: Path) -> None:
    answer, _ = run(predicted, out=str(tmp_path / "qupath"))
    assert answer["export"] == str(tmp_path / "qupath" / RUN)
    assert {name.partition("/")[0] for name in files(answer["export"])} == {"csv", "geojson", "slides.csv"}
    assert not predicted.store.exists(f"predictions/{RUN}/export")


def test_no_two_slides_have_a_file_of_one_name() -> None:
    names = [f"{slide}_{ending}" for slide in ("x", "x_topk", "x_scores", "x_topk-probability")
             for endings in _ENDINGS.values() for ending in endings]  # fmt: skip
    assert len(set(names)) == len(names)


def test_regions_of_several_classes_and_of_one(tmp_path: Path) -> None:
    predicted = make_predicted(tmp_path, num_classes=4)

    def classes(answer) -> set[str]:
        data = json.loads((Path(answer["export"]) / "geojson/s1_regions.geojson").read_text())
        return {feature["properties"]["classification"]["name"] for feature in data["features"]}

    assert classes(run(predicted)[0]) == {"tumour", "margin", "fat"}
    assert classes(run(predicted, target="margin", threshold=0.3)[0]) == {"margin"}
