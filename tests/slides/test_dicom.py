"""The series of a DICOM file is found by its header, however that is written, and in no other file."""

import numpy as np
import pytest

from distmil.slides.dicom import series_uid
from tests.support.dicom import BIG, EXPLICIT, IMPLICIT, save_dicom
from tests.support.scale import cases


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_the_series_of_a_file_is_its_own_and_not_a_sequences(tmp_path, syntax):
    for seed in range(cases(100, full=2000)):
        series = None if seed % 7 == 0 else f"1.2.{seed}.4"
        path = save_dicom(tmp_path / f"{seed}.dcm", series, syntax=syntax, seed=seed)
        assert series_uid(path, path.stat().st_size, 0) == series, seed


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_damaged_headers_end(tmp_path, syntax):
    whole = save_dicom(tmp_path / "a.dcm", "1.2.3", syntax=syntax, seed=3).read_bytes()
    rng = np.random.default_rng(4)
    for i in range(cases(200, full=5000)):
        data = bytearray(whole[: rng.integers(len(whole) + 1)])
        for at in rng.integers(0, max(1, len(data)), 5):
            data[at : at + 1] = rng.bytes(1)
        path = tmp_path / f"{i}.dcm"
        path.write_bytes(data)
        found = series_uid(path, len(data), i)
        assert found is None or len(found) <= len(data)


@pytest.mark.parametrize("data", [b"", b"DICM", b"\0" * 131, b"\0" * 128 + b"DICM", b"\0" * 127 + b"DICM1"])
def test_other_files_have_no_series(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert series_uid(tmp_path / "a", len(data), 0) is None
