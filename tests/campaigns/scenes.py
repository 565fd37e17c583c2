"""Slides to tile under attack, what an unbroken run makes of them, and the verdict on what a broken one left.

A root is good when every file that its record names has the committed checksum and its record is the unbroken run's; it
is whole when it holds the unbroken run's files byte for byte. Temporary files of killed writers do not count.
"""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.tiling.shards import read_grid, read_patches
from distmil.tiling.tiler import PLAN_FILE, SlideTiler
from distmil.tiling.verification import find_damage
from tests.campaigns.forking import ask
from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

SIZE, LARGER = (700, 420), (900, 500)
CHUNK_PATCHES = 16


@dataclass(frozen=True)
class Scene:
    """One slide to tile."""

    name: str
    slide: Slide
    config: TilingConfig
    unbroken: Path
    """Root that a run without a break filled."""
    start: Path | None = None
    """What the root holds before the run; None: nothing."""
    is_repair: bool = False
    """The run checks what is committed first and makes anew what is damaged, as tiling.verify=repair does."""

    def tiler(self, root: Path) -> SlideTiler:
        """Return what tiles the slide into a root."""
        return SlideTiler(self.slide, self.config, Store(str(root)))

    def run(self, root: Path) -> Record:
        """Tile the slide by the plain loop."""
        store = Store(str(root))
        if self.is_repair and find_damage(self.slide, self.config, store):
            store.delete(self.tiler(root).committed.record_name)
        return tile_slide(self.slide, self.config, store)

    def run_for_status(self, root: Path) -> str:
        """Tile the slide and return its status, for a fork."""
        return self.run(root).status

    def set_up(self, root: Path) -> None:
        """Make a root as the run finds it."""
        if self.start is None:
            root.mkdir(parents=True)
        else:
            shutil.copytree(self.start, root)

    def is_untouched(self, root: Path) -> bool:
        """Return whether the root holds just what it started with."""
        return self.start is not None and contents(root) == contents(self.start)


def make_scenes(folder: Path) -> list[Scene]:
    """Make slides of all three kinds of patches, a damaged root to repair, and a slide that replaced another."""
    slides = folder / "slides"
    slides.mkdir(parents=True)
    ask(_draw, slides)
    jpeg, lossless, swapped = (str(slides / name) for name in ("jpeg.tif", "lossless.tif", "swapped.tif"))
    reused = _scene(folder, "reused", jpeg, encode="reuse")
    scenes = [
        reused,
        _scene(folder, "re-encoded", jpeg, encode="jpeg", patch_px=48, checksum="fast"),
        _scene(folder, "png", lossless, encode="png", checksum="full"),
    ]
    damaged = folder / "start-repaired"
    shutil.copytree(reused.unbroken, damaged)
    flip_bit(next(damaged.rglob("part-00001.parquet")), bit=4000)
    scenes.append(Scene("repaired", reused.slide, reused.config, reused.unbroken, damaged, is_repair=True))
    before = _scene(folder, "before", swapped, encode="reuse").unbroken
    ask(_draw_swapped, Path(swapped), SIZE)
    replaced = _scene(folder, "replaced", swapped, encode="reuse", slide_id="before")
    scenes.append(Scene("replaced", replaced.slide, replaced.config, replaced.unbroken, before))
    warm = folder / "warm"
    reused.run(warm)  # what is imported late is there in every fork from now on
    shutil.rmtree(warm)
    return scenes


def _draw(folder: Path) -> None:
    pixels = tissue_image(SIZE, seed=4, box=(90, 60, 610, 390))
    save_jpeg_tiff(folder / "jpeg.tif", pixels, has_tables=True)
    save_pyramid(folder / "lossless.tif", pixels)
    _draw_swapped(folder / "swapped.tif", LARGER)


def _draw_swapped(path: Path, size: tuple[int, int]) -> None:
    save_jpeg_tiff(path, tissue_image(size, seed=size[0]))


def _scene(folder: Path, name: str, path: str, *, slide_id: str = "", **values: Any) -> Scene:
    settings = {"strategy": "crop", "patch_px": 64, "mpp": None, "chunk_patches": CHUNK_PATCHES}
    scene = Scene(name, Slide(slide_id or name, path), TilingConfig(**settings | values), folder / f"unbroken-{name}")
    wrong = ask(_fill, scene)
    if wrong:
        raise RuntimeError(f"the unbroken run of {name} is not whole: {wrong}")
    return scene


def _fill(scene: Scene) -> list[str]:
    """Tile without a break and return what is wrong with it."""
    record = scene.run(scene.unbroken)
    wrong = bad_commits(scene, scene.unbroken) if record.ok and len(record.parts) > 1 else [str(record)]
    lost, doubled = (0, 0) if wrong else count_patches(scene, scene.unbroken)
    return wrong + [f"{lost} lost, {doubled} doubled"] * bool(lost or doubled)


