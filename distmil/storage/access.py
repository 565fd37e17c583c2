"""Who may read what distmil writes: this user alone, or the group that may write the store's root."""

import stat
from dataclasses import dataclass
from pathlib import Path

from distmil.errors import ConfigError


@dataclass(frozen=True)
class Access:
    """Permissions of new folders, and what follows from them for files."""

    folder_mode: int

    @property
    def file_mode(self) -> int:
        """Return the permissions of new files."""
        return self.folder_mode & 0o666

    @property
    def umask(self) -> int:
        """Return the mask under which other libraries make files with the same permissions."""
        return 0o777 & ~self.folder_mode


PRIVATE = Access(0o700)
GROUP = Access(0o2770)  # what is made below belongs to the same group
NEW = {"private": PRIVATE, "group": GROUP}
"""What a root that distmil makes gets, by ``storage.access``."""


def access_of(root: Path) -> Access:
    """Read the access to a store off its root: what its group may write is shared, all else is private."""
    try:
        mode = stat.S_IMODE(root.stat().st_mode)
    except FileNotFoundError:
        return PRIVATE
    return Access(mode) if mode & stat.S_IWGRP else PRIVATE


def open_root(root: Path, access: str) -> None:
    """Make a store's root where it is absent.

    Args:
        root: The folder.
        access: ``storage.access``.

    Raises:
        ConfigError: If the root is there and private, but a group is to share it; if it is where folders cannot be.
        OSError: If it cannot be made.
    """
    try:
        make_folder(root, NEW[access])
    except FileNotFoundError as error:  # all folders above it are there: it is no disk, such as /proc
        raise ConfigError(
            f"storage.root = {str(root)!r}: no folder can be made there; choose a folder on a disk that you may write"
        ) from error
    if access == "group" and not root.stat().st_mode & stat.S_IWGRP:
        raise ConfigError(
            f"storage.access = 'group': {root} is there already, and its group may not write it; run "
            f"`chmod g+rwxs {root}` (and `chmod -R g+rwX` for what is in it), or choose another storage.root"
        )


def make_folder(folder: Path, access: Access) -> None:
    """Make a folder and all above it that are absent, whatever the process's mask."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent, access)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # another process made it
        if not folder.is_dir():
            raise
        return
    folder.chmod(access.folder_mode)
