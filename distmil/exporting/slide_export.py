"""Everything that leaves the prediction of one slide, but for its pictures: names and content of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from pyarrow import csv

from distmil.errors import ConfigError
from distmil.exporting.frame import Frame
from distmil.exporting.geojson import (
    MAX_PLAIN_BYTES,
    PACKED,
    SUFFIX,
    encode_features,
    pack,
    patch_features,
    region_features,
)
from distmil.exporting.maps import choose_downsample, map_of, pyramid, step_of, values_of
from distmil.exporting.regions import Region, find_regions
from distmil.exporting.scores import ScoredPatches
from distmil.exporting.tiff import TILE_PX, encode_colours, encode_values
from distmil.storage.schemas import to_parquet
from distmil.visualization.colours import Colours

Files = dict[str, bytes]
"""Content by name."""


@dataclass(frozen=True)
class SlideExport:
    """The files of one slide."""

    slide_id: str
    patches: ScoredPatches
    frame: Frame
    """What GeoJSON and TIFF show; tables are in level-0 pixels of the whole slide."""
    mpp: float | None
    """Um per level-0 pixel."""
    threshold: float
    """Probability from which a patch is abnormal."""
    names: Sequence[str] = ("attention", "probability", "fused", "agreement")
    """The scores that are written."""
    min_area_mm2: float = 0.0
    colours: Colours = "jet"
    downsample: int | None = None
    """Level-0 pixels per pixel of a colour map; None: see ``choose_downsample``."""

    @cached_property
    def regions(self) -> list[Region]:
        """Join the abnormal patches; see ``find_regions``."""
        return find_regions(
            self.slide_id, self.patches, self.frame,
            threshold=self.threshold, mpp=self.mpp, min_area_mm2=self.min_area_mm2,
        )  # fmt: skip

    def geojson(self) -> Files:
        """Write the regions, and the patches with their scores, for QuPath; large files packed."""
        files: Files = {}
        for name, data in (("regions", self.regions_geojson()), ("patches", self.patches_geojson())):
            is_large = len(data) > MAX_PLAIN_BYTES
            files[f"{self.slide_id}_{name}{PACKED if is_large else SUFFIX}"] = pack(data) if is_large else data
        return files

    def regions_geojson(self) -> bytes:
        """Write the regions as annotations."""
        return encode_features(
            region_features(self.regions, self.frame, names=self.names, classes=self.patches.classes)
        )

    def patches_geojson(self) -> bytes:
        """Write the patches as tiles."""
        return encode_features(
            patch_features(self.slide_id, self.patches, self.frame, names=self.names, threshold=self.threshold)
        )

    def tiff(self) -> Files:
        """Write a colour map of each score as a pyramid."""
        return {f"{self.slide_id}_{file_word(name)}.tif": self.colour_map(name) for name in self.names}

    def colour_map(self, name: str) -> bytes:
        """Write the colour map of a score as a pyramid. Raises: ConfigError for an unknown score."""
        if name not in self.patches.scores:
            raise ConfigError(f"name = {name!r}: expected {', '.join(self.patches.scores)}")
        downsample = self.downsample or choose_downsample(self.frame)
        levels = pyramid(map_of(self.patches, name, self.frame, downsample=downsample), tile_px=TILE_PX)
        frame = self.frame
        return encode_colours(
            levels,
            um_per_px=self.mpp and self.mpp * downsample,
            colours=self.colours,
            description=f"{name} by distmil, colours {self.colours} from 0 to 1, downsample {downsample}, "
            f"of level-0 px ({frame.x}, {frame.y}) + {frame.width} x {frame.height}",
        )

    def ome(self) -> Files:
        """Write the scores as they are, a pixel a patch and a channel a score."""
        step = step_of(self.patches)
        maps = {name: values_of(self.patches, name, self.frame, step=step) for name in self.names}
        return {f"{self.slide_id}_scores.ome.tif": encode_values(maps, um_per_px=self.mpp and self.mpp * step)}

    def csv(self) -> Files:
        """Write the tables of patches and regions for people."""
        return {f"{self.slide_id}_{name}.csv": _to_csv(table) for name, table in self._tables.items()}

    def parquet(self) -> Files:
        """Write the tables of patches and regions for programs."""
        return {
            f"{self.slide_id}_{name}.parquet": to_parquet(table).to_pybytes() for name, table in self._tables.items()
        }

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        patches, is_abnormal = self.patches, self.patches.is_abnormal(self.threshold)
        names = [patches.classes[i] if is_in else "" for i, is_in in zip(patches.class_N, is_abnormal, strict=True)]
        table = patches.to_table(self.slide_id, self.names)
        return {"patches": table.append_column("class", pa.array(names)), "regions": self._region_table()}

    def _region_table(self) -> pa.Table:
        """Make a row a region: id, class, box in level-0 pixels of the slide, area, patches, scores."""
        texts, whole, number = pa.string(), pa.int64(), pa.float64()
        fields = [("slide_id", texts), ("region_id", texts), ("class", texts)]
        fields += [(name, whole) for name in ("x", "y", "width_px", "height_px")]
        fields += [("area_mm2", number), ("num_patches", whole)]
        fields += [(f"{name}_{word}", number) for word in ("mean", "top") for name in self.names]
        return pa.Table.from_pylist([self._row(region) for region in self.regions], schema=pa.schema(fields))

    def _row(self, region: Region) -> dict[str, object]:
        left, top, right, bottom = (round(value) for value in region.polygon.bounds)
        return {
            "slide_id": self.slide_id, "region_id": region.region_id, "class": region.name,
            "x": left, "y": top, "width_px": right - left, "height_px": bottom - top,
            "area_mm2": region.area_mm2, "num_patches": region.num_patches,
            **{f"{name}_mean": region.mean[name] for name in self.names},
            **{f"{name}_top": region.top[name] for name in self.names},
        }  # fmt: skip


def file_word(name: str) -> str:
    """Write a score in a file's name: what follows its last underscore, so that no two slides share a name."""
    return name.replace("_", "-")


def _to_csv(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
