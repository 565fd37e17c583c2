"""Which code made a result: the version, a digest of the package's files, and the commit of the working folder."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import distmil

_TIMEOUT_S = 10


def code_tags(folder: Path | None = None) -> dict[str, str]:
    """Make tags that name the code.

    Args:
        folder: A folder that may be a git checkout; default: the current one.
    """
    tags = {"distmil.version": distmil.__version__, "distmil.source_digest": source_digest()}
    return tags | git_tags(folder or Path())


def source_digest(folder: Path | None = None) -> str:
    """Digest the names and contents of a package's source files, by default of distmil's own."""
    root = folder or Path(distmil.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()}\n{len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()


def git_tags(folder: Path) -> dict[str, str]:
    """Read, by MLflow's names, the commit that a folder has checked out and whether files differ; {} without git."""
    git = shutil.which("git")
    commit = git and _run(git, folder, "rev-parse", "--verify", "HEAD")
    if not git or not commit:
        return {}
    changed = _run(git, folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": "false" if changed == "" else "true"}


def _run(git: str, folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments)
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
