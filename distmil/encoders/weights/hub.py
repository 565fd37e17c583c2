"""Files of a repository on the Hugging Face hub, by the environment's token and cache, and why they are not had."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from distmil.encoders.catalog.row import EncoderRow
from distmil.errors import EncoderError

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin")
"""The usual names of a repository's weights, in order of preference."""


def weight_files(row: EncoderRow, get: Callable[[str], Path]) -> list[Path]:
    """Return the files of weights, all parts of them.

    Args:
        row: The encoder's.
        get: From a file's name to its path; raises FileNotFoundError where there is none.

    Raises:
        FileNotFoundError: If there are no weights.
        EncoderError: If the list of parts is damaged.
    """
    names = [*([row.file] if row.file else []), *WEIGHTS]
    for name in names:
        try:
            path = get(name)
        except FileNotFoundError:
            continue
        if name != INDEX:
            return [path]
        try:
            parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EncoderError(f"{INDEX} of {row.name} is damaged: {error}") from error
        return [get(part) for part in parts]
    raise FileNotFoundError(", ".join(names))


def from_hub(row: EncoderRow) -> Callable[[str], Path]:
    """Return a function that gets a file of the row's repository, kept in the hub's own cache.

    It raises FileNotFoundError where the repository has no such file, and EncoderError where it cannot be asked.
    """

    def get(name: str) -> Path:
        try:
            return Path(huggingface_hub.hf_hub_download(row.hub, name))
        except errors.LocalEntryNotFoundError as error:  # offline, or no network
            raise explain(row, error) from error
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(name) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise explain(row, error) from error

    return get


def folder_files(folder: Path) -> Callable[[str], Path]:
    """Return a function that finds a file of a local folder; it raises FileNotFoundError where there is none."""

    def get(name: str) -> Path:
        path = folder / Path(name).name
        if not path.is_file():
            raise FileNotFoundError(name)
        return path

    return get


def explain(row: EncoderRow, error: Exception) -> EncoderError:
    """Word why the hub did not give what was asked for, with the ways out."""
    page = f"{huggingface_hub.constants.ENDPOINT}/{row.hub}"
    has_token = huggingface_hub.get_token() is not None
    if _is_of(error, errors.GatedRepoError):
        why = f"{row.hub} is gated and this {'token has no access' if has_token else 'machine has no token'}"
        way = f"accept its licence on {page}, and set HF_TOKEN to a token of that account"
    elif _is_of(error, errors.RepositoryNotFoundError):
        why = f"the hub shows no repository {row.hub} {'to this token' if has_token else 'without a token'}"
        way = f"check the name; if it is private or gated, accept its licence on {page} and set HF_TOKEN"
    elif huggingface_hub.constants.HF_HUB_OFFLINE:
        why = f"HF_HUB_OFFLINE is set and {row.hub} is not in this machine's cache"
        way = "unset HF_HUB_OFFLINE for the first run"
    else:
        why = f"the hub did not answer for {row.hub} ({type(error).__name__}: {_first_line(error)})"
        way = "check this machine's network, or set HF_ENDPOINT to a mirror"
    return EncoderError(
        f"cannot get {row.name}: {why}. Ways out:\n"
        f"  - {way};\n"
        f"  - without a hub: download {page} elsewhere and set encoder.weights=/path/of/the/folder;\n"
        "  - set encoder.name=efficientnet_lite0, whose weights came with the packages"
    )


def _is_of(error: BaseException | None, kind: type[Exception]) -> bool:
    """Return whether an error, or one of its causes, is of a kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
