"""Equal reasons are one line with the setting that fits: every slide of a group is used under the value it names."""

import pickle
import re

import numpy as np
import pytest

from distmil.errors import NoTissue, Reason, TooCoarse, TooSmall
from distmil.reasons import Dropped, as_lines, causes_of, grouped
from distmil.slides.checks import no_resolution, no_tissue
from distmil.slides.grid import lay_grid, plan_read, rounded
from tests.support.scale import cases


def dropped(slide_id, error):
    return Dropped(slide_id, error.status, str(error), error.reason)


def too_coarse(mpp, *, wanted, tolerance=0.0):
    """Return the error of a slide of one level, None where it can be used."""
    try:
        plan_read([1.0], slide_mpp=mpp, mpp=wanted, tolerance=tolerance, patch_px=224, stride_px=224)
    except TooCoarse as error:
        return error
    return None


def test_texts_that_differ_in_numbers_or_the_slides_id_are_one_with_their_range():
    texts = [
        ("s1", "pen ink on 3.1% of s1"),
        ("s2", "black"),
        ("s3", "pen ink on 12% of s3"),
        ("s11", "pen ink on 1.5e-05% of s11"),
    ]
    assert grouped(texts) == [("pen ink on 1.5e-05 to 12% of the slide", ["s1", "s3", "s11"]), ("black", ["s2"])]


def test_ids_that_are_numbers_leave_the_numbers_of_a_text_alone():
    texts = [(str(i), f"{i}: {i}.5 % of 7 is black") for i in (3, 20, 7)]
    assert grouped(texts) == [("3.5 to 20.5 % of 7 is black", ["3", "20", "7"])]


def test_one_text_stays_as_it_is():
    assert grouped([("s1", "s1: 4 of 5"), ("s2", "other")]) == [("s1: 4 of 5", ["s1"]), ("other", ["s2"])]


def test_random_texts_are_grouped_as_a_slow_comparison_groups_them():
    rng = np.random.default_rng(0)
    for _ in range(cases(100, full=3000)):
        words, numbers = ["ink", "dark", "blank"], rng.integers(0, 50, size=20) / 4
        texts = [(f"s{i}", f"{words[rng.integers(3)]} on {number:g} px") for i, number in enumerate(numbers)]
        found = dict(grouped(texts))
        for word in words:
            members = [(i, float(text.split()[2])) for i, text in texts if text.startswith(word)]
            if not members:
                continue
            low, high = min(value for _, value in members), max(value for _, value in members)
            span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            assert found[f"{word} on {span} px"] == [i for i, _ in members]


def test_the_named_mpp_fits_every_slide_that_it_is_said_to_fit():
    rng = np.random.default_rng(1)
    for _ in range(cases(100, full=3000)):
        mpps = 0.2 * rng.uniform(1.1, rng.choice([1.2, 30]), size=rng.integers(2, 40))
        (cause,) = causes_of(dropped(f"s{i}", too_coarse(mpp, wanted=0.2)) for i, mpp in enumerate(mpps))
        values = [float(text) for text in re.findall(r"tiling\.mpp=([\d.]+)", cause.text)]
        num_used = [sum(too_coarse(mpp, wanted=value) is None for mpp in mpps) for value in values]
        assert num_used[-1] == len(mpps)
        assert values[-1] <= 1.002 * max(mpps)  # and is hardly coarser than it must be
        if len(values) == 2:
            assert f"which fits {num_used[0]} of them" in cause.text
            assert 0.9 * len(mpps) <= num_used[0] < len(mpps)


def test_the_named_min_tissue_fits_every_slide():
    rng = np.random.default_rng(2)
    for _ in range(cases(100, full=3000)):
        shares = rng.uniform(0.001, 0.09, size=rng.integers(2, 40)).astype(np.float32)
        (cause,) = causes_of(
            dropped(f"s{i}", no_tissue(float(share), min_tissue=0.1)) for i, share in enumerate(shares)
        )
        value = float(re.findall(r"tiling\.min_tissue=([\d.]+)", cause.text)[-1])
        assert (shares >= value).all()


@pytest.mark.parametrize("up", [True, False])
def test_rounding_never_passes_the_value_and_needs_four_digits(up):
    for value in np.random.default_rng(3).uniform(1e-5, 500, size=cases(200, full=5000)):
        found = rounded(value, up=up)
        assert (found >= value * (1 - 1e-8)) if up else (found <= value * (1 + 1e-8))
        assert found == pytest.approx(value, rel=1e-3)
        assert float(f"{found:.4g}") == found
    assert rounded(0.972, up=up) == 0.972


