"""A folder of slides, or one slide, as a manifest of ids and paths."""

import logging
from collections import defaultdict
from pathlib import Path

from distmil.cohort.kinds import PLAIN_IMAGE_SUFFIXES, WHOLE_SLIDE_SUFFIXES
from distmil.cohort.row import SLIDE_ID
from distmil.cohort.table import Table
from distmil.errors import ManifestError
from distmil.slides.file_version import slides_in_folder

logger = logging.getLogger(__name__)

_SHOWN = 3
_MANIFEST = "or set cohort.manifest to a CSV file with the columns slide_id and slide_path"


def list_slides(place: Path) -> Table:
    """List the slides of a folder, or one slide, with the names of their files without the ending as ids.

    A folder's slides are its whole-slide files, else its plain images, and those folders in it that hold one slide.

    Raises:
        ManifestError: If there is none, or two would have one id, or a name cannot be an id.
    """
    try:
        slides = _in_folder(place) if place.is_dir() else [(place.stem, place)]
    except OSError as error:
        raise ManifestError(f"{place}: the folder cannot be read ({error.strerror})") from error
    if not slides:
        endings = ", ".join(sorted(WHOLE_SLIDE_SUFFIXES | PLAIN_IMAGE_SUFFIXES))
        raise ManifestError(f"{place}: a folder without slides ({endings}, or a DICOM series); {_MANIFEST}")
    if odd := [file.name for slide_id, file in slides if not SLIDE_ID.fullmatch(slide_id)]:
        raise ManifestError(
            f"{place}: slide ids are the names of the files without their ending, and {_some(odd)} cannot be one: "
            f"expected 1 to 128 letters, digits, . _ -; rename it, {_MANIFEST}"
        )
    files: dict[str, list[str]] = defaultdict(list)
    for slide_id, file in slides:
        files[slide_id].append(file.name)
    if doubled := [" and ".join(names) for names in files.values() if len(names) > 1]:
        raise ManifestError(
            f"{place}: slide ids are the names of the files without their ending, which are equal for "
            f"{_some(doubled)}; rename one, {_MANIFEST}"
        )
    logger.info("no manifest: slide ids are the names of the %d file(s) there", len(slides))
    return Table(("slide_id", "slide_path"), [(i, (name, str(file))) for i, (name, file) in enumerate(slides, start=1)])


def _in_folder(folder: Path) -> list[tuple[str, Path]]:
    """List the slides of a folder by name, with their ids. Raises: OSError, ManifestError."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    found = {file for file in slides_in_folder(folder) if not file.name.startswith(".")}
    found |= {file for file in files if file.suffix.lower() in WHOLE_SLIDE_SUFFIXES - {".dcm"}}
    inner, crowded = [], []
    for entry in entries:
        if entry.is_dir() and not entry.with_name(f"{entry.name}.mrxs").exists():
            slides = slides_in_folder(entry)
            is_named = len(slides) == 1 and slides[0].suffix.lower() in WHOLE_SLIDE_SUFFIXES - {".dcm"}
            inner += [(slides[0].stem if is_named else entry.name, slides[0])] if len(slides) == 1 else []
            crowded += [entry.name] if len(slides) > 1 else []
    if crowded:
        raise ManifestError(
            f"{folder}: {_some(crowded)} in it hold several slides each; give one of these folders, {_MANIFEST}"
        )
    if not found and not inner:
        found = {file for file in files if file.suffix.lower() in PLAIN_IMAGE_SUFFIXES}
    return [*((file.stem, file) for file in sorted(found)), *inner]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
