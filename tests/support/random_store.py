"""Random stores, written by the functions that jobs write with, and what is known of each: who uses what.

What uses what is noted while the store is made, and never read back from it.
"""

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distmil.bags.bag import BagEntry
from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.embedder import embeddings_folder
from distmil.encoders.registry import EncoderSpec, stored_spec
from distmil.inference.bundle import bundle_values
from distmil.inference.bundle_place import bundle_folder
from distmil.inference.question import claim_question, make_question
from distmil.inference.tables import predictions_folder
from distmil.labels.slide_outlines import outlines_folder
from distmil.labels.tables import labels_folder
from distmil.storage.records import Record
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import patches_folder
from distmil.training.run_files import checkpoint_folder

HOUR_S = 3600.0
NOW_S = 1_700_000_000.0
CLASSES = ["normal", "tumour"]


@dataclass
class RandomStore:
    """A store in the making."""

    store: Store
    rng: random.Random
    users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Names of the results that use an item, by item."""
    base: dict[str, str] = field(default_factory=dict)
    """The patches that a folder of a stage belongs to."""
    busy: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    """Files that are not distmil's."""
    temporary: list[str] = field(default_factory=list)
    """Files of killed writers."""
    ray: set[str] = field(default_factory=set)
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    """By item and slide."""

    @property
    def root(self) -> Path:
        return Path(self.store.root)

    def files(self) -> dict[str, bytes]:
        """Read every file, by name."""
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}

    def unused(self) -> set[str]:
        """Name what nothing uses and no job may be at work on."""
        at_work = {self.base[name] for name in self.busy if name in self.base}
        if any(name.startswith("encoders/") for name in self.busy):
            at_work |= set(self.base.values())
        kept = {name for name, base in self.base.items() if base in at_work} | self.busy
        encoders = {name for name in self.users if name.startswith("encoders/")}
        kept |= encoders if at_work else set()
        return {name for name in {*self.base, *encoders, *self.ray} if not self.users[name]} - kept

    def make(self) -> "RandomStore":
        """Make tiled, embedded and labelled slides, runs, bundles, predictions, and litter."""
        for patch_px in self.rng.sample([64, 96, 128, 224], self.rng.randint(1, 3)):
            self._setting(patch_px)
        self._litter()
        self._age()
        return self

    def _setting(self, patch_px: int) -> None:
        """Make what comes from one tiling."""
        rng = self.rng
        config = build_config({"tiling": {"patch_px": patch_px}, "cohort": {"classes": CLASSES}})
        slides = [f"s{i}" for i in range(rng.randint(1, 3))]
        patches = patches_folder(config.tiling)
        for slide in slides:
            self.commit(patches, slide, {"source": rng.random()})
        self.base[patches] = patches
        _ = self.users[patches]
        for make in (self._labels, self._outlines):
            if rng.random() < 0.5:
                make(config, slides)
        if rng.random() < 0.4:  # settings that nothing tells
            self.stage(f"embeddings/{rng.randbytes(6).hex()}", patches, slides)
        for i in range(rng.randint(0, 2)):
            spec = self._encoder()
            folder = embeddings_folder(config, spec)
            if folder not in self.base:
                self.stage(folder, patches, slides)
            if rng.random() < 0.7:
                self._run(f"run-{patch_px}-{i}", config, spec, slides)

    def _encoder(self) -> EncoderSpec:
        if self.rng.random() < 0.5:
            return stored_spec("texture", "v1")
        spec = stored_spec("resnet18", self.rng.randbytes(32).hex())
        assert spec.weights_file is not None
        self.store.write(spec.weights_file, self.rng.randbytes(40))
        _ = self.users[spec.weights_file]
        return spec

    def _labels(self, config: Config, slides: Sequence[str]) -> None:
        self.stage(labels_folder(config), patches_folder(config.tiling), slides)

    def _outlines(self, config: Config, slides: Sequence[str]) -> None:
        self.stage(outlines_folder(config), patches_folder(config.tiling), slides)

    def stage(self, folder: str, patches: str, slides: Sequence[str]) -> None:
        """Make a folder of a later stage."""
        for slide in slides:
            self.commit(folder, slide, {"patches": self.records[patches, slide].digest})
        self.base[folder] = patches
        _ = self.users[folder]

    def commit(self, folder: str, slide: str, key: dict[str, Any]) -> None:
        """Commit a slide of a stage."""
        rng, is_flat = self.rng, folder.startswith(("labels/", "outlines/"))
        inner, file = (folder, f"{slide}.json") if is_flat else (f"{folder}/{slide}", "commit.json")
        names = [f"{slide}.bin"] if is_flat else [f"part-{i:05d}.bin" for i in range(rng.randint(1, 2))]
        parts = [self.store.write_part(inner, name, rng.randbytes(rng.randint(1, 300)), rows=1) for name in names]
        self.records[folder, slide] = Committed(self.store, inner, slide, file).commit(key, parts=parts)

    def _run(self, run: str, config: Config, spec: EncoderSpec, slides: Sequence[str]) -> None:
        """Start a run, perhaps finish it, and perhaps predict with its bundle."""
        rng, store, name = self.rng, self.store, checkpoint_folder(run)
        labels, embeddings = labels_folder(config), embeddings_folder(config, spec)
        if labels not in self.base:
            self._labels(config, slides)
        settings = {
            **{f"labels.{key}": v for key, v in config.labels.model_dump().items() if key != "timeout_s"},
            "encoder": spec.identity(), "encoder.views": 0, "tiling": config.tiling.identity(),
            "cohort.classes": CLASSES,
        }  # fmt: skip
        entries = [
            BagEntry(slide, 0, "train", False, f"{embeddings}/{slide}", self.records[embeddings, slide].parts,
                     f"{labels}/{slide}.bin", labels_part=self.records[labels, slide].parts[0]).to_json()
            for slide in slides
        ]  # fmt: skip
        store.write_checked(f"{name}/run.json", {"settings": settings, "data": "a hash"}, owner=run)
        store.write_checked(f"{name}/cohort.json", entries, owner=run)
        weights = store.write_part(name, "epoch-00001-aa.safetensors", rng.randbytes(100), rows=1)
        store.write_record(f"{name}/latest.json", Record(run, {"epoch": 1}, parts=[weights]))
        _ = self.users[name]
        shared = [patches_folder(config.tiling), embeddings, *([spec.weights_file] if spec.weights_file else [])]
        self._note(name, [*shared, labels, outlines_folder(config)])
        if rng.random() < 0.5:
            self._bundle(run, config, spec, shared, slides)
            if spec.name == "texture" and rng.random() < 0.3:  # a user removed what a finished run goes on from
                store.delete_folder(name)
                del self.users[name]
                for users in self.users.values():
                    users.discard(name)
        if rng.random() < 0.3:
            store.write(f"ray-train/{run}/.marker", b"")
            self.ray.add(f"ray-train/{run}")
            is_over = bundle_folder(run) in self.users or name not in self.users
            _ = self.users[f"ray-train/{run}"]
            self._note(name, [] if is_over else [f"ray-train/{run}"])

    def _bundle(
        self, run: str, config: Config, spec: EncoderSpec, shared: Sequence[str], slides: Sequence[str]
    ) -> None:
        store, name = self.store, bundle_folder(run)
        carried = build_config({"tiling": config.tiling.model_dump(), "cohort": {"classes": CLASSES},
                                "encoder": {"name": spec.name}})  # fmt: skip
        values = {"format_version": 2, "run": run, "config": bundle_values(carried)}
        files = {"model.safetensors": self.rng.randbytes(50)}
        parts = [store.write_part(name, file, data, rows=1) for file, data in files.items()]
        store.write_json(f"{name}/config.json", values)
        record = Committed(store, name, run).commit({"format_version": 2}, parts=parts)
        _ = self.users[name]
        self._note(name, shared)
        for i in range(self.rng.randint(0, 2)):
            asked, answer = slides[: i + 1], f"{run}-answer-{i}"
            claim_question(store, answer, make_question(record.digest, [Slide(s, f"/x/{s}") for s in asked]))
            folder = predictions_folder(answer)
            for slide in asked:
                scored = [part.sha256 for part in self.records[shared[1], slide].parts]
                part = store.write_part(folder, f"patches/{slide}.parquet", self.rng.randbytes(30), rows=1)
                Committed(store, folder, slide, f"records/{slide}.json").commit({"parts": scored}, parts=[part])
            _ = self.users[folder]
            self._note(folder, [*shared, name])
        if self.rng.random() < 0.3:
            pages = f"comparisons/{run}-answer-0--{run}-answer-1"
            for file in ("comparison.html", "differences.csv"):
                store.write(f"{pages}/{file}", self.rng.randbytes(20))
            _ = self.users[pages]

    def _note(self, user: str, used: Sequence[str]) -> None:
        for name in used:
            if name in self.users:
                self.users[name].add(user)

    def _litter(self) -> None:
        """Leave what killed writers leave, and what is not distmil's."""
        for name in self.rng.sample(sorted(self.base), self.rng.randint(0, min(2, len(self.base)))):
            self.temporary.append(f"{name}/.part-00001.bin.tmp-host-{self.rng.randint(1, 9999)}-0123abcd")
        if (self.root / "encoders").exists() and self.rng.random() < 0.3:
            self.temporary.append("encoders/.resnet50-0123456789abcdef.safetensors.tmp-a-host-77-0123abcd")
        for name in self.temporary:
            (self.root / name).write_bytes(self.rng.randbytes(20))
        offered = ["notes.txt", "mlflow.db", "synthetic/8/manifest.csv", "patches/README", "labels/old copy/x.json",
                   "encoders/mine.pt", "mine/deep/er/file",
                   "patches/my copy/.part.bin.tmp-host-1-0123abcd", "labels/0123456789ab"]  # fmt: skip
        for name in self.rng.sample(offered, self.rng.randint(0, 4)):
            self.store.write(name, b"{}")
            self.others.append(name)

    def _age(self) -> None:
        """Make every file hours old, in the order of its making, but for those that a job may be at work on."""
        for path in (path for path in self.root.rglob("*") if path.is_file()):
            os.utime(path, (NOW_S - 9 * HOUR_S, NOW_S - 9 * HOUR_S))
        stages = sorted(self.base) + sorted(name for name in self.users if name.startswith("encoders/"))
        if self.rng.random() < 0.4:
            self.busy = set(self.rng.sample(stages, 1))
        for name in self.busy:
            path = self.root / name
            newest = path if path.is_file() else next(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
            os.utime(newest, (NOW_S - 60, NOW_S - self.rng.uniform(0, HOUR_S - 1)))
