"""A slide's features of another tool to a grid and embedding shards of the store, under the contracts of its own.

The grid is committed as the slide's patches, without a shard: nothing of the store holds pixels of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.encoders.embedder import embeddings_folder
from distmil.errors import NoResolution, ReplacedSlide, SlideError
from distmil.features.agreement import check_header
from distmil.features.contents import Contents
from distmil.features.finding import FeatureFile
from distmil.features.grid import PlacedFeatures, SlideFacts, as_half, check_resolution, place
from distmil.features.spec import features_spec
from distmil.slides.file_version import source_key
from distmil.slides.reader import open_slide, resolve_mpp
from distmil.storage.records import Part, Record
from distmil.storage.schemas import GRID, embeddings_schema, to_ipc
from distmil.storage.store import Committed, Store
from distmil.tiling.shards import GRID_FILE, patches_folder

FORMAT_VERSION = 1
GRID_BYTES = 28
"""Of a patch's places and tissue in the grid and beside its embedding."""
_ID_BYTES = 4
"""Of the length of an id, in each of the two."""
_STATED = ("encoder", "edge_px", "patch_mpp", "extent_px", "layout")


@dataclass(frozen=True)
class Imported:
    """The records of a slide: of its grid, and of its embeddings."""

    patches: Record
    embeddings: Record
    is_touched: bool = False
    """The files have another time or size, and the content that was imported."""


@dataclass(frozen=True)
class Planned:
    """What an import would make of a slide."""

    layout: str
    num_patches: int
    num_bytes: int
    """That are still to be written."""
    mpp: float | None
    """Um per level-0 pixel of the slide."""
    doubts: tuple[str, ...]
    is_done: bool


