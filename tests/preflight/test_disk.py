"""What a job will write is compared with what is free."""

import pytest

from distmil.errors import ConfigError
from distmil.preflight.disk import check_disk, free_bytes, in_bytes


def test_what_surely_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        check_disk({"patches": 80e9, "embeddings": 40e9, "labels": 0}, int(30.1e9), "/data/distmil")
    assert str(caught.value).startswith(
        "storage.root: about 120 GB will be written (patches 80 GB, embeddings 40 GB), 30 GB are free in "
        "/data/distmil; free some space"
    )


@pytest.mark.parametrize(("free", "notes"), [(61e9, 1), (149e9, 1), (151e9, 0), (None, 0)])
def test_a_tight_disk_is_noted(free: float | None, notes: int) -> None:
    found = check_disk({"patches": 120e9}, None if free is None else int(free), "/data")
    assert len(found) == notes
    assert all(note.endswith("which is tight") for note in found)


def test_free_space_of_a_root_that_is_not_made_yet(tmp_path) -> None:
    assert (free_bytes(str(tmp_path / "a" / "b")) or 0) > 0
    assert free_bytes("s3://bucket/prefix") is None


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 B"), (12, "12 B"), (9_960, "10.0 kB"), (12_345, "12 kB"), (999_600, "1.0 MB"), (1.2e11, "120 GB"),
     (3.4e12, "3.4 TB"), (4e15, "4000 TB")],
)  # fmt: skip
def test_bytes_in_words(amount: float, text: str) -> None:
    assert in_bytes(amount) == text
