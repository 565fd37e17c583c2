"""Patches are read by their numbers, and the shards at hand stay in memory."""

import numpy as np
import pytest

from distmil.errors import StorageError
from distmil.pretraining import patches as reading
from distmil.pretraining.patches import Patches, shards_of
from distmil.pretraining.views import ViewSettings, two_views
from distmil.storage.store import Store
from tests.support.pretraining import SIZES, images_of, write_slides

SETTINGS = ViewSettings(16, crop_scale=0.4, stain_shift=0.2)
ALL = np.concatenate([images_of(slide, counts) for slide, counts in enumerate(SIZES)])


@pytest.mark.parametrize("threads", [1, 3])
def test_patches_come_in_the_order_asked_for(store: Store, threads: int) -> None:
    patches = Patches(store, shards_of(write_slides(store)), threads)
    order = np.random.default_rng(0).permutation(len(ALL))
    assert np.array_equal(patches.take(order), ALL[order])
    views = patches.views(order[:5], key=(3, 1), settings=SETTINGS)
    for i, number in enumerate(order[:5].tolist()):
        assert np.array_equal(views[:, i], two_views(ALL[number], key=(3, 1, number), settings=SETTINGS))
    assert patches.views(order[:0], key=(3, 1), settings=SETTINGS).shape == (2, 0, 3, 16, 16)


def test_a_shard_is_read_once_while_it_is_in_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KEPT_PATCHES", 30)
    read, patches = [], Patches(store, shards_of(write_slides(store)))

    def noted(*given: object, **more: object) -> object:
        read.append(given[1])
        return real(*given, **more)  # type: ignore[arg-type]

    real = reading.read_patches
    monkeypatch.setattr(reading, "read_patches", noted)
    for number in (0, 10, 3, 12, 5):  # of the first two shards, 23 patches
        patches.take(np.array([number]))
    assert len(read) == 2
    patches.take(np.array([40]))  # one more, so that the one that was used least lately goes
    patches.take(np.array([5]))
    assert len(read) == 3
    patches.take(np.array([12]))
    assert len(read) == 4


def test_a_damaged_shard_is_found(store: Store) -> None:
    entries = write_slides(store)
    name, _ = entries[0].files[1]
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 1
    store.write(name, bytes(data))
    patches = Patches(store, shards_of(entries))
    patches.take(np.arange(9))
    with pytest.raises(StorageError, match="is damaged"):
        patches.take(np.array([9]))
