"""A bundle is looked up by the name of its run, or by its folder."""

from pathlib import Path

import pytest

from distmil.errors import BundleError
from distmil.inference.bundle import save_bundle
from distmil.inference.bundle_place import find_bundle, is_run
from distmil.storage.store import Store
from tests.inference.test_bundle import make_bundle


def test_a_folder_with_the_name_of_a_run_hides_the_run_only_where_it_is_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    save_bundle(store, make_bundle())  # of the run run
    there = str(tmp_path / "store" / "models" / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()  # such as the slides of that name
    assert is_run("run", store)
    assert find_bundle("run", store, key="k").root == there
    other = Store(str(tmp_path / "elsewhere"))
    save_bundle(other, make_bundle())
    (tmp_path / "run").rmdir()
    (tmp_path / "elsewhere" / "models" / "run").rename(tmp_path / "run")
    assert not is_run("run", store)
    assert find_bundle("run", store, key="k").root == str(tmp_path / "run")


def test_a_place_that_is_no_run_is_a_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    save_bundle(store, make_bundle())
    for place in ("", "nobody", str(tmp_path / "store" / "models" / "run"), "s3://bucket/models/run"):
        assert not is_run(place, store)
    with pytest.raises(BundleError, match=r"k = 'runn': there is no such folder.*did you mean run"):
        find_bundle("runn", store, key="k")


def test_a_storage_root_is_answered_with_its_runs(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    save_bundle(store, make_bundle())
    with pytest.raises(BundleError, match=r"this is a storage root, not a bundle; .*: the runs there: run$"):
        find_bundle(store.root, store, key="k")
