"""What was looked at becomes a refusal where all fail alike, else notes."""

from dataclasses import replace

import numpy as np
import pytest

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.errors import ConfigError, ManifestError
from distmil.preflight.looks import Look
from distmil.preflight.verdict import fitting_mpp, judge_annotations, judge_slides
from distmil.slides.grid import plan_read
from tests.support.scale import cases


def look(name: str, status: str = "ok", error: str | None = None, mpp: float | None = 0.972) -> Look:
    return Look(Slide(name, "/nowhere/x.tif"), status, error, mpp)


def test_all_too_coarse_names_the_setting_that_fits() -> None:
    looks = [look(f"s{i}", "too_coarse", "too coarse") for i in range(20)]
    with pytest.raises(ConfigError) as caught:
        judge_slides(looks, TilingConfig())
    assert str(caught.value) == (
        "all 20 slides that were looked at are too_coarse: their finest resolution is 0.972 um/px, coarser than "
        "tiling.mpp = 0.5; tiling.mpp=0.972 fits them"
    )


def test_an_encoder_of_one_resolution_is_not_answered_with_another_one() -> None:
    with pytest.raises(ConfigError) as caught:
        judge_slides([look(f"s{i}", "too_coarse", "too coarse") for i in range(3)], TilingConfig(), encoder="uni")
    assert str(caught.value).endswith(
        "coarser than tiling.mpp = 0.5; uni takes no other; tiling.mpp=0.972 fits them with an encoder of any "
        "resolution, such as texture+efficientnet_lite0"
    )


@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_the_setting_that_fits_is_one_that_tiling_takes(tolerance: float) -> None:
    generator = np.random.default_rng(5)
    config = TilingConfig(mpp=0.001, mpp_tolerance=tolerance)
    for _ in range(cases(100, full=3000)):
        sizes = [float(mpp) for mpp in 10 ** generator.uniform(-1.5, 1.5, generator.integers(1, 6))]
        text = fitting_mpp([look("s", "too_coarse", mpp=mpp) for mpp in sizes], config)
        assert float(text) <= max(sizes) * 1.01
        for mpp in sizes:
            plan_read([1.0], slide_mpp=mpp, mpp=float(text), tolerance=tolerance, patch_px=224, stride_px=224)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        ("unreadable", ManifestError, "such as s0: odd"),
        ("no_mpp", ConfigError, "tiling.default_mpp"),
        ("no_tissue", ConfigError, "tiling.min_tissue"),
        ("too_small", ConfigError, "tiling.strategy=pad"),
    ],
)
def test_each_reason_has_its_way_out(status: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=f"all 3 slides that were looked at are {status}: ") as caught:
        judge_slides([look(f"s{i}", status, "odd") for i in range(3)], TilingConfig())
    assert said in str(caught.value)


def test_a_remedy_is_not_said_twice() -> None:
    with pytest.raises(ConfigError) as caught:
        judge_slides([look("s", "no_mpp", "no um-per-pixel; set tiling.default_mpp")], TilingConfig())
    assert str(caught.value) == "the slide is no_mpp: s: no um-per-pixel; set tiling.default_mpp"


def test_some_bad_slides_are_notes_by_reason() -> None:
    looks = [look("a"), look("b", "too_coarse"), look("c", "unreadable", "cut off")]
    notes = judge_slides(looks, TilingConfig())
    assert notes == [
        "note: 1 of 3 slides that were looked at will be skipped, too_coarse (b): their finest resolution is 0.972 "
        "um/px, coarser than tiling.mpp = 0.5; tiling.mpp=0.972 fits them",
        "note: 1 of 3 slides that were looked at will be skipped, unreadable (c): cut off",
    ]


def test_plain_images_are_called_images() -> None:
    looks = [look("a"), look("c", "unreadable", "cut off")]
    assert judge_slides(looks, TilingConfig(), noun="image")[0].startswith("note: 1 of 2 images that were looked at")
    with pytest.raises(ConfigError, match=r"^all 2 images that were looked at are too_small"):
        judge_slides([look("a", "too_small", "x"), look("b", "too_small", "x")], TilingConfig(), noun="image")


def test_a_resolution_in_nanometres_is_suspected() -> None:
    looks = [replace(look(name, "too_coarse"), mpp=mpp) for name, mpp in (("a", 972.0), ("b", 250.0))]
    with pytest.raises(ConfigError, match="if the manifest has nm, divide its mpp by 1000"):
        judge_slides(looks, TilingConfig())
    with pytest.raises(ConfigError) as caught:
        judge_slides([replace(found, mpp=0.972) for found in looks], TilingConfig())
    assert "nm" not in str(caught.value)


def test_what_another_try_may_mend_and_what_fails_for_two_reasons_is_not_refused() -> None:
    assert len(judge_slides([look("a", "failed", "killed"), look("b", "failed", "killed")], TilingConfig())) == 1
    assert len(judge_slides([look("a", "too_small", "x"), look("b", "unreadable", "x")], TilingConfig())) == 2
    assert judge_slides([], TilingConfig()) == []


def read(name: str, error: str | None) -> Look:
    return Look(Slide(name, "x", annotation_path="/nowhere/x.xml"), annotation_s=0.1, annotation_error=error)


def test_annotations_that_all_fail_are_refused_and_some_are_noted() -> None:
    bad = [read(f"s{i}", "line 1 is no XML") for i in range(5)]
    with pytest.raises(ManifestError) as caught:
        judge_annotations([*bad, look("not read")])
    assert str(caught.value) == (
        "none of the 5 annotations that were looked at can be used:\n  s0: line 1 is no XML\n  s1: line 1 is no XML\n"
        "  s2: line 1 is no XML\n  and 2 more"
    )
    assert judge_annotations([read("good", None), bad[0]]) == [
        "note: 1 of 2 annotations that were looked at cannot be used:\n  s0: line 1 is no XML"
    ]
    assert judge_annotations([bad[0]])[0].startswith("note: 1 of 1")
    assert judge_annotations([read("good", None)]) == []
