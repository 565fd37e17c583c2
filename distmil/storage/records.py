"""Commit records: what was made of a slide or a run, from what, and in which files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from distmil.errors import StorageError


def encode_json(values: Any) -> bytes:
    """Encode values as every JSON file of the store is written. Raises: ValueError if a number is NaN or infinite."""
    return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def digest_of(values: Any) -> str:
    """Hash JSON-ready values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True)
class Part:
    """One committed file of a record, named relative to the record's folder."""

    name: str
    rows: int
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes | pa.Buffer, *, rows: int) -> "Part":
        """Describe a file by its content."""
        return cls(name, rows, len(memoryview(data)), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Record:
    """A commit record: what was made, from what.

    ``name`` is the slide's id, or the run's name where a run commits something. ``key`` is everything the content
    depends on besides the stage's fingerprint (source size and time, resolution, the record it was made from). ``info``
    is what readers want to know without opening the parts.
    """

    name: str
    key: Mapping[str, Any]
    status: str = "ok"
    error: str | None = None
    parts: Sequence[Part] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Return whether the slide can be used."""
        return self.status == "ok"

    @property
    def digest(self) -> str:
        """Return a hash that changes whenever the content does."""
        return digest_of([self.name, self.status, [asdict(part) for part in self.parts]])

    @property
    def rows(self) -> int:
        """Return the rows of all parts."""
        return sum(part.rows for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready values, its name under ``slide_id``: every version of distmil reads that."""
        values = asdict(self)
        return {"slide_id": values.pop("name"), **values, "parts": list(values["parts"])}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        """Rebuild a record. Raises: StorageError if the values are not those of a record."""
        try:
            given = {**values, "parts": tuple(Part(**part) for part in values["parts"])}
            return cls(given.pop("slide_id"), **given)
        except (KeyError, TypeError) as error:
            raise StorageError(f"not a commit record: {str(values)[:200]}") from error
