"""The versions that a bug report needs, read from the installed packages' metadata without importing them."""

import importlib.metadata
import platform

import distmil

PACKAGES = ("torch", "ray", "mlflow")


def version_text() -> str:
    """Write distmil's version, Python's, and those of the large libraries, a line each."""
    return "\n".join(
        [f"distmil {distmil.__version__}", f"python {platform.python_version()}", *map(_package_line, PACKAGES)]
    )


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_line(name: str) -> str:
    return f"{name} {version_of(name) or 'is not installed'}"
