"""The folder of drawn outlines: a new file a version, never one that is changed, and the manifest that names them.

The folder has ``<slide_id>_v<version>.geojson`` for what was drawn, and ``<manifest>_drawn.csv``, which is the manifest
with the newest version of every drawn slide.
"""

import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from distmil.annotations.formats.geojson import ABOUT
from distmil.cohort.annotated import Drawn, annotated_manifest
from distmil.config.data import CohortConfig
from distmil.errors import ConfigError, DistmilError
from distmil.storage.local_files import write_new, write_outside

_DRAWN = "_drawn"
_NAME = re.compile(r"(?P<slide_id>[A-Za-z0-9._-]+)_v(?P<version>[1-9][0-9]{0,8})\.geojson")
_MAX_ABOUT = 4096


class StaleDrawing(DistmilError):
    """Someone saved another version of a slide's outlines meanwhile."""


@dataclass(frozen=True)
class DrawnFiles:
    """The versions of all slides. Threads and processes may share the folder."""

    folder: Path
    manifest: Path
    """The manifest that the slides are from."""
    cohort: CohortConfig
    """Names of its columns."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def drawn_manifest(self) -> Path:
        """Return where the manifest with the drawn outlines is."""
        return self.folder / f"{self.manifest.stem.removesuffix(_DRAWN)}{_DRAWN}.csv"

    def newest(self) -> dict[str, int]:
        """Find the newest version of each drawn slide. Raises: OSError."""
        found: dict[str, int] = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if name := _NAME.fullmatch(path.name):
                found[name["slide_id"]] = max(int(name["version"]), found.get(name["slide_id"], 0))
        return found

    def path(self, slide_id: str, version: int) -> Path:
        """Return where a version is."""
        return self.folder / f"{slide_id}_v{version}.geojson"

    def drawn(self, slide_id: str, version: int) -> Drawn:
        """Read what takes the place of a slide's annotation. Raises: OSError."""
        path = self.path(slide_id, version)
        about = _about(path)
        return Drawn(str(path) if about.get("outlines") != 0 else None, about.get("complete") is True)

    def save(self, slide_id: str, version: int, data: bytes) -> None:
        """Write a version and the manifest.

        Raises:
            ConfigError: If the manifest itself would be overwritten.
            StaleDrawing: If the version before is not the newest.
            OSError: If a file cannot be written.
            ManifestError: If the manifest cannot be read any more.
        """
        with self._lock:
            newest = self.newest()
            if newest.get(slide_id, 0) != version - 1:
                raise _stale(slide_id)
            if not newest and self.drawn_manifest.resolve() == self.manifest.resolve():
                raise ConfigError(f"{self.manifest.name}: it has the name of what would be written; set view.drawn")
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                write_new(self.path(slide_id, version), data)
            except FileExistsError:  # another process was faster
                raise _stale(slide_id) from None
            self.write_manifest()

    def write_manifest(self) -> None:
        """Write the manifest with the newest versions, if there are any. Raises: OSError, ManifestError."""
        newest = self.newest()
        while newest:
            drawn = {slide_id: self.drawn(slide_id, version) for slide_id, version in newest.items()}
            write_outside(self.drawn_manifest, annotated_manifest(self.cohort, self.manifest, drawn))
            written, newest = newest, self.newest()
            if newest == written:  # else another process has saved meanwhile, and may have been overwritten
                return


def drawn_folder(manifest: Path) -> Path:
    """Choose the folder for what is drawn on a manifest's slides; for a manifest of drawn outlines it is its own."""
    is_own = manifest.stem.endswith(_DRAWN) and manifest.parent.name == manifest.stem
    return manifest.parent if is_own else manifest.parent / f"{manifest.stem}{_DRAWN}"


def _about(path: Path) -> dict[str, object]:
    """Read what a file says of itself on its first line; nothing where another program wrote it again."""
    with path.open("rb") as file:
        line = file.readline(_MAX_ABOUT)
    try:
        found = json.loads(line + b"]}")
    except ValueError:
        return {}
    about = found.get(ABOUT) if isinstance(found, dict) else None
    return about if isinstance(about, dict) else {}


def _stale(slide_id: str) -> StaleDrawing:
    return StaleDrawing(
        f"{slide_id}: its outlines were saved elsewhere meanwhile, in another tab or by another person; nothing of "
        "yours was written: open the newest version, and draw again what is missing"
    )
