"""The outlines of a slide in the store: read once from the annotation, in a child process, for labels and drawings.

What is stored is in level-0 pixels. A file that cannot be used is committed too, so that it is not tried again by the
next reader. Names of groups without a meaning are not stored.
"""

import atexit
import functools
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distmil.annotations.arrow_file import decode_annotation
from distmil.annotations.outlines import Annotation
from distmil.annotations.reader import READS, annotation_checksum
from distmil.cohort import Slide
from distmil.config.root import Config, fingerprint
from distmil.errors import AnnotationError, ConfigError
from distmil.labels.rules import resolve_groups
from distmil.processes.child import Child, ChildCrashed, ChildTimedOut
from distmil.storage.records import Part, Record
from distmil.storage.store import Committed, Store
from distmil.tiling.overview import decode_overview
from distmil.tiling.shards import patches_folder

FORMAT_VERSION = 1

_lock = threading.Lock()


@dataclass(frozen=True)
class ReadOutlines:
    """An annotation, and the doubts and unknown groups of reading it."""

    annotation: Annotation
    doubts: Sequence[str] = ()
    unknown: Sequence[str] = ()
    """Names of the groups without a meaning, for the console only; none where the annotation was read before."""


def annotation_version(slide: Slide) -> str | None:
    """Return the checksum of a slide's annotation, None without one, and a word if it cannot be read."""
    if slide.annotation_path is None:
        return None
    try:
        return annotation_checksum(slide.annotation_path)
    except OSError:
        return "unreadable"


def groups_of(config: Config) -> dict[str, int]:
    """Return the class of each annotation group. Raises: ConfigError if ``labels.groups`` names an unknown class."""
    try:
        return resolve_groups(config.cohort.classes, config.labels.groups, preset=config.labels.preset)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def outlines_folder(config: Config) -> str:
    """Return the stage's folder, named by everything that decides its content."""
    values = {
        "origin": config.labels.origin,
        "groups": sorted(groups_of(config)),
        "patches": patches_folder(config.tiling),
        "format_version": FORMAT_VERSION,
        **{name: value for name in ("scale", "affine") if (value := getattr(config.labels, name)) is not None},
    }
    return f"outlines/{fingerprint(values)}"


@dataclass(frozen=True)
class SlideOutlines:
    """Reads the annotation of one tiled slide."""

    slide: Slide
    config: Config
    store: Store
    patches: Record

    @property
    def folder(self) -> str:
        """Return the stage's folder."""
        return outlines_folder(self.config)

    @property
    def committed(self) -> Committed:
        """Return where the outlines and their record are."""
        return Committed(self.store, self.folder, self.slide.slide_id, f"{self.slide.slide_id}.json")

    def read(self) -> ReadOutlines | None:
        """Return the slide's annotation, None if the slide has none.

        Raises:
            AnnotationError: If the annotation cannot be used.
            OSError: If it is gone.
            StorageError: If the store fails.
        """
        path = self.slide.annotation_path
        if path is None:
            return None
        key = {"patches": self.patches.digest, "annotation": annotation_checksum(path)}
        unknown: list[str] = []
        record = self.committed.finished(key)
        if record is None or not self._is_usable(record):
            record, unknown = self._make(path, key)
        if not record.ok:
            raise AnnotationError(record.error or "")
        annotation = decode_annotation(self.store.read_part(self.folder, record.parts[0]))
        return ReadOutlines(annotation, record.info["doubts"], unknown)

    def _is_usable(self, record: Record) -> bool:
        """Return whether a commit is whole, or a failure that more time would not mend."""
        if not record.ok and record.info.get("reads", 1) < READS:
            return False
        if record.info.get("limit_s", self.config.labels.timeout_s) < self.config.labels.timeout_s:
            return False
        return self.committed.is_whole(record)

    def _make(self, path: str, key: dict[str, Any]) -> tuple[Record, list[str]]:
        """Read the annotation in the child process and commit it, or the reason why it cannot be used."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "outlines"
            answer, info = self._ask(path, folder, str(out))
            if "error" in answer:
                info = {**info, "reads": READS}
                record = self.committed.commit(key, status=AnnotationError.status, error=answer["error"], info=info)
            else:
                name = f"{self.slide.slide_id}.arrow"
                part = self.store.write_part(self.folder, name, out.read_bytes(), rows=1)
                record = self.committed.commit(key, parts=[part], info={"doubts": answer["doubts"]})
        return record, answer.get("unknown", [])

    def _ask(self, path: str, folder: str, out: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the child's answer, and what a record of a failure has to hold. Raises: AnnotationError."""
        info, limit_s = self.patches.info, self.config.labels.timeout_s
        request = {
            "path": path,
            "slide_path": self.slide.path,
            "slide_id": self.slide.slide_id,
            "mpp": info.get("mpp"),
            "size": [info["width_px"], info["height_px"]],
            "origin": self.config.labels.origin,
            "outline_scale": self.config.labels.scale,
            "affine": self.config.labels.affine,
            "tissue": self._write_tissue(folder),
            "scale": info.get("picture_scale"),
            "known": sorted(groups_of(self.config)),
            "out": out,
        }
        if "bounds" in info:
            request["bounds"] = info["bounds"]
        try:
            with _lock:
                return _child().call(request, timeout_s=limit_s), {}
        except ChildTimedOut:
            error = f"reading the annotation took more than labels.timeout_s = {limit_s} s; export it with fewer marks"
            return {"error": error}, {"limit_s": limit_s}
        except ChildCrashed as error:
            if "SIGKILL" in str(error):  # by the system, mostly out of memory: another try may go better
                raise AnnotationError("the process that read the annotation was killed; is the memory full?") from error
            return {"error": f"the annotation crashed its reader ({error}); export it again"}, {}

    def _write_tissue(self, folder: str) -> str | None:
        """Write the slide's tissue mask for the child, and return its path; None where origins do not differ."""
        info = self.patches.info
        if "pictures" not in info or ("bounds" in info and info["bounds"] is None):
            return None
        stored = f"{patches_folder(self.config.tiling)}/{self.slide.slide_id}"
        _, tissue = decode_overview(*(self.store.read_part(stored, Part(**part)) for part in info["pictures"]))
        np.save(f"{folder}/tissue.npy", tissue)
        return f"{folder}/tissue.npy"


@functools.cache
def _child() -> Child:
    """Return this process's reader, which is started when it is first asked."""
    child = Child("distmil.labels.annotation_worker:work")
    atexit.register(child.close)
    return child
