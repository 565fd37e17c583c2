"""A manifest that nothing can be learned from is refused before anything is tiled."""

from dataclasses import replace

import pytest

from distmil.cohort import Cohort, Slide
from distmil.errors import ManifestError
from distmil.preflight.supervision import check_evidence, check_supervision

CLASSES = ["negative", "positive"]


def cohort(*rows: tuple[int | None, str]) -> Cohort:
    return Cohort([Slide(f"s{i}", "x", label, split=split) for i, (label, split) in enumerate(rows)], CLASSES)


def test_one_class_in_train_is_refused_with_the_counts() -> None:
    found = cohort((1, "train"), (1, "train"), (0, "val"), (0, "test"))
    with pytest.raises(ManifestError) as caught:
        check_supervision(found, "train")
    assert str(caught.value) == (
        "training needs train slides of at least two classes; the manifest has 2 positive in train (1 in test, 1 in "
        "val); add slides of negative, or correct the columns label and split"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("rows", [[], [(None, "train")], [(0, "train")], [(0, "train"), (None, "train")]])
def test_one_slide_or_none_is_refused(rows: list[tuple[int | None, str]]) -> None:
    with pytest.raises(ManifestError, match="at least two classes"):
        check_supervision(cohort(*rows), "tune")


def test_training_without_val_is_noted() -> None:
    found = cohort((1, "train"), (0, "train"), (1, "test"), (None, "val"))
    assert "no slide with a label is in val" in check_supervision(found, "train")[0]
    assert check_supervision(found, "tune", folds=5) == []
    assert check_supervision(found, "train", folds=5) == []
    with pytest.raises(ManifestError, match=r"search.folds = 0: no image with a label is in val .*set search.folds=5"):
        check_supervision(replace(found, slides=[replace(s, path="a.png") for s in found.slides]), "tune")
    check_supervision(cohort((1, "train"), (0, "train"), (1, "val")), "tune")
    assert check_supervision(cohort((1, "train"), (0, "train"), (1, "val")), "train") == []


def test_regions_need_val_slides_of_both_kinds() -> None:
    train = ((1, "train"), (0, "train"))
    check_evidence(cohort(*train, (1, "val"), (0, "val")))
    check_evidence(cohort(*train), folds=5)
    with pytest.raises(ManifestError, match="fitted on train, which has only slides of one kind"):
        check_evidence(cohort((1, "train"), (0, "val")), folds=5)
    with pytest.raises(ManifestError, match="fitted on val, which has only slides of one kind"):
        check_evidence(cohort(*train, (1, "val"), (None, "val")))
    with pytest.raises(ManifestError, match="which has no slide with a label"):
        check_evidence(cohort(*train, (0, "test")))
