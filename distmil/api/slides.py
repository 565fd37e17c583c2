"""Slides and manifests for a notebook."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from distmil.cohort import Cohort, read_cohort
from distmil.config.loading import build_config
from distmil.errors import MissingSlide
from distmil.slides.image import SlideImage
from distmil.slides.reader import open_slide as open_image


def open_slide(path: str | Path) -> SlideImage:
    """Open a slide: a whole-slide file that OpenSlide knows, or a plain PNG, JPEG, BMP or TIFF image.

    Raises:
        MissingSlide: If the file does not exist.
        UnreadableSlide: If it cannot be opened, or its pixels would be read wrongly.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise MissingSlide(f"there is no slide {str(path)!r}; give the path of a file")
    return open_image(file)


def read_manifest(
    path: str | Path,
    *,
    classes: Sequence[str] = ("negative", "positive"),
    needs_labels: bool = False,
    columns: Mapping[str, str | None] | None = None,
    class_names: Mapping[str | int, str] | None = None,
) -> Cohort:
    """Read and check a manifest of slides, as the jobs do.

    Args:
        path: CSV or Parquet file with the columns slide_id and slide_path, and others that docs/how_to/slides.md lists;
            without ``needs_labels`` a folder of slides or one slide too.
        classes: Class names in index order; the first is normal.
        needs_labels: Refuse slides without a label.
        columns: distmil's column -> the file's own name for it, such as ``{"patient_id": "Patient ID"}``; None: the
            file has no such column, whatever looks like it.
        class_names: Label as the file has it -> class.

    Returns:
        The cohort: ``slides``, ``classes`` and ``of_split("train")``.

    Raises:
        ManifestError: With every offending row and its line.
        ConfigError: If fewer than two class names are given, or a name twice, or a mapping is wrong.
    """
    given = {"classes": list(classes), "columns": dict(columns or {}), "class_names": dict(class_names or {})}
    config = build_config({"cohort": given}).cohort
    return read_cohort(config, manifest=path, needs_labels=needs_labels, needs_splits=False)
