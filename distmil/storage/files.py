"""Files under one root, local or on an object store: each is written whole or not at all."""

import contextlib
import errno
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from distmil.errors import ConfigError, StorageError
from distmil.storage.access import PRIVATE, Access, access_of, open_root
from distmil.storage.local_files import write_whole
from distmil.storage.object_store import TRIAL, WORK, Patience, explain, join_uri, open_filesystem, read_whole
from distmil.storage.records import digest_of, encode_json
from distmil.storage.roots import resolve_root


@dataclass(frozen=True)
class Files:
    """Files under one root, local or on an object store. Names are relative, with forward slashes."""

    root: str
    patience: Patience = field(default=WORK, kw_only=True)
    """How long an object store is waited for."""

    @cached_property
    def _target(self) -> tuple[pafs.FileSystem, str]:
        return (pafs.LocalFileSystem(), self.root) if self.is_local else open_filesystem(self.root, self.patience)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "patience": self.patience}

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
        """Return a folder as Ray Train's storage arguments, as patient as this store."""
        if self.is_local:
            return {"storage_path": self.path(name)}
        filesystem, path = self._located(name)
        return {"storage_path": path, "storage_filesystem": filesystem}

    @cached_property
    def access(self) -> Access:
        """Return who may read what is written here; on an object store the bucket says so."""
        return access_of(Path(self.root)) if self.is_local else PRIVATE

    def check(self, *, access: str = "private") -> None:
        """Make the root and try to write there, for a minute at most.

        Args:
            access: Who may read a root that is made now: ``private`` or ``group``.

        Raises:
            ConfigError: If a group is to share a root that is private.
            StorageError: If the root cannot be used.
        """
        if self.is_local:
            with self._explained("write", ""):
                open_root(Path(self.root), access)
        tried = Files(self.root, patience=TRIAL)
        probe = f".probe-{uuid.uuid4().hex}"
        if not self.is_local:
            tried.names("")  # a silent server is given up sooner at a read than at a write
        tried.write(probe, b"distmil")
        tried.delete(probe)

    def write(self, name: str, data: bytes | pa.Buffer, *, is_durable: bool = True) -> None:
        """Write a file so that it is there whole, or not at all.

        Args:
            name: The file.
            data: Its content.
            is_durable: The file survives a loss of power; else only the end of the process.

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

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none if it is absent."""
        with self._explained("list", folder):
            filesystem, path = self._located(folder)
            found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

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
        self.write(name, encode_json(values), is_durable=is_durable)

    def read_json(self, name: str) -> Any:
        """Read JSON. Raises: FileNotFoundError, StorageError."""
        data = self.read(name)
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self.path(name)} is damaged: {error}; delete it and run again") from error

    def write_checked(self, name: str, values: Any, *, owner: str, is_durable: bool = True) -> None:
        """Write values as JSON with a checksum of them and their owner; see ``write_json``."""
        self.write_json(name, {"values": values, "sha256": digest_of([owner, values])}, is_durable=is_durable)

    def read_checked(self, name: str, *, owner: str) -> Any:
        """Read a file of ``write_checked`` and compare its checksum.

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
        if "values" not in found or found.get("sha256") != digest_of([owner, found["values"]]):
            raise StorageError(
                f"{self.path(name)} is damaged: its checksum differs; delete it and run the same command again"
            )
        return found["values"]

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


def read_file(uri: str, *, key: str) -> bytes:
    """Read a single file on an object store, with the patience of a first try.

    Args:
        uri: The given URI.
        key: The configuration key or option that holds it, for the messages.

    Raises:
        ConfigError: If the URI cannot be used.
        FileNotFoundError: If the file is absent.
        StorageError: If the store does not answer.
    """
    base, mark, options = resolve_root(uri, key=key).partition("?")
    folder, _, name = base.rpartition("/")
    if folder.endswith("/"):
        raise ConfigError(f"{key} = {uri!r}: expected {folder}/bucket/file")
    return Files(f"{folder}{mark}{options}", patience=TRIAL).read(name)
