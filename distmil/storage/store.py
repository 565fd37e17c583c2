"""The store and its commit protocol: nothing half written is ever taken for done.

A file is written beside its target under a temporary name, synced, renamed, and its folder synced; then the commit
record is written by the same steps. Done means that the record is there and matches what would be made now. Readers
take only what a record names. On an object store a put is atomic and the record comes last. There are no locks: what is
written is a function of its inputs, so that doing it twice is harmless.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from distmil.errors import StorageError
from distmil.storage.files import Files
from distmil.storage.local_files import has_checksum, keep_copy
from distmil.storage.records import Part, Record, digest_of

RECORD_FILE = "commit.json"


class Store(Files):
    """Files under one root, with commit records that say which of them count."""

    @staticmethod
    def or_none(read: Callable[[], Any]) -> Any:
        """Read JSON, or None if it is absent or damaged. Raises: StorageError if the store does not answer."""
        try:
            return read()
        except FileNotFoundError:
            return None
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return None

    def read_record(self, name: str) -> Record | None:
        """Read a commit record; None if there is none, or a damaged one.

        Raises:
            StorageError: If the store does not answer: finished work must not count as missing.
        """
        values = self.or_none(lambda: self.read_json(name))
        try:
            return Record.from_json(values["record"]) if values["sha256"] == digest_of(values["record"]) else None
        except (KeyError, TypeError, StorageError):
            return None

    def write_record(self, name: str, record: Record) -> None:
        """Commit: from now on the parts count."""
        values = record.to_json()
        self.write_json(name, {"record": values, "sha256": digest_of(values)})

    def write_part(self, folder: str, name: str, data: bytes | pa.Buffer, *, rows: int) -> Part:
        """Write one part, before its record, and return its entry."""
        self.write(f"{folder}/{name}", data)
        return Part.of(name, data, rows=rows)

    def read_receipt(self, name: str, key: Mapping[str, Any]) -> Part | None:
        """Return the part that an earlier try wrote from the same inputs, before its slide was committed."""
        values = self.or_none(lambda: self.read_checked(name, owner=name))
        return Part(**values["part"]) if values is not None and values["key"] == key else None

    def write_receipt(self, name: str, key: Mapping[str, Any], part: Part) -> None:
        """Note that a part is written, so that a restart does not write it again; whoever reads it checks the part."""
        self.write_checked(name, {"key": dict(key), "part": asdict(part)}, owner=name, is_durable=False)

    def keep_only(self, folder: str, names: Collection[str]) -> None:
        """Delete the other files of a committed folder, but not what another process is writing just now."""
        for name in self.names(folder):
            if name not in names and not name.startswith("."):
                self.delete(f"{folder}/{name}")

    def read_part(self, folder: str, part: Part) -> bytes:
        """Read a committed file whole and compare its checksum. Raises: StorageError if it is damaged or gone."""
        name = f"{folder}/{part.name}"
        try:
            data = self.read(name)
        except FileNotFoundError as error:
            raise self._gone(name) from error
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise self._damaged(name)
        return data

    def open_part(self, folder: str, part: Part) -> pa.Buffer:
        """Return a committed file's content, verified; memory-mapped where the store is local.

        Raises:
            StorageError: If the file is damaged or gone.
        """
        if not self.is_local:
            return pa.py_buffer(self.read_part(folder, part))
        self.local_copy(f"{folder}/{part.name}", part)
        return self.open_buffer(f"{folder}/{part.name}")

    def _gone(self, name: str) -> StorageError:
        """Make the error for a committed file that is not there."""
        return StorageError(f"{self.path(name)} is gone, though it was committed; {self._remedy(name)}")

    def _damaged(self, name: str) -> StorageError:
        """Make the error for a file that is not the committed one."""
        return StorageError(
            f"{self.path(name)} is damaged: its checksum is not the committed one; {self._remedy(name)}"
        )

    def _remedy(self, name: str) -> str:
        folder = self.path(name).rpartition("/")[0].removesuffix("/.")
        return f"delete the folder {folder} and run the same command again"

    def is_intact(self, folder: str, part: Part) -> bool:
        """Return whether a file is there with its noted checksum."""
        try:
            self.read_part(folder, part)
        except StorageError:
            return False
        return True

    def local_copy(self, name: str, part: Part) -> Path:
        """Return a local path of a committed file, verified; fetched once into a cache where the store is remote.

        Raises:
            StorageError: If it is damaged or gone, or there is no room for it.
        """
        if self.is_local:
            path = Path(self.path(name))
            try:
                with self._explained("read", name):
                    is_whole = has_checksum(path, sha256=part.sha256, size_bytes=part.size_bytes)
            except FileNotFoundError as error:
                raise self._gone(name) from error
            if not is_whole:
                raise self._damaged(name)
            return path
        folder = name.rpartition("/")[0] or "."
        return keep_copy(part.sha256, part.size_bytes, lambda: self.read_part(folder, part))


@dataclass(frozen=True)
class Committed:
    """The commit of one slide or run: parts in a folder, and the record that makes them count."""

    store: Store
    folder: str
    name: str
    """The slide's id, or the run's name."""
    file: str = RECORD_FILE
    """The record, relative to the folder."""

    @property
    def record_name(self) -> str:
        """Return the name of the commit record."""
        return f"{self.folder}/{self.file}"

    def read(self) -> Record | None:
        """Read this record, whatever it was made from; None if there is none."""
        record = self.store.read_record(self.record_name)
        return record if record is not None and record.name == self.name else None

    def finished(self, key: Mapping[str, Any]) -> Record | None:
        """Read the record if it was made from what ``key`` holds, else None."""
        record = self.read()
        return record if record is not None and record.key == key else None

    def is_whole(self, record: Record) -> bool:
        """Compare every part of a record with its checksum."""
        return all(self.store.is_intact(self.folder, part) for part in record.parts)

    def commit(
        self,
        key: Mapping[str, Any],
        *,
        parts: Sequence[Part] = (),
        info: Mapping[str, Any] | None = None,
        status: str = "ok",
        error: str | None = None,
    ) -> Record:
        """Write the record: from now on the parts count."""
        record = Record(self.name, key, status=status, error=error, parts=tuple(parts), info=info or {})
        self.store.write_record(self.record_name, record)
        return record
