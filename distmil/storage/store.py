"""The storage root and the commit protocol: nothing half written is ever taken for done.

A file is written beside its target under a temporary name, synced, renamed, and its folder synced; then the commit
record is written by the same steps. Done means that the record is there and matches what would be made now. Readers
take only what a record names. On an object store a put is atomic and the record comes last. There are no locks: what is
written is a function of its inputs, so that doing it twice is harmless.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from distmil.errors import ConfigError, StorageError
from distmil.storage.access import PRIVATE, Access, access_of, open_root
from distmil.storage.local_files import has_checksum, keep_copy, write_whole
from distmil.storage.object_store import TRIAL, explain, join_uri, open_filesystem, read_whole, resolve_uri

DEFAULT_ROOT = "~/.distmil"
# Set by Ray for the entrypoint of a submitted job, whose working folder is thrown away.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def resolve_root(root: str | None, *, key: str = "storage.root") -> str:
    """Return the absolute storage root: a local path or an object store's URI.

    Args:
        root: As it was given; None: ``$DISTMIL_HOME``, else the default.
        key: By which key of the configuration, for the messages.

    Raises:
        ConfigError: If the path is relative inside a Ray job, or the URI is none that can be used.
    """
    given = root or os.environ.get("DISTMIL_HOME") or DEFAULT_ROOT
    if "://" in given:
        if not given.startswith(("s3://", "gs://", "file:///")):
            raise ConfigError(f"{key} = {given!r}: expected an absolute folder, s3://... or gs://...")
        if given.startswith("file://"):
            return given.removeprefix("file://").rstrip("/") or "/"
        return resolve_uri(given, key=key)
    path = Path(given).expanduser()
    if not path.is_absolute() and os.environ.get(JOB_VARIABLE):
        raise ConfigError(
            f"{key} = {given!r}: a relative folder inside a Ray job is thrown away with it; "
            "give an absolute shared folder or an s3:// or gs:// URI"
        )
    return str(path.resolve())


@dataclass(frozen=True)
class Part:
    """One committed file of a record, named relative to the record's folder."""

    name: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """A commit record: what was made, from what.

    ``key`` is everything the content depends on besides the stage's fingerprint (source size and time, resolution, the
    record it was made from). ``info`` is what readers want to know without opening the parts.
    """

    slide_id: str
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
        text = json.dumps([self.slide_id, self.status, [asdict(part) for part in self.parts]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def rows(self) -> int:
        """Return the rows of all parts."""
        return sum(part.rows for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready values."""
        return asdict(self) | {"parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        """Rebuild a record. Raises: StorageError if it is no record."""
        try:
            return cls(**{**values, "parts": tuple(Part(**part) for part in values["parts"])})
        except (KeyError, TypeError) as error:
            raise StorageError(f"not a commit record: {str(values)[:200]}") from error


@dataclass(frozen=True)
class Store:
    """Files under one root, local or on an object store. Names are relative, with forward slashes."""

    root: str

    @cached_property
    def _target(self) -> tuple[pafs.FileSystem, str]:
        return (pafs.LocalFileSystem(), self.root) if self.is_local else open_filesystem(self.root)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def _located(self, name: str) -> tuple[pafs.FileSystem, str]:
        """Return the file system and the path on it. Raises: StorageError if it would leave the root."""
        self.path(name)
        filesystem, base = self._target
        return filesystem, f"{base}/{name}".rstrip("/")

    @property
    def is_local(self) -> bool:
        """Return whether the root is a folder of this machine's file system."""
        return "://" not in self.root

    def path(self, name: str) -> str:
        """Return the full path or URI of a name. Raises: StorageError if it would leave the root."""
        if name.startswith("/") or ".." in name.split("/"):
            raise StorageError(f"{name!r} leaves the storage root")
        return f"{self.root}/{name}" if self.is_local else join_uri(self.root, name)

    def for_ray(self, name: str) -> dict[str, Any]:
        """Return a folder as the arguments by which Ray Train takes its storage, as patient as this store."""
        if self.is_local:
            return {"storage_path": self.path(name)}
        filesystem, path = self._located(name)
        return {"storage_path": path, "storage_filesystem": filesystem}

    @cached_property
    def access(self) -> Access:
        """Return who may read what is written here; on an object store the bucket says so."""
        return access_of(Path(self.root)) if self.is_local else PRIVATE

    def check(self, *, access: str = "private") -> None:
        """Make the root and try it out, for a minute at most.

        Args:
            access: Who may read a root that is made now: ``private`` or ``group``.

        Raises:
            ConfigError: If a group is to share a root that is private.
            StorageError: If the root cannot be used.
        """
        if self.is_local:
            with self._explained("write", ""):
                open_root(Path(self.root), access)
        tried = self if self.is_local else _TriedStore(self.root)
        probe = f".probe-{uuid.uuid4().hex}"
        if not self.is_local:
            tried.names("")  # a server that does not answer is given up sooner when it is asked than when it is told
        tried.write(probe, b"distmil")
        tried.delete(probe)

    def write(self, name: str, data: bytes | pa.Buffer, *, is_durable: bool = True) -> None:
        """Write a file so that it is there whole, or not at all.

        Args:
            name: The file.
            data: Its content.
            is_durable: It is to outlast the loss of power; without it only the end of the process.

        Raises:
            StorageError: If it cannot be written.
        """
        with self._explained("write", name):
            if self.is_local:
                write_whole(Path(self.path(name)), data, is_durable=is_durable, access=self.access)
            else:
                filesystem, path = self._located(name)
                with filesystem.open_output_stream(path) as stream:
                    stream.write(data)

    def read(self, name: str) -> bytes:
        """Read a whole file. Raises: FileNotFoundError, StorageError."""
        with self._explained("read", name):
            if self.is_local:
                return Path(self.path(name)).read_bytes()
            filesystem, path = self._located(name)
            return read_whole(filesystem, path)

    def open_buffer(self, name: str) -> pa.Buffer:
        """Return a file's content, memory-mapped where the store is local. Raises: FileNotFoundError, StorageError."""
        with self._explained("read", name):
            if self.is_local:
                return pa.memory_map(self.path(name)).read_buffer()
        return pa.py_buffer(self.read(name))

    def exists(self, name: str) -> bool:
        """Return whether a file or folder is there."""
        with self._explained("look up", name):
            filesystem, path = self._located(name)
            return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted; none if it is absent."""
        with self._explained("list", folder):
            filesystem, path = self._located(folder)
            found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.File)

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        with self._explained("delete", name), contextlib.suppress(FileNotFoundError):
            filesystem, path = self._located(name)
            filesystem.delete_file(path)

    def delete_folder(self, name: str) -> None:
        """Delete a folder and all below it, if it is there."""
        with self._explained("delete", name), contextlib.suppress(FileNotFoundError):
            if self.is_local:
                shutil.rmtree(self.path(name))
                return
            filesystem, path = self._located(name)
            for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True)):
                if info.type == pafs.FileType.File:
                    filesystem.delete_file(info.path)

    def write_json(self, name: str, values: Any, *, is_durable: bool = True) -> None:
        """Write values as JSON, refusing NaN; see ``write``."""
        data = (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
        self.write(name, data, is_durable=is_durable)

    def read_json(self, name: str) -> Any:
        """Read JSON. Raises: FileNotFoundError, StorageError."""
        data = self.read(name)
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self.path(name)} is damaged: {error}; delete it and run again") from error

    def write_checked(self, name: str, values: Any, *, owner: str, is_durable: bool = True) -> None:
        """Write values as JSON with a checksum of them and their owner; see ``write_json``."""
        self.write_json(name, {"values": values, "sha256": _digest([owner, values])}, is_durable=is_durable)

    def read_checked(self, name: str, *, owner: str) -> Any:
        """Read what ``write_checked`` wrote, its checksum compared.

        A file of ``write_json``, as older versions wrote, is read as it is.

        Args:
            name: The file.
            owner: The run or slide whose file it is: another one's file in its place counts as damaged.

        Raises:
            FileNotFoundError: If the file is absent.
            StorageError: If the file is damaged or cannot be read.
        """
        found = self.read_json(name)
        if not isinstance(found, dict) or len(found) != 2 or not {"values", "sha256"} & set(found):
            return found
        if "values" not in found or found.get("sha256") != _digest([owner, found["values"]]):
            raise StorageError(
                f"{self.path(name)} is damaged: its checksum differs; delete it and run the same command again"
            )
        return found["values"]

    @staticmethod
    def _or_none(read: Callable[[], Any]) -> Any:
        """Return JSON, or None if it is absent or damaged; what cannot be read just now is neither."""
        try:
            return read()
        except FileNotFoundError:
            return None
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return None

    def read_record(self, name: str) -> Record | None:
        """Return a commit record, or None if there is none that can be read.

        Raises:
            StorageError: If the store cannot be asked: what is done there must not count as not done.
        """
        values = self._or_none(lambda: self.read_json(name))
        try:
            return Record.from_json(values["record"]) if values["sha256"] == _digest(values["record"]) else None
        except (KeyError, TypeError, StorageError):
            return None

    def write_record(self, name: str, record: Record) -> None:
        """Commit: from now on the parts count."""
        values = record.to_json()
        self.write_json(name, {"record": values, "sha256": _digest(values)})

    def write_part(self, folder: str, name: str, data: bytes | pa.Buffer, *, rows: int) -> Part:
        """Write one part of a record to come and return its entry."""
        self.write(f"{folder}/{name}", data)
        return Part(name=name, rows=rows, size_bytes=len(memoryview(data)), sha256=hashlib.sha256(data).hexdigest())

    def read_receipt(self, name: str, key: Mapping[str, Any]) -> Part | None:
        """Return the part that an earlier try wrote from the same inputs, before its slide was committed."""
        values = self._or_none(lambda: self.read_checked(name, owner=name))
        return Part(**values["part"]) if values is not None and values["key"] == key else None

    def write_receipt(self, name: str, key: Mapping[str, Any], part: Part) -> None:
        """Note that a part is written, so that a restart does not write it again; whoever reads it checks the part."""
        self.write_checked(name, {"key": dict(key), "part": asdict(part)}, owner=name, is_durable=False)

    def keep_only(self, folder: str, names: Collection[str]) -> None:
        """Take away what work left in a committed folder; what another process is writing just now stays."""
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
        """Return what to raise where a committed file is not there."""
        return StorageError(f"{self.path(name)} is gone, though it was committed; {self._remedy(name)}")

    def _damaged(self, name: str) -> StorageError:
        """Return what to raise where a file is not the committed one."""
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
        return keep_copy(part.sha256, part.size_bytes, lambda: self.read_part(name.rpartition("/")[0], part))

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and (self.is_local or verb != "write"):
                raise
            if self.is_local:
                full = " The disk is full: free some space and run the same command again."
                reason = f"{error.strerror or error}.{full * (error.errno == errno.ENOSPC)}"
            else:
                reason = explain(error, self.root)
            raise StorageError(f"cannot {verb} {self.path(name)}: {reason}") from error


class _TriedStore(Store):
    """A store at the first look, with little patience."""

    @cached_property
    def _target(self) -> tuple[pafs.FileSystem, str]:
        return open_filesystem(self.root, patience=TRIAL)


def read_file(uri: str, *, key: str) -> bytes:
    """Return the content of a single file on an object store, with the patience of a first look.

    Args:
        uri: As it was given.
        key: By which key or option, for the messages.

    Raises:
        ConfigError: If the URI is none that can be used.
        FileNotFoundError: If it is not there.
        StorageError: If the store cannot be asked.
    """
    base, mark, options = resolve_root(uri, key=key).partition("?")
    folder, _, name = base.rpartition("/")
    if folder.endswith("/"):
        raise ConfigError(f"{key} = {uri!r}: expected {folder}/bucket/file")
    return _TriedStore(f"{folder}{mark}{options}").read(name)


def _digest(values: Any) -> str:
    """Return a hash of JSON-ready values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()
