"""Where the store is: the configured root, the environment's, or the default."""

import os
import subprocess
from pathlib import Path

from distmil.errors import ConfigError
from distmil.storage.object_store import resolve_uri

DEFAULT_ROOT = "~/.distmil"
# Set by Ray for the entrypoint of a submitted job, whose working folder is thrown away.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
GIT_LIMIT_S = 10


def resolve_root(root: str | None, *, key: str = "storage.root") -> str:
    """Return the absolute storage root: a local path or an object store's URI.

    Args:
        root: The configured root; None: ``$DISTMIL_HOME``, else the default.
        key: The configuration key that holds it, for the messages.

    Raises:
        ConfigError: If the path is relative inside a Ray job, or the URI cannot be used.
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


def checkout_note(root: str) -> str | None:
    """Say that a storage root is inside a git checkout that does not ignore it; None elsewhere, or without git."""
    folder = Path(root)
    if "://" in root or not any((parent / ".git").exists() for parent in folder.parents):
        return None
    command = ["git", "-C", str(folder.parent), "check-ignore", "--quiet", f"{folder}/"]
    try:
        code = subprocess.run(command, capture_output=True, timeout=GIT_LIMIT_S, check=False).returncode  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    if code != 1:  # 0: it is ignored; 128: git cannot tell
        return None
    return (
        f"note: the storage root is inside a git checkout that does not ignore it; add {folder.name}/ to its "
        ".gitignore, or set storage.root to a folder elsewhere"
    )