def flip_bit(path: Path, *, bit: int) -> None:
    """Flip one bit of a file where it stands."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0] ^ (1 << bit % 8)
        file.seek(bit // 8)
        file.write(bytes([byte]))


# --- the verdict


def contents(root: Path) -> dict[str, bytes]:
    """Return every file under ``patches`` that is no temporary one, by name."""
    folder = root / "patches"
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def num_temporary(root: Path) -> int:
    """Return how many temporary files killed writers left."""
    return sum(1 for _ in (root / "patches").rglob(".*.tmp-*"))


def phase(scene: Scene, root: Path) -> str:
    """Return where a run stands by what is on disk: before, plan, chunks, commit, clean-up or end."""
    tiler = scene.tiler(root)
    names = set(tiler.store.names(tiler.folder))
    is_committed = tiler.store.exists(tiler.committed.record_name)
    if scene.is_untouched(root):
        return "before"
    if PLAN_FILE not in names:
        return "end" if is_committed else "plan"
    if is_committed:
        return "clean-up"
    receipts = sum(name.startswith("part-") and name.endswith(".json") for name in names)
    wanted = Store(str(scene.unbroken)).read_record(tiler.committed.record_name)
    return "commit" if wanted and receipts == len(wanted.parts) else "chunks"


def bad_commits(scene: Scene, root: Path) -> list[str]:
    """Return what is wrong with what is committed, by checksums taken here and by ``find_damage``."""
    tiler = scene.tiler(root)
    committed = root / tiler.committed.record_name
    if not committed.exists() or (scene.is_repair and scene.is_untouched(root)):
        return []
    good = [place / tiler.committed.record_name for place in (scene.unbroken, scene.start) if place]
    found = []
    if good[0].exists() and committed.read_bytes() not in [path.read_bytes() for path in good]:
        found.append(f"{committed} is not the unbroken run's")
    record = tiler.store.read_record(tiler.committed.record_name)
    for part in parts_of(record) if record else ():
        path = root / tiler.folder / part.name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != part.sha256:
            found.append(f"{path} is not what its record says")
    return found + find_damage(scene.slide, scene.config, tiler.store)


def parts_of(record: Record) -> list[Part]:
    """Return every file that a record names: shards, grid, pictures."""
    return [*record.parts, Part(**record.info["grid"]), *(Part(**picture) for picture in record.info["pictures"])]


def count_patches(scene: Scene, root: Path) -> tuple[int, int]:
    """Return how many patches of the grid the committed shards lack, and how many they hold more than once."""
    tiler = scene.tiler(root)
    record = tiler.store.read_record(tiler.committed.record_name)
    if record is None:
        return 1, 0
    tables = [read_patches(tiler.store, f"{tiler.folder}/{part.name}") for part in record.parts]
    places = [place for table in tables for place in zip(*(table[axis].to_pylist() for axis in "xy"), strict=True)]
    grid = read_grid(tiler.store, tiler.folder, Part(**record.info["grid"]))
    wanted = set(zip(grid["x"].to_pylist(), grid["y"].to_pylist(), strict=True))
    return len(wanted - set(places)), len(places) - len(set(places))


def compare(root: Path, unbroken: Path) -> tuple[list[str], list[str]]:
    """Return what is missing or different, and what is there that an unbroken run would have cleared away."""
    found, wanted = contents(root), contents(unbroken)
    wrong = [f"{name} is {'different' if name in found else 'missing'}" for name in wanted]
    wrong = [text for text, name in zip(wrong, wanted, strict=True) if found.get(name) != wanted[name]]
    return wrong, sorted(found.keys() - wanted.keys())


def inspect(scene: Scene, root: Path) -> dict[str, Any]:
    """Return how a break left a root."""
    return {"phase": phase(scene, root), "bad": bad_commits(scene, root)}


def resume(scene: Scene, root: Path) -> dict[str, Any]:
    """Run again without a break and return the verdict on the end."""
    record = scene.run(root)
    wrong, left_over = compare(root, scene.unbroken)
    wrong += bad_commits(scene, root) + [f"status {record.status}: {record.error}"] * (not record.ok)
    lost, doubled = (0, 0) if wrong else count_patches(scene, root)
    return {
        "wrong": wrong, "left_over": left_over, "temporary": num_temporary(root), "lost": lost, "doubled": doubled,
    }  # fmt: skip


def size_on_disk(paths: Iterable[Path], *, page: int = 4096) -> int:
    """Return the bytes that files take in whole pages."""
    return sum(-(-path.stat().st_size // page) * page for path in paths if path.is_file())
