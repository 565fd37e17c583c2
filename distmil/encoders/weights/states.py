"""Weights as tensors by name: their file, their digest, and what is kept beside them.

Beside the weights a state may hold entries whose names begin with ``distmil.``: the encoder's row where its name does
not say it all, and its answer to a fixed image with the versions that gave it.
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from distmil.errors import EncoderError

State = dict[str, Tensor]

OWN = "distmil."
ROW = f"{OWN}row"
GOLDEN = f"{OWN}golden"
VERSIONS = f"{OWN}versions"
_NO_IDENTITY = (GOLDEN, VERSIONS)
# What the loaders of safetensors and torch raise on a damaged or unwanted file.
DAMAGED = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError)
_PREFIXES = ("module.", "model.", "encoder.", "backbone.", "resnet.")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "student")


def canonical(state: Mapping[str, Tensor]) -> State:
    """Select the weights that matter, in a fixed order, without batch counters."""
    return {
        key: value.detach().contiguous() if value.is_meta else value.detach().cpu().contiguous()
        for key, value in sorted(state.items())
        if not key.endswith("num_batches_tracked")
    }


def fitting(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, origin: str, names: str) -> State:
    """Return of a state what is wanted.

    Args:
        state: Weights by name.
        wanted: The network's own.
        origin: Where the weights come from, for the message.
        names: Whose names are expected, such as "timm's vit_base_patch16_224".

    Raises:
        EncoderError: If something is missing or has another shape.
    """
    wrong = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    if wrong or missing:
        shapes = f": {tuple(state[wrong[0]].shape)} for {tuple(wanted[wrong[0]].shape)}" if wrong else ""
        raise EncoderError(
            f"{origin} does not fit: {len(missing)} of {len(wanted)} tensors are missing"
            f"{f' (such as {missing[0]})' if missing else ''}, {len(wrong)} have another shape"
            f"{f' (such as {wrong[0]}{shapes})' if wrong else ''}; expected the names and shapes of {names}"
        )
    return {key: state[key] for key in wanted if key in state}


def encode_state(state: Mapping[str, Tensor]) -> bytes:
    """Return weights as a safetensors file."""
    data: bytes = save_safetensors(dict(state))
    return data


def decode_state(data: bytes) -> State:
    """Return the weights in a safetensors file. Raises: EncoderError if it is damaged."""
    try:
        state: State = load_safetensors(data)
    except DAMAGED as error:
        raise EncoderError(f"not a safetensors file: {str(error).splitlines()[0]}") from error
    return state


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return a checksum of names, types, shapes and values, without what is only remembered of them."""
    digest = hashlib.sha256()
    for key in sorted(state):
        if key.endswith(_NO_IDENTITY):
            continue
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def weights_in(state: Mapping[str, Tensor]) -> State:
    """Return the weights of a state without what is kept beside them."""
    return {key: value for key, value in state.items() if not key.startswith(OWN)}


def text_tensor(text: str) -> Tensor:
    """Return text as a tensor of bytes."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def tensor_text(tensor: Tensor) -> str:
    """Return the text in a tensor of bytes. Raises: UnicodeDecodeError."""
    return tensor.numpy().tobytes().decode()


def part_of(state: Mapping[str, Tensor], number: int) -> State:
    """Return the state of one of several encoders."""
    prefix = f"{number}/"
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def joined(states: list[State]) -> State:
    """Return the states of several encoders as one."""
    return {f"{number}/{key}": value for number, state in enumerate(states) for key, value in state.items()}


def read_weights(path: Path) -> State:
    """Return a state dict from a file, never running code from it, with common wrappings taken off.

    Raises:
        EncoderError: If the file holds something else than tensors by name.
    """
    try:
        if path.suffix.lower() in {".safetensors", ""}:  # copies of committed files have no suffix
            values = load_safetensors(path.read_bytes())
        else:
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGED, OSError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(f"{path.name} cannot be loaded as tensors only: {text}") from error
    for wrapper in _WRAPPERS:
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise EncoderError(f"{path.name} holds no state dict (names to tensors)")
    for prefix in _PREFIXES:
        if values and all(key.startswith(prefix) for key in values):
            values = {key.removeprefix(prefix): value for key, value in values.items()}
    return {str(key): value for key, value in values.items()}
