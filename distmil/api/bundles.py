"""Trained models for a notebook."""

from pathlib import Path

from distmil.errors import ConfigError
from distmil.inference.bundle import Bundle
from distmil.inference.bundle import load_bundle as load_from
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store


def load_bundle(place: str | Path, *, root: str | Path | None = None) -> Bundle:
    """Load a trained model: everything that scoring a slide needs.

    Args:
        place: A bundle's folder, its s3:// or gs:// URI, or the name of a run.
        root: The storage root whose runs are meant by a name; default: ``$DISTMIL_HOME``, else ``~/.distmil``.

    Raises:
        BundleError: If it is missing, unfinished, damaged, or of another format version.
        ConfigError: If a URI cannot be used.
    """
    text = str(place)
    if not text:
        raise ConfigError("place = '': give a bundle's folder, its URI, or the name of a run")
    where = resolve_root(text, key="place") if "://" in text else text
    store = Store(resolve_root(None if root is None else str(root), key="root"))
    return load_from(where, store, key="place")
