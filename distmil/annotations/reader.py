"""What people marked on a slide, in any of the formats: outlines, or a mask image, as the file has them.

A file is recognised by its content, not by its extension. GeoJSON may be packed by gzip or zip, as QuPath writes it.
Only an AnnotationError leaves the reader, whatever the file holds. Messages name neither the file nor its content.
"""

import gzip
import hashlib
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from distmil.annotations.formats import (
    asap,
    camelyon,
    coco,
    darwin,
    geojson,
    halo,
    imagescope,
    ndpa,
    patch_table,
    voc,
    yolo,
)
from distmil.annotations.masks import read_mask
from distmil.annotations.outlines import Annotation, Outlines
from distmil.annotations.parsing import XmlDocument, name_of, parse_json
from distmil.annotations.slide_facts import Size, SlideFacts
from distmil.errors import AnnotationError


class Format(Protocol):
    """The face of every module of ``distmil.annotations.formats``."""

    NAME: str

    def matches(self, content: Any, /) -> bool:
        """Say whether content is in this format."""

    def read(self, content: Any, slide: SlideFacts, outlines: Outlines, /) -> None:
        """Gather the outlines of content that matches. Raises: AnnotationError."""


XML: Sequence[Format] = (asap, halo, imagescope, ndpa, voc)
JSON: Sequence[Format] = (darwin, camelyon, coco, geojson)
TEXT: Sequence[Format] = (yolo, patch_table)

TOO_MUCH_MEMORY = "the annotation takes more memory than may be used; export it with fewer marks"
READS = 2
"""Raised when the reader takes files that it refused: what it refused before is tried again."""
MAX_FILE_BYTES = 256 * 2**20
"""Largest file that is read, unpacked."""
MAX_TEXT_BYTES = 64 * 2**20
"""Largest text file that is read."""
MAX_HASHED_BYTES = 4 * 2**30
"""A larger file is identified by its size and time."""

_IMAGES = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_PACKED = (".geojson", ".json")
_LABELME = (
    "it looks like LabelMe JSON: convert it to a GeoJSON file for each image, in Python "
    "file.write(shapely.to_geojson(shapely.union_all([shapely.Polygon(shape['points']) for shape in shapes]))), with "
    "shapely.box(*p, *q) for a rectangle of the points p, q"
)


def read_annotation(path: Path, *, slide_size: Size) -> Annotation:
    """Read one annotation file of a slide of which no more than its size is known; see ``read_for``."""
    return read_for(path, SlideFacts(slide_size))


def read_for(path: Path, slide: SlideFacts) -> Annotation:
    """Read one annotation file, in the coordinates that it has.

    Args:
        path: The file; its name never appears in messages.
        slide: The slide that it is about.

    Raises:
        AnnotationError: If the file cannot be read as one of the supported formats.
    """
    try:
        return _read(path, slide)
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


def _read(path: Path, slide: SlideFacts) -> Annotation:
    if not stat.S_ISREG(path.stat().st_mode):
        raise AnnotationError("the annotation is not a regular file (a folder, a pipe or a device); give a file")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.strip():
        raise AnnotationError("the annotation file is empty; export it again or leave it out")
    if head.startswith(_IMAGES):
        return read_mask(path, slide=slide)
    content = _content(path, head)
    outlines = Outlines()
    start = _first_character(content[:4096])
    if start == b"<":
        document = XmlDocument(content)
        _chosen(XML, document, f"XML that starts with <{document.root[:40]}>").read(document, slide, outlines)
    elif start in {b"{", b"["}:
        value = parse_json(content)
        hint = f"; {_LABELME}" if isinstance(value, dict) and "shapes" in value else ""
        _chosen(JSON, value, f"JSON that holds {name_of(value)}{hint}").read(value, slide, outlines)
    else:
        text = _decoded(content)
        _chosen(TEXT, text, "text" if text else "neither XML, JSON, text, PNG nor TIFF").read(text, slide, outlines)
    return outlines.gathered()


def _chosen(formats: Sequence[Format], content: Any, what: str) -> Format:
    """Find the format of content. Raises: AnnotationError, naming what was tried, if it is in none."""
    for one in formats:
        if one.matches(content):
            return one
    tried = ", ".join(one.NAME for one in (*XML, *JSON, *TEXT))
    raise AnnotationError(
        f"the annotation is in none of the formats that are read: it is {what}; tried were {tried}, and mask images "
        "(PNG, TIFF)"
    )


def _decoded(content: bytes) -> str:
    """Decode text, "" if it is none. Raises: AnnotationError if there is too much of it."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return ""
    if "\0" in text[:4096]:
        return ""
    if len(content) > MAX_TEXT_BYTES:
        raise AnnotationError(
            f"the annotation: {len(content)} bytes of text, more than the {MAX_TEXT_BYTES} that are read; split it by "
            "slide"
        )
    return text


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