@dataclass(frozen=True)
class SlideImporter:
    """Imports the features of one slide."""

    slide: Slide
    file: FeatureFile
    config: Config
    """Settled: the encoder, the width and the resolution are those of the cohort or the bundle."""
    store: Store

    @property
    def patches(self) -> Committed:
        """Return where the grid and its record are."""
        return Committed(self.store, f"{patches_folder(self.config.tiling)}/{self.slide.slide_id}", self.slide.slide_id)

    @property
    def embeddings(self) -> Committed:
        """Return where the embeddings and their record are."""
        folder = embeddings_folder(self.config, features_spec(self.config.features))
        return Committed(self.store, f"{folder}/{self.slide.slide_id}", self.slide.slide_id)

    def key(self) -> dict[str, Any]:
        """Name everything but the files' content that the records depend on."""
        given = self.config.features
        return {
            "stated": {name: getattr(given, name) for name in _STATED},
            "mpp": self.slide.mpp,
            "default_mpp": self.config.tiling.default_mpp,
            "slide": _version(self.slide),
            "format_version": FORMAT_VERSION,
        }

    def finished(self) -> Imported | None:
        """Return the records if they are of these files as they are now: by size and time, else by content."""
        found = self.find()
        if found is not None and found.is_touched:
            self.store.write_record(self.embeddings.record_name, found.embeddings)
        return found

    def find(self) -> Imported | None:
        """Find the records as ``finished`` does, and write nothing."""
        made, grid = self.embeddings.read(), self.patches.read()
        if made is None or grid is None or made.key.get("patches") != grid.digest or not made.ok:
            return None
        if not made.key.get("import") == grid.key.get("import") == self.key():
            return None
        try:
            version = self.file.version()
            if made.key["source"] == {**version, "sha256": made.key["source"].get("sha256")}:
                return Imported(grid, made)
            if made.key["source"]["sha256"] != self.file.sha256():
                return None
        except (OSError, KeyError):
            return None
        made = replace(made, key={**made.key, "source": {**made.key["source"], **version}})  # copied, or touched
        return Imported(grid, made, is_touched=True)

    def plan(self) -> Planned:
        """Say what ``make`` would do. It checks all but the values of the features, and writes nothing.

        Raises:
            SlideError: If they cannot be used.
            OSError: If the file is gone.
        """
        if (found := self.find()) is not None:
            info, rows = found.embeddings.info, found.embeddings.rows
            return Planned(info["layout"], rows, 0, info["mpp"], tuple(found.patches.info["doubts"]), is_done=True)
        facts = read_facts(self.slide, self.config)
        with self.file.opened(self.config.features) as contents:
            placed, header = self._placed(contents, facts), contents.header
        num_bytes = len(placed.x_N) * (2 * header.dimension + GRID_BYTES + 2 * (_ID_BYTES + len(self.slide.slide_id)))
        return Planned(header.layout, len(placed.x_N), num_bytes, placed.mpp, facts.doubts, is_done=False)

    def make(self) -> Imported:
        """Check the features, and commit the grid and the embeddings.

        Raises:
            SlideError: If they cannot be used.
            OSError: If the file is gone.
        """
        source = self._source()
        facts = read_facts(self.slide, self.config)
        with self.file.opened(self.config.features) as contents:
            placed = self._placed(contents, facts)
            patches = self._commit_grid(contents, placed, facts)
            parts = self._write_shards(contents, placed)
        if self.file.version() != {name: source[name] for name in ("size_bytes", "mtime_ns")}:
            raise ReplacedSlide("the file of features was replaced while it was read; run the job again")
        key = {"patches": patches.digest, "import": self.key(), "source": source}
        info = {name: patches.info[name] for name in ("width_px", "height_px", "mpp", "extent_px", "layout")}
        record = self.embeddings.commit(key, parts=parts, info=info)
        self.store.keep_only(self.embeddings.folder, {self.embeddings.file, *(part.name for part in parts)})
        return Imported(patches, record)

    def _placed(self, contents: Contents, facts: SlideFacts) -> PlacedFeatures:
        """Place the features on their slide. Raises: SlideError if they contradict the slide or the cohort."""
        check_header(contents.header, self.config)
        placed = place(contents, facts, self.config.features)
        check_resolution(placed, self.config.tiling.mpp)
        return placed

    def _source(self) -> dict[str, Any]:
        return {**self.file.version(), "sha256": self.file.sha256()}

    def _commit_grid(self, contents: Contents, placed: PlacedFeatures, facts: SlideFacts) -> Record:
        """Commit the grid, unless it is there: features of several encoders may lie on one."""
        count = len(placed.x_N)
        extent_N = np.full(count, placed.extent_px, np.int32)
        columns = [[self.slide.slide_id] * count, placed.x_N, placed.y_N, extent_N, np.ones(count, np.float32)]
        data = to_ipc(pa.table(columns, schema=GRID))
        part = Part.of(GRID_FILE, data, rows=count)
        info = {
            "width_px": placed.size[0],
            "height_px": placed.size[1],
            "mpp": placed.mpp,
            "bounds": facts.bounds and list(facts.bounds),
            "extent_px": placed.extent_px,
            "reader": "features",
            "layout": contents.header.layout,
            "grid": vars(part),
            "doubts": list(facts.doubts),
        }
        key, committed = {"import": self.key()}, self.patches
        found = committed.finished(key)
        if found is not None and found.info == info and committed.is_whole(found):
            return found
        self.store.write_part(committed.folder, GRID_FILE, data, rows=count)
        record = committed.commit(key, parts=[part], info=info)
        self.store.keep_only(committed.folder, {committed.file, GRID_FILE})
        return record

    def _write_shards(self, contents: Contents, placed: PlacedFeatures) -> list[Part]:
        """Write the embeddings in shards, in the file's order. Raises: UnreadableSlide if some are not finite."""
        count, size = contents.header.num_patches, self.config.tiling.chunk_patches
        schema = embeddings_schema(contents.header.dimension)
        parts = []
        for number in range(math.ceil(count / size)):
            rows = slice(number * size, min(count, (number + 1) * size))
            half_NE = as_half(contents.embedding_NE[rows], first=rows.start)
            data = to_ipc(pa.table(self._columns(placed, rows, half_NE), schema=schema))
            name = f"part-{number:05d}.arrow"
            parts.append(self.store.write_part(self.embeddings.folder, name, data, rows=len(half_NE)))
        return parts

    def _columns(self, placed: PlacedFeatures, rows: slice, half_NE: NDArray[np.float16]) -> list[Any]:
        count = len(half_NE)
        matrix = pa.FixedSizeListArray.from_arrays(pa.array(half_NE.ravel(), pa.float16()), half_NE.shape[1])
        extent_N = np.full(count, placed.extent_px, np.int32)
        return [pa.array([self.slide.slide_id] * count), placed.x_N[rows], placed.y_N[rows], extent_N, matrix]


def read_facts(slide: Slide, config: Config) -> SlideFacts:
    """Read a slide's size and resolution from its file where there is one, else what the manifest says."""
    mpp = slide.mpp or config.tiling.default_mpp
    if not slide.path:
        return SlideFacts(mpp=mpp)
    try:
        with open_slide(Path(slide.path), reader=config.tiling.reader) as image:
            try:
                found: float | None = resolve_mpp(image, given=slide.mpp, default=config.tiling.default_mpp)
            except NoResolution:
                found = None
            return SlideFacts(image.size, found, image.bounds)
    except SlideError as error:
        return SlideFacts(mpp=mpp, doubts=(f"its features are not compared with its slide: {error}",))


def _version(slide: Slide) -> Mapping[str, Any] | None:
    """Read the version of the slide's file; None without one."""
    try:
        return dict(source_key(slide.path)) if slide.path else None
    except OSError:
        return None
