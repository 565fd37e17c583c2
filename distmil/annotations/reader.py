"""What people marked on a slide: outlines from ASAP XML or GeoJSON, or a mask image, in level-0 pixels.

A file is recognised by its content, not by its extension. GeoJSON may be packed by gzip or zip, as QuPath writes it.
Only an AnnotationError leaves the reader, whatever the file holds. Messages name neither the file nor its content.
"""

import gzip
import hashlib
import re
import stat
import zipfile
import zlib
from pathlib import Path

from distmil.annotations.asap import read_asap
from distmil.annotations.geojson import read_geojson
from distmil.annotations.masks import read_mask
from distmil.annotations.outlines import Annotation, Outlines, convert_hint
from distmil.errors import AnnotationError

TOO_MUCH_MEMORY = "the annotation takes more memory than may be used; export it with fewer marks"
SUPPORTED = "ASAP XML, GeoJSON (also .gz and .zip) and mask images (PNG, TIFF)"
MAX_FILE_BYTES = 256 * 2**20
"""Largest GeoJSON file that is read, unpacked."""
MAX_HASHED_BYTES = 4 * 2**30
"""A larger file is identified by its size and time."""

_IMAGES = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_PACKED = (".geojson", ".json")
_YOLO = re.compile(rb"\d+(?:\s+[01]?\.?\d+(?:e-\d+)?){4,}")
"""A line of it: a class, then the box's centre and size, or corners, as shares of the image."""
_YOLO_HINT = convert_hint(
    "YOLO text",
    "shapely.box((x - w / 2) * W, (y - h / 2) * H, (x + w / 2) * W, (y + h / 2) * H) for _, x, y, w, h in boxes",
    more=", where W and H are the image's width and height",
)


def read_annotation(path: Path, *, slide_size: tuple[int, int]) -> Annotation:
    """Read one annotation file.

    Args:
        path: The file; its name never appears in messages.
        slide_size: Level-0 size of the slide, (width, height).

    Raises:
        AnnotationError: If the file cannot be read as one of the supported formats.
    """
    try:
        return _read(path, slide_size)
    except AnnotationError:
        raise
    except OSError as error:
        raise AnnotationError(f"the annotation cannot be opened ({error.strerror or type(error).__name__})") from error
    except MemoryError as error:
        raise AnnotationError(TOO_MUCH_MEMORY) from error
    except Exception as error:  # a damaged file makes decoders and geometry raise almost anything
        raise AnnotationError(
            f"the annotation is damaged, or not what its format promises ({type(error).__name__}); export it again"
        ) from error


def annotation_checksum(path: str | Path) -> str:
    """Compute a checksum of an annotation file.

    A file that is not regular (a pipe, a device) is not opened: it might never end.

    Raises:
        OSError: If the file is absent or cannot be read.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > MAX_HASHED_BYTES:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, slide_size: tuple[int, int]) -> Annotation:
    if not stat.S_ISREG(path.stat().st_mode):
        raise AnnotationError("the annotation is not a regular file (a folder, a pipe or a device); give a file")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.strip():
        raise AnnotationError("the annotation file is empty; export it again or leave it out")
    if head.startswith(_IMAGES):
        mask, scale = read_mask(path, slide_size=slide_size)
        return Annotation({}, mask=mask, mask_scale=scale)
    content = _content(path, head)
    outlines = Outlines()
    start = _first_character(content[:4096])
    if start == b"<":
        read_asap(content, outlines)
    elif start in {b"{", b"["}:
        read_geojson(content, outlines)
    elif _YOLO.fullmatch(content[:4096].partition(b"\n")[0].strip()):
        raise AnnotationError(f"the annotation: {_YOLO_HINT}")
    else:
        raise AnnotationError(f"the annotation is neither XML, JSON, PNG nor TIFF; supported are {SUPPORTED}")
    return outlines.gathered()


def _content(path: Path, head: bytes) -> bytes:
    """Read the content of a file, unpacked; refuse content too large to be outlines."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _too_large()
    try:
        if head.startswith(_GZIP):
            with gzip.open(path) as packed:
                content = packed.read(MAX_FILE_BYTES + 1)
        elif head.startswith(_ZIP):
            content = _unzipped(path)
        else:
            content = path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise AnnotationError(f"the annotation cannot be unpacked ({type(error).__name__}); export it again") from error
    if len(content) > MAX_FILE_BYTES:
        raise _too_large()
    return content


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(_PACKED)]
        if len(names) != 1:
            raise AnnotationError(f"the annotation: the zip file holds {len(names)} GeoJSON files, expected one")
        with archive.open(names[0]) as packed:
            return packed.read(MAX_FILE_BYTES + 1)


def _too_large() -> AnnotationError:
    return AnnotationError(
        f"the annotation holds more than the {MAX_FILE_BYTES} bytes that are read; export the annotations alone, "
        "without detections and cells, or use a mask image"
    )


def _first_character(head: bytes) -> bytes:
    for mark in _BYTE_ORDER_MARKS:
        head = head.removeprefix(mark)
    return head.replace(b"\0", b"").lstrip()[:1]
