"""torchvision's ResNets as encoders, with weights by name, from a file, or none.

N patches, E embedding; H, W, C of an image.
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from distmil.config.data import EncoderConfig
from distmil.errors import ConfigError, EncoderError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PREFIXES = ("module.", "model.", "encoder.", "backbone.", "resnet.")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "student")
# What the loaders of safetensors and torch raise on a damaged or unwanted file.
_DAMAGED = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError)

State = dict[str, Tensor]


class ResNetEncoder(nn.Module):
    """A torchvision ResNet without its last layer, on RGB patches of any size; ImageNet's normalisation is built in.

    Batch normalisation keeps its statistics in training too: a step's patches come from a few slides.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = getattr(torchvision.models, name)(weights=None)
        self.net.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def load_state(self, state: Mapping[str, Tensor], *, origin: str) -> None:
        """Load a torchvision state dict without its last layer. Raises: EncoderError if it does not fit."""
        self.net.load_state_dict(_fitting(state, self.net.state_dict(), origin=origin), strict=False)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """Return embeddings, N x E, of uint8 RGB patches."""
        images = images_NHWC.permute(0, 3, 1, 2).float().div(255)
        embedding_NE: Tensor = self.net((images - self.mean) / self.std)
        return embedding_NE

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, N x E, of RGB patches."""
        with torch.inference_mode():
            device = self.mean.device
            return np.asarray(self(torch.from_numpy(images_NHWC).to(device)).float().cpu().numpy())

    def published_state(self) -> State:
        """Return the weights in torchvision's names, as ``load_state`` takes them."""
        return canonical(self.net.state_dict())

    def train(self, mode: bool = True) -> "ResNetEncoder":
        """Switch to training, but for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def load_module(name: str, state: Mapping[str, Tensor], *, device: str) -> ResNetEncoder:
    """Build an encoder in evaluation mode from its stored weights."""
    module = ResNetEncoder(name)
    module.load_state(state, origin=name)
    return module.to(device).eval()


# --- weights -----------------------------------------------------------------------------------------------------


def load_state(config: EncoderConfig) -> State:
    """Return the configured ResNet weights in torchvision's names, without the last layer.

    Raises:
        ConfigError: If the file or the weights name does not exist.
        EncoderError: If the file holds something else, or a download is not possible.
    """
    if config.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = getattr(torchvision.models, config.name)(weights=None).state_dict()
    elif Path(config.weights).suffix.lower() in {".safetensors", ".pt", ".pth", ".bin"}:
        state = _read_weights(Path(config.weights).expanduser())
    else:
        state = _download(config)
    with torch.device("meta"):
        wanted = canonical(getattr(torchvision.models, config.name)(weights=None).state_dict())
    return canonical(_fitting(state, wanted, origin=Path(config.weights).name))


def _fitting(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, origin: str) -> State:
    """Return of a state dict what is wanted. Raises: EncoderError if something is missing or has another shape."""
    wrong = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    if wrong or missing:
        raise EncoderError(
            f"{origin} does not fit: {len(missing)} of {len(wanted)} tensors are missing"
            f"{f' (such as {missing[0]})' if missing else ''}, {len(wrong)} have another shape"
            f"{f' (such as {wrong[0]})' if wrong else ''}; expected torchvision's names"
        )
    return {key: state[key] for key in wanted if key in state}


def canonical(state: Mapping[str, Tensor]) -> State:
    """Select a ResNet's weights that matter, in a fixed order, without the last layer and batch counters."""
    return {
        key: value.detach().contiguous() if value.is_meta else value.detach().cpu().contiguous()
        for key, value in sorted(state.items())
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }


def encode_state(state: Mapping[str, Tensor]) -> bytes:
    """Return weights as a safetensors file."""
    data: bytes = save_safetensors(dict(state))
    return data


def decode_state(data: bytes) -> State:
    """Return the weights in a safetensors file. Raises: EncoderError if it is damaged."""
    try:
        state: State = load_safetensors(data)
    except _DAMAGED as error:
        raise EncoderError(f"not a safetensors file: {str(error).splitlines()[0]}") from error
    return state


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return a checksum of names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _download(config: EncoderConfig) -> State:
    """Return torchvision's published weights by name."""
    choices = torchvision.models.get_model_weights(config.name)
    names = ["DEFAULT", *(weight.name for weight in choices)]
    if config.weights_name not in names:
        raise ConfigError(
            f"encoder.weights = {config.weights!r}: expected auto, {', '.join(names)}, random, "
            "or a file ending in .safetensors, .pt or .pth"
        )
    weights = choices[config.weights_name]
    try:
        state: State = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        file = weights.url.rpartition("/")[2]
        raise EncoderError(
            f"cannot download {config.name}'s weights {weights.name} ({error}). Ways out:\n"
            f"  - put the file {file} into {torch.hub.get_dir()}/checkpoints on this machine;\n"
            f"  - set encoder.weights to a local .safetensors or state-dict file;\n"
            f"  - set encoder.name=texture, which needs no weights;\n"
            f"  - set encoder.weights=random to try things out: such embeddings mean nothing"
        ) from error
    return state


def _read_weights(path: Path) -> State:
    """Return a state dict from a file, never running code from it, with common wrappings taken off."""
    if not path.is_file():
        raise ConfigError(f"encoder.weights = {str(path)!r}: there is no such file")
    try:
        if path.suffix.lower() == ".safetensors":
            values: Any = load_safetensors(path.read_bytes())
        else:
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (*_DAMAGED, OSError) as error:
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
