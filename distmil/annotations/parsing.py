"""XML and JSON of annotations, parsed in bounded time and memory: entities, bombs and damage end with a sentence."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse

from distmil.annotations.outlines import MAX_DEPTH
from distmil.errors import AnnotationError

MAX_XML_BYTES = 64 * 2**20
"""Largest XML that is read: a million corners take 60 MB."""

_BLOCK_BYTES = 4 * 2**20
_START_BYTES = 2**16
"""Bytes by which the format is recognised."""


class XmlDocument:
    """XML that is read element by element; entities are refused, so that none can grow without end."""

    def __init__(self, content: bytes) -> None:
        if len(content) > MAX_XML_BYTES:
            raise AnnotationError(
                f"the annotation: {len(content)} bytes of XML, more than the {MAX_XML_BYTES} that are read; convert it "
                "to GeoJSON, or use a mask image"
            )
        self._content = content
        self.tags, self.attributes = _start(content)
        """Tags of the first elements, the root's first, and the root's attributes."""

    @property
    def root(self) -> str:
        """Return the root's tag."""
        return self.tags[0]

    def elements(self, *tags: str) -> Iterator[Any]:
        """Yield the outermost elements with one of the tags; every element is freed once it is read.

        Raises:
            AnnotationError: If the XML is damaged, or nested too deeply.
        """
        try:
            yield from _outermost(self._content, frozenset(tags))
        except DefusedXmlException as error:
            raise _entities() from error
        except (ParseError, LookupError, ValueError) as error:
            raise _malformed(error) from error


def parse_json(content: bytes) -> Any:
    """Parse JSON. Raises: AnnotationError if it is damaged, or nested too deeply for the parser."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        where = place or type(error).__name__
        raise AnnotationError(f"the annotation: malformed JSON ({where}); export it again") from error


def listed(item: Mapping[str, Any], key: str, *, of: str) -> list[Any]:
    """Return the list under a key. Raises: AnnotationError if there is none."""
    value = item.get(key)
    if not isinstance(value, list):
        raise AnnotationError(
            f"the annotation: {key!r} in the {of} is {name_of(value)}, expected a list; export it again"
        )
    return value


def name_of(value: Any) -> str:
    """Name the type of a JSON value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "absent or null"}
    return names.get(type(value), "a number")


def plain(value: Any) -> str:
    """Convert a text or a whole number to text, "" for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    return str(value).strip()


def decimal(text: str | None) -> str:
    """Write a number of an XML file with a decimal point, whichever country's program wrote it."""
    return (text or "missing").replace(",", ".")


class _LargeBlocks(io.BytesIO):
    """Read in blocks of megabytes: the parser starts a text or attribute again with every block."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a block."""
        return super().read(max(size or 0, _BLOCK_BYTES))


def _start(content: bytes) -> tuple[list[str], Mapping[str, str]]:
    """List the tags in the start of the XML, and the root's attributes. Raises: AnnotationError if there is no root."""
    tags: dict[str, None] = {}
    attributes: Mapping[str, str] = {}
    try:
        for _, element in iterparse(io.BytesIO(content[:_START_BYTES]), events=("start",)):
            attributes = attributes if tags else dict(element.attrib)
            tags[str(element.tag)] = None
    except DefusedXmlException as error:
        raise _entities() from error
    except (ParseError, LookupError, ValueError) as error:
        if not tags:  # else the start is cut off, as it may be
            raise _malformed(error) from error
    return list(tags), attributes


def _outermost(content: bytes, tags: frozenset[str]) -> Iterator[Any]:
    open_elements: list[Any] = []
    num_wanted = 0
    for event, element in iterparse(_LargeBlocks(content), events=("start", "end")):
        if event == "start":
            num_wanted += element.tag in tags
            open_elements.append(element)
            if len(open_elements) > MAX_DEPTH:
                raise AnnotationError(f"the annotation: its XML is nested more than {MAX_DEPTH} levels deep")
            continue
        open_elements.pop()
        num_wanted -= element.tag in tags
        if num_wanted:
            continue
        if element.tag in tags:
            yield element
        if open_elements:
            element.clear()
            open_elements[-1].clear()  # its later children are read all the same, from the parser's own list


def _entities() -> AnnotationError:
    return AnnotationError("the annotation: the XML declares entities, which are refused")


def _malformed(error: Exception) -> AnnotationError:
    place = getattr(error, "position", None)
    where = f"line {place[0]}, column {place[1]}" if place else type(error).__name__
    return AnnotationError(f"the annotation: malformed XML ({where}); export it again")
