"""Patches to embeddings: the built-in texture encoder, and torchvision's ResNets with weights from anywhere.

An encoder is known by its name and the digest of its weights, so that the same weights are the same encoder whether
they came by name, from a file or out of a bundle. Weights are kept once in the store, where every worker reads them.
torch and torchvision take seconds to import, so ``distmil.encoders.resnet`` is loaded only where a ResNet is wanted.

N patches, E embedding.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distmil.config.data import EncoderConfig
from distmil.encoders.engines.choice import EngineChoice
from distmil.encoders.texture import DIMENSION as TEXTURE_DIMENSION
from distmil.encoders.texture import texture
from distmil.errors import EncoderError, StorageError
from distmil.storage.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXTURE_VERSION = 1
RESNET_DIMENSIONS = {"resnet18": 512, "resnet50": 2048}


class Encoder(Protocol):
    """What embeds patches."""

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, N x E, of RGB patches."""
        ...


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder that every worker can load: its name, the digest of its weights, and where the store keeps them."""

    name: str
    digest: str
    dimension: int
    weights_file: str | None
    engines: tuple[EngineChoice, ...] = ()
    """What computes each of its networks, once that is chosen; none: torch in fp32."""

    def identity(self) -> dict[str, str]:
        """Name the encoder and its weights, on which embeddings depend."""
        return {"name": self.name, "digest": self.digest}


class TextureEncoder:
    """The built-in encoder without weights; see ``distmil.encoders.texture``."""

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, N x E, of RGB patches."""
        return texture(images_NHWC)


def prepare_encoder(config: EncoderConfig, store: Store, *, state: "Mapping[str, Tensor] | None" = None) -> EncoderSpec:
    """Find an encoder's weights and put them into the store, unless they are there.

    Args:
        config: The encoder's section.
        store: Where the weights go.
        state: Weights to take in place of the configured ones (out of a bundle).

    Raises:
        ConfigError: If the file or the weights name does not exist.
        EncoderError: If the weights cannot be had or do not fit.
    """
    if config.name == "texture":
        return stored_spec("texture", f"v{TEXTURE_VERSION}")
    resnet = _resnet()
    state = resnet.load_state(config) if state is None else state
    spec = stored_spec(config.name, resnet.state_digest(state))
    if not _is_stored(spec, store):
        store.write(str(spec.weights_file), resnet.encode_state(state))
    return spec


def load_encoder(spec: EncoderSpec, store: Store, *, device: str = "cpu") -> Encoder:
    """Load a prepared encoder in evaluation mode. Raises: StorageError if its weights are damaged or gone."""
    state = None if spec.weights_file is None else _stored_state(spec, store)
    return load_carried(spec.name, state, device=device)


def load_carried(name: str, state: "Mapping[str, Tensor] | None", *, device: str = "cpu") -> Encoder:
    """Load an encoder in evaluation mode from weights in memory, as a bundle carries them.

    Args:
        name: The encoder's.
        state: Its weights; None for the texture encoder, which has none.
        device: Where it runs.

    Raises:
        EncoderError: If the weights do not fit.
    """
    if state is None:
        return TextureEncoder()
    encoder: Encoder = _resnet().load_module(name, state, device=device)
    return encoder


def stored_spec(name: str, digest: str) -> EncoderSpec:
    """Describe an encoder whose weights are in the store, by what ``EncoderSpec.identity`` says of it."""
    if name == "texture":
        return EncoderSpec(name, digest, TEXTURE_DIMENSION, None)
    return EncoderSpec(name, digest, RESNET_DIMENSIONS[name], f"encoders/{name}-{digest[:16]}.safetensors")


def load_trainable(spec: EncoderSpec, store: Store) -> "nn.Module":
    """Load a prepared encoder as a module to train. Raises: ValueError if it has nothing to train."""
    if spec.weights_file is None:
        raise ValueError(f"{spec.name} has nothing to train")
    module: nn.Module = _resnet().load_module(spec.name, _stored_state(spec, store), device="cpu")
    return module


def encoder_state(spec: EncoderSpec, store: Store, *, trained: "nn.Module | None") -> "dict[str, Tensor] | None":
    """Return the weights that a bundle carries: the trained encoder's, else those that made the embeddings, if any."""
    if spec.weights_file is None:
        return None
    module = trained if trained is not None else load_trainable(spec, store)
    state: dict[str, Tensor] = module.published_state()  # type: ignore[operator]
    return state


def _stored_state(spec: EncoderSpec, store: Store) -> "dict[str, Tensor]":
    """Read an encoder's weights and compare their digest.

    Raises:
        StorageError: If the stored weights are damaged, gone, or another encoder's.
    """
    assert spec.weights_file is not None
    resnet, where = _resnet(), store.path(spec.weights_file)
    remedy = "delete it and run the same command again"
    try:
        state: dict[str, Tensor] = resnet.decode_state(store.read(spec.weights_file))
    except FileNotFoundError as error:
        raise StorageError(f"{where} is gone; run the same command again") from error
    except EncoderError as error:
        raise StorageError(f"{where} is damaged: {error}; {remedy}") from error
    if resnet.state_digest(state) != spec.digest:
        raise StorageError(f"{where} is damaged: its weights are not those of its name; {remedy}")
    return state


def _is_stored(spec: EncoderSpec, store: Store) -> bool:
    """Return whether the store holds an encoder's weights, undamaged."""
    try:
        _stored_state(spec, store)
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return False
    return True


def _resnet() -> Any:
    return importlib.import_module("distmil.encoders.resnet")
