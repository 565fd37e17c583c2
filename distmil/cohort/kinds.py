"""The kind of a file that is given as a manifest: a table, a slide, or another kind with what to do about it."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from distmil.cohort.text_file import is_binary
from distmil.errors import ManifestError
from distmil.slides.file_version import SLIDE_SUFFIXES

WHOLE_SLIDE_SUFFIXES = SLIDE_SUFFIXES | {".tif", ".tiff"}
PLAIN_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
_HEAD_BYTES = 65_536
_WORKBOOKS = {
    ".xlsx": "an Excel workbook",
    ".xlsm": "an Excel workbook",
    ".xlsb": "an Excel workbook",
    ".xls": "an Excel workbook",
    ".ods": "a LibreOffice workbook",
    ".numbers": "a Numbers workbook",
}
_SAVE_AS_CSV = (
    "save its sheet as CSV (UTF-8), in Excel by File > Save As > CSV UTF-8, and set cohort.manifest to that file"
)
_FEATURES = "a file of features or weights; the folder of others' features is given by features.folder"
_OTHERS = {
    **dict.fromkeys((".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz"), _FEATURES),
    **dict.fromkeys((".geojson", ".xml"), "a file of outlines, which the manifest names in the column annotation_path"),
    **dict.fromkeys((".yaml", ".yml"), "a configuration, which is given by --config"),
    ".json": "a JSON file",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"(\xb5/\xfd": "zstd"}
_A_TABLE = "set cohort.manifest to a CSV or Parquet file with a row a slide"


def is_parquet(path: Path) -> bool:
    """Test by its ending or its first bytes whether a file is Parquet."""
    return path.suffix.lower() in PARQUET_SUFFIXES or _head(path).startswith(b"PAR1")


def is_slide(path: Path) -> bool:
    """Test by its ending whether a file is a slide or an image."""
    return path.suffix.lower() in WHOLE_SLIDE_SUFFIXES | PLAIN_IMAGE_SUFFIXES


def is_plain_image(path: str) -> bool:
    """Test by its ending whether a file is a plain image."""
    return Path(path).suffix.lower() in PLAIN_IMAGE_SUFFIXES


def noun_of(paths: Sequence[str]) -> str:
    """Name what files are, in messages: "image" where all are plain images by their endings, else "slide"."""
    return "image" if paths and all(map(is_plain_image, paths)) else "slide"


def check_text(path: Path) -> None:
    """Refuse another kind of file than a text table, and say what to do. Raises: ManifestError."""
    head = _head(path)
    if workbook := _workbook(path, head):
        raise ManifestError(f"{path}: this is {workbook}; {_SAVE_AS_CSV}")
    if other := _OTHERS.get(path.suffix.lower()):
        raise ManifestError(f"{path}: this is {other}; {_A_TABLE}")
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise ManifestError(f"{path}: this is compressed with {name}; unpack it")
    if is_binary(head):
        raise ManifestError(f"{path}: this is not a text file; {_A_TABLE}")


def _workbook(path: Path, head: bytes) -> str | None:
    """Name the kind of a workbook, by its ending or by what is in it."""
    if kind := _WORKBOOKS.get(path.suffix.lower()):
        return kind
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        return _WORKBOOKS[".xls"]
    if head.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.startswith("xl/") for name in names):
            return _WORKBOOKS[".xlsx"]
        if "content.xml" in names:
            return _WORKBOOKS[".ods"]
    return None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