def test_seventy_two_slides_are_one_line():
    (cause,) = causes_of(dropped(f"s{i}", too_coarse(0.972, wanted=0.5, tolerance=0.02)) for i in range(72))
    assert (cause.title, cause.text) == ("72 x too_coarse", "finest 0.972 um/px; set tiling.mpp=0.972")
    assert as_lines([cause], most=5) == (
        "  72 x too_coarse (s0, s1, s2, s3, s4, ...): finest 0.972 um/px; set tiling.mpp=0.972"
    )


def test_a_single_slide_keeps_its_sentence():
    error = too_coarse(0.972, wanted=0.5)
    (cause,) = causes_of([dropped("s1", error)])
    assert cause.text == str(error)
    assert "set tiling.mpp=0.972, or correct the slide's mpp" in cause.text


def test_small_images_are_padded():
    errors = {}
    for name, size in (("a", (16, 40)), ("b", (100, 90))):
        with pytest.raises(TooSmall) as caught:
            lay_grid(size, strategy="crop", extent_px=224, stride=224)
        errors[name] = caught.value
    (cause,) = causes_of(dropped(name, error) for name, error in errors.items())
    assert cause.text == "16 to 100 x 40 to 90 px, less than a patch of 224 px; set tiling.strategy=pad"


def test_a_missing_resolution_is_guessed_from_slides_that_agree():
    slides = [dropped(f"s{i}", no_resolution("", is_plain=False)) for i in range(3)]
    guess, unsure, alone = (causes_of(slides, known_mpp=mpp)[0].text for mpp in ([0.25, 0.252], [0.25, 0.5], []))
    assert "set tiling.default_mpp=0.252, as the other slides have it, if the scanner is the same" in guess
    assert "set tiling.default_mpp to the scanner's um per pixel" in unsure
    assert unsure == alone
    assert causes_of(slides[:1], known_mpp=[0.25])[0].text.startswith("no um-per-pixel in the file; set tiling.default")
    (plain,) = causes_of(dropped(f"s{i}", no_resolution("", is_plain=True)) for i in range(3))
    assert plain.text == "no um-per-pixel in the file; set tiling.mpp=null"


def test_reasons_without_a_setting_and_old_records_group_by_their_text():
    old = [Dropped(f"s{i}", "too_coarse", f"the finest is 0.9{i} um/px, raise tiling.mpp") for i in range(3)]
    new = dropped("t", too_coarse(0.972, wanted=0.5))
    found = causes_of([*old, new, Dropped("u", "unreadable", "cut off")])
    assert [(cause.title, cause.text.partition(",")[0]) for cause in found] == [
        ("3 x too_coarse", "the finest is 0.90 to 0.92 um/px"),
        ("1 x too_coarse", "the file's finest resolution is 0.972 um/px"),
        ("1 x unreadable", "cut off"),
    ]


def test_a_setting_beside_a_text_stands_after_it():
    reason = Reason(key="labels.on_bad_annotation", value="label_only")
    slides = [Dropped(f"s{i}", "bad_annotation", f"s{i}: line {i} is broken", reason) for i in (1, 4)]
    (cause,) = causes_of(slides)
    assert cause.text == "line 1 to 4 is broken; or set labels.on_bad_annotation=label_only"
    (single,) = causes_of(slides[:1])
    assert single.text == "s1: line 1 is broken; or set labels.on_bad_annotation=label_only"


def test_many_causes_stay_few_lines():
    slides = [Dropped(f"s{i}{j}", "failed", "abcdefgh"[i] * 3) for i in range(8) for j in range(i + 1)]
    lines = as_lines(causes_of(slides), most=3).splitlines()
    assert lines == [
        *("  8 x failed (s70, s71, s72, s73, s74, ...): hhh", "  7 x failed (s60, s61, s62, s63, s64, ...): ggg"),
        *("  6 x failed (s50, s51, s52, s53, s54, ...): fff", "  15 for 5 other reasons"),
    ]
    assert as_lines(causes_of([Dropped("a", "failed", "a: gone")]), most=3) == "  1 x failed (a): gone"


def test_a_reason_crosses_processes_and_json():
    error = pickle.loads(pickle.dumps(NoTissue("none", reason=Reason("x", "tiling.mpp", 0.5, "least"))))
    assert (str(error), error.reason) == ("none", Reason("x", "tiling.mpp", 0.5, "least"))
    assert Reason.from_json(error.reason.to_json()) == error.reason
    assert Reason.from_json(None) is None
    assert Reason.from_json({"found": "x", "newer": 1}) is None
