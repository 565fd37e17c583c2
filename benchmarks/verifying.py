"""What it costs to verify what is read: the seconds that checksums add to `train` and `predict` on `pcam_cohort`.

    python -m benchmarks.verifying [--rounds 15] [--root FOLDER] [--jobs]

Each reading of the stored cohort is timed with verification and without it in turn, in one process that has verified
nothing yet, and the medians are compared. The difference is set against the seconds of training in a loop, and with
--jobs against whole jobs, which start Ray, too.
"""

import argparse
import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch

from benchmarks.inprocess import train_here
from benchmarks.pcambags import cohort_config
from benchmarks.sweeps import run_job
from distmil.bags import bag as bags
from distmil.bags.bag import BagEntry, open_all_bags, open_labels, open_source
from distmil.cohort import read_cohort
from distmil.encoders import embedder
from distmil.encoders.registry import prepare_encoder
from distmil.pipeline.cluster import stop_ray
from distmil.pipeline.job import Job
from distmil.pipeline.prepare import Prepared, prepare
from distmil.storage import local_files
from distmil.storage import store as storage
from distmil.storage.records import Part
from distmil.storage.store import Store
from distmil.tiling import shards
from distmil.tiling.shards import grid_of, patches_folder, read_patches
from tests.support.data import PCAM_COHORT

RUN = "verifying"


@contextlib.contextmanager
def unverified() -> Iterator[None]:
    """Read without comparing checksums, slide ids and values, as before they were compared."""

    def has_size(path: Path, *, sha256: str, size_bytes: int) -> bool:
        return path.stat().st_size == size_bytes

    def read(self: Store, folder: str, part: Part) -> bytes:
        return self.read(f"{folder}/{part.name}")

    with contextlib.ExitStack() as stack:
        for module in (bags, embedder, shards):
            stack.enter_context(mock.patch.object(module, "check_slide"))
        stack.enter_context(mock.patch.object(bags, "find_not_finite", return_value=None))
        stack.enter_context(mock.patch.object(storage, "has_checksum", has_size))
        stack.enter_context(mock.patch.object(Store, "read_part", read))
        yield


def cost(work: Callable[[], object], *, rounds: int) -> tuple[float, float]:
    """Return the median seconds of some work with verification and without it."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * rounds + 2):
        local_files._verified.clear()
        with unverified() if number % 2 else contextlib.nullcontext():
            started = time.perf_counter()
            work()
            if number > 1:
                seconds[number % 2].append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def prepared_cohort(data: Path, store: Store) -> Prepared:
    """Return the cohort's entries, made where the store does not hold them yet."""
    config = cohort_config(data)
    slides = read_cohort(config.cohort, manifest=data / "manifest.csv", needs_labels=True, needs_splits=True).slides
    spec = prepare_encoder(config.encoder, store)
    found = prepare(Job(config, store), slides, spec, with_labels=True, learns=True)
    stop_ray()
    return found


def embed_reads(data: Path, store: Store, found: Prepared) -> None:
    """Read what labelling and embedding read."""
    config = cohort_config(data)
    for record in found.patches.values():
        grid_of(store, config.tiling, record)
        for part in record.parts:
            read_patches(store, f"{patches_folder(config.tiling)}/{record.name}/{part.name}", part=part)


def train_seconds(store: Store, entries: Sequence[BagEntry], data: Path) -> float:
    """Return the seconds of a training with default values in a loop."""
    opened = [bag for bag in open_all_bags(store, entries, num_classes=2, form="class") if bag.split == "train"]
    started = time.perf_counter()
    train_here(opened, cohort_config(data), embedding_dim=opened[0].source.take(slice(0, 1)).shape[1])
    return time.perf_counter() - started


def main() -> None:
    """Print what each reading costs with and without verification."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--root", type=Path, help="where the cohort is kept; a temporary folder by default")
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--jobs", action="store_true", help="run `train` and `predict` too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        root = options.root or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distmil-")))
        _measure(options, root)


def _measure(options: argparse.Namespace, root: Path) -> None:
    store = Store(str(root))
    found = prepared_cohort(options.data, store)
    entries = found.entries
    num_bytes = sum(part.size_bytes for entry in entries for _, part in entry.files)
    patch_bytes = sum(part.size_bytes for record in found.patches.values() for part in record.parts)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; {len(entries)} slides, "
          f"{num_bytes / 1e6:.1f} MB of embeddings, {patch_bytes / 1e6:.1f} MB of patches; "
          f"medians of {options.rounds}")  # fmt: skip
    works: dict[str, Callable[[], object]] = {
        "train: labels in the driver": lambda: [
            open_labels(store, entry, num_classes=2, form="class") for entry in entries
        ],
        "train: bags in a worker": lambda: open_all_bags(store, entries, num_classes=2, form="class"),
        "predict: bags in an actor": lambda: [open_source(store, entry) for entry in entries],
        "embed and label: patches and grids": lambda: embed_reads(options.data, store, found),
    }
    print("| reading | verified, ms | unverified, ms | added, ms |\n|---|---|---|---|")
    added: dict[str, float] = {}
    for name, work in works.items():
        verified, plain = cost(work, rounds=options.rounds)
        added[name.partition(":")[0]] = added.get(name.partition(":")[0], 0.0) + verified - plain
        print(f"| {name} | {1e3 * verified:.1f} | {1e3 * plain:.1f} | {1e3 * (verified - plain):.1f} |", flush=True)
    loop = train_seconds(store, entries, options.data)
    print(f"training in a loop: {loop:.1f} s, of which verifying adds {100 * added['train'] / loop:.2f} %")
    if options.jobs:
        given = [f"cohort.manifest={options.data / 'manifest.csv'}", f"storage.root={root}"]
        tiling = ["tiling.patch_px=96", "tiling.mpp=0.972", "tracking.uri=none", f"training.run={RUN}"]
        for job, more in (("train", tiling), ("predict", [f"prediction.model={RUN}", "prediction.run=again"])):
            wall, _ = run_job(job, [*given, *more])
            print(f"{job}: {wall:.1f} s, of which verifying adds {100 * added[job] / wall:.2f} %", flush=True)


if __name__ == "__main__":
    main()
