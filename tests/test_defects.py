"""Which exceptions are defects, and what is said of them."""

import errno

import pytest
import torch

from distmil.defects import DEFECT, attempt, describe, is_defect, without_paths
from distmil.errors import AnnotationError, DamagedStore, EncoderError, StorageError
from distmil.slides.grid import plan_read


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a"), True),
        (KeyError("a"), True),
        (AssertionError(), True),
        (RuntimeError("a"), True),
        (RecursionError("a"), True),
        (OSError(errno.EIO, "a"), False),
        (TimeoutError("a"), False),
        (MemoryError(), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (AnnotationError("a"), False),
        (EncoderError("a"), False),
    ],
)
def test_what_disks_memory_and_files_do_is_no_defect(error, expected):
    assert is_defect(error) is expected


def raised(work):
    try:
        work()
    except Exception as error:  # noqa: BLE001  # any will do
        return error
    raise AssertionError("nothing was raised")


def test_a_defect_is_named_with_its_last_place_inside_the_package():
    error = raised(lambda: plan_read((), slide_mpp=1, mpp=1, tolerance=0, patch_px=8, stride_px=8))
    text = describe(error)
    assert text.startswith("ValueError: min() ")
    assert "(slides/grid.py:" in text
    assert text.endswith(" in plan_read)")
    assert describe(ValueError("never raised")) == "ValueError: never raised"
    assert len(describe(ValueError("x" * 10_000))) < 500


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open '/data/Doe, Jane/a.svs'", "cannot open a file"),
        ("cannot open /mnt/x/J_Doe.svs: no", "cannot open the file: no"),
        ("J_Doe.svs is cut off", "the file is cut off"),
        ("s3://bucket/cohort/b.svs is gone", "a file is gone"),
        ("ratio 3/4 of a / b, 12 um/px", "ratio 3/4 of a / b, 12 um/px"),
    ],
)
def test_names_and_folders_are_taken_out(text, expected):
    assert without_paths(text, hidden=("/mnt/x/J_Doe.svs", None)) == expected


def test_a_folder_of_a_short_name_leaves_numbers_as_they_are():
    assert without_paths("/data/1/12: 1 of 12 px", hidden=("/data/1/12",)) == "the file: 1 of 12 px"
    assert without_paths("scan1 of scan12", hidden=("/data/scan1",)) == "the file of scan12"


def test_work_that_ends_well_is_handed_through():
    assert attempt(lambda: 5, slide_id="s1") == 5


def test_a_store_that_fails_concerns_all_slides():
    def work():
        raise DamagedStore("gone")

    with pytest.raises(StorageError, match="gone"):
        attempt(work, slide_id="s1")


def test_a_slide_that_cannot_be_used_keeps_its_status_and_a_defect_is_marked():
    def refuse():
        raise AnnotationError("/data/x/a.xml holds nothing")

    refused = attempt(refuse, slide_id="s1", hidden=("/data/x/a.xml",))
    assert (refused.name, refused.status, refused.error) == ("s1", "bad_annotation", "the file holds nothing")
    assert DEFECT not in refused.info
    broken = attempt(lambda: 1 / 0, slide_id="s2")
    assert broken.status == "failed"
    assert broken.info[DEFECT] == broken.error
    assert broken.error.startswith("ZeroDivisionError: division by zero (defects.py:")
