"""Bits that flip in what was committed: each is found, and what is damaged is made anew."""

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distmil.storage.store import Store
from distmil.tiling.verification import find_damage
from tests.campaigns.accounts import Account
from tests.campaigns.forking import ForkFailed, ask
from tests.campaigns.kills import settle
from tests.campaigns.scenes import Scene, contents, flip_bit, parts_of, phase

_FLIPS_A_FORK = 50
_OTHER_FILES = 0.3  # share of the flips that fall into grids, pictures and records, which are small


def flips(account: Account, scenes: Sequence[Scene], folder: Path, *, num: int, rng: np.random.Generator) -> None:
    """Flip random bits in committed files and see whether each is found."""
    scenes = [scene for scene in scenes if scene.start is None]
    roots = [folder / scene.name for scene in scenes]
    for scene, root in zip(scenes, roots, strict=True):
        shutil.copytree(scene.unbroken, root)
    for number, start in enumerate(range(0, num, _FLIPS_A_FORK)):
        scene, root = scenes[number % len(scenes)], roots[number % len(scenes)]
        seed = int(rng.integers(2**62))
        wanted = min(_FLIPS_A_FORK, num - start)
        answer = ask(_flip, scene, root, wanted, seed)
        for kind, times in answer["flipped"].items():
            account.add(f"flips in {kind}", times)
        for text in answer["missed"]:
            account.fail(f"{scene.name}: {text}")
        account.progress(start + wanted, num)
    account.add("not found", len(account.failures))


def _flip(scene: Scene, root: Path, num: int, seed: int) -> dict[str, Any]:
    """Flip bits one after the other, each put back."""
    rng = np.random.default_rng(seed)
    tiler = scene.tiler(root)
    record = tiler.store.read_record(tiler.committed.record_name)
    assert record is not None
    shards = [root / tiler.folder / part.name for part in record.parts]
    others = [root / tiler.folder / part.name for part in parts_of(record)[len(shards) :]]
    others.insert(0, root / tiler.committed.record_name)
    sizes = np.array([path.stat().st_size for path in shards], float)
    whole, flipped, missed = contents(root), {}, []
    for _ in range(num):
        is_other = rng.random() < _OTHER_FILES
        path = others[rng.integers(len(others))] if is_other else shards[rng.choice(len(shards), p=sizes / sizes.sum())]
        bit = int(rng.integers(path.stat().st_size * 8))
        flip_bit(path, bit=bit)
        kind = path.name if is_other else "shards"
        flipped[kind] = flipped.get(kind, 0) + 1
        found = find_damage(scene.slide, scene.config, tiler.store)
        is_same = tiler.store.read_record(tiler.committed.record_name) == record and is_other and path.suffix == ".json"
        if not any(str(path) in text or "commit record" in text for text in found) and not is_same:
            missed.append(f"bit {bit} of {path} was not found: {found}")
        flip_bit(path, bit=bit)
    if contents(root) != whole or find_damage(scene.slide, scene.config, tiler.store):
        missed.append(f"{root} is not whole again")
    return {"flipped": flipped, "missed": missed}


def repairs(account: Account, scenes: Sequence[Scene], folder: Path) -> None:
    """Repair a damaged shard where a kill left the work files of a finished slide."""
    for scene in (scene for scene in scenes if scene.start is None):
        root = folder / f"repair-{scene.name}"
        scene.set_up(root)
        with contextlib.suppress(ForkFailed):
            ask(_run_to_clean_up, scene, root)
        if phase(scene, root) != "clean-up":
            account.fail(f"{scene.name}: a kill in the clean-up left the phase {phase(scene, root)}; see {root}")
            continue
        shard = sorted((root / scene.tiler(root).folder).glob("part-*.parquet"))[1]
        flip_bit(shard, bit=4000)
        account.add("repairs after an unfinished clean-up")
        clue = f"repaired with plan and receipts left; a bit of {shard.name} was flipped"
        settle(account, replace(scene, is_repair=True), root, already=[], clue=clue)


def _run_to_clean_up(scene: Scene, root: Path) -> None:
    Store.keep_only = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    scene.run(root)
