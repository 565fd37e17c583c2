"""Patches to embeddings: encoders by name, with weights from anywhere, one or several side by side.

An encoder is known by its name and the digest of its weights, so that the same weights are the same encoder whether
they came by name, from a file or out of a bundle. Weights are kept once in the store, where every worker reads them.
torch, torchvision and timm take seconds to import, so what needs them is loaded only where weights are.

N patches, E embedding.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distmil.config.data import EncoderConfig
from distmil.encoders.catalog.names import check_name, width_of
from distmil.encoders.engines.choice import EngineChoice
from distmil.encoders.texture import texture
from distmil.errors import EncoderError, StorageError
from distmil.storage.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXTURE_VERSION = 1


class Encoder(Protocol):
    """What embeds patches.

    An encoder with weights is a ``torch.nn.Module`` besides: its forward takes uint8 patches, N x H x W x 3, and
    returns float32 embeddings, N x E, with resizing, normalisation and output rule inside. Encoders side by side are
    a ``SideBySide``, whose parts are such encoders.
    """

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
    allow_remote_code: bool = False
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
        EncoderError: If the weights cannot be had or do not fit, or give another answer than when they were stored.
    """
    if config.name == "texture":
        return stored_spec("texture", f"v{TEXTURE_VERSION}")
    loading = _loading()
    if state is None:
        state = loading.load_state(config)
    spec = stored_spec(config.name, loading.digest_of(config.name, state))
    kept = _kept(spec, store)
    whole, width = loading.confirmed(config.name, kept or state, allow_remote_code=config.allow_remote_code)
    if kept is None:
        store.write(str(spec.weights_file), loading.encode_state(whole))
    return EncoderSpec(spec.name, spec.digest, width, spec.weights_file, config.allow_remote_code)


def load_encoder(spec: EncoderSpec, store: Store, *, device: str = "cpu") -> Encoder:
    """Load a prepared encoder in evaluation mode. Raises: StorageError if its weights are damaged or gone."""
    state = None if spec.weights_file is None else _stored_state(spec, store)
    return load_carried(spec.name, state, device=device, allow_remote_code=spec.allow_remote_code)


def load_carried(
    name: str, state: "Mapping[str, Tensor] | None", *, device: str = "cpu", allow_remote_code: bool = False
) -> Encoder:
    """Load an encoder in evaluation mode from weights in memory, as a bundle carries them.

    Args:
        name: The encoder's.
        state: Its weights; None for the texture encoder, which has none.
        device: Where it runs.
        allow_remote_code: Whether code from a hub may run.

    Raises:
        EncoderError: If the weights do not fit, or give another answer here than when they were first loaded.
    """
    if state is None:
        return TextureEncoder()
    encoder: Encoder = _loading().load(name, state, device=device, allow_remote_code=allow_remote_code)
    return encoder


def carried_spec(name: str, state: "Mapping[str, Tensor] | None") -> EncoderSpec:
    """Describe an encoder whose weights a bundle carries; None: the texture encoder, which has none."""
    return stored_spec(name, f"v{TEXTURE_VERSION}" if state is None else _loading().digest_of(name, state))


def stored_spec(name: str, digest: str) -> EncoderSpec:
    """Describe an encoder whose weights are in the store, by what ``EncoderSpec.identity`` says of it.

    Raises:
        ValueError: If there is no encoder of that name.
    """
    rows = check_name(name)
    file = f"encoders/{re.sub(r'[^a-z0-9]+', '_', name.lower())}-{digest[:16]}.safetensors"
    return EncoderSpec(name, digest, width_of(name) or 0, file if any(row.has_weights for row in rows) else None)


def with_width(spec: EncoderSpec, store: Store) -> EncoderSpec:
    """Complete a stored encoder whose name does not tell the length of its embeddings. Raises: StorageError."""
    if spec.dimension:
        return spec
    return replace(spec, dimension=_loading().width_in(spec.name, _stored_state(spec, store)))


def load_trainable(spec: EncoderSpec, store: Store) -> "nn.Module":
    """Load a prepared encoder as a module to train. Raises: ValueError if it has nothing to train."""
    if spec.weights_file is None or "+" in spec.name:
        raise ValueError(f"{spec.name} has nothing to train")
    module: nn.Module = _loading().load(
        spec.name, _stored_state(spec, store), device="cpu", allow_remote_code=spec.allow_remote_code
    )
    return module


def encoder_state(spec: EncoderSpec, store: Store, *, trained: "nn.Module | None") -> "dict[str, Tensor] | None":
    """Return the weights that a bundle carries: the trained encoder's, else those that made the embeddings, if any."""
    if spec.weights_file is None:
        return None
    if trained is None:
        return _stored_state(spec, store)
    merged = importlib.import_module("distmil.encoders.trainable").merged
    state: dict[str, Tensor] = merged(trained.published_state())  # type: ignore[operator]
    carried: dict[str, Tensor] = _loading().confirmed(spec.name, state, allow_remote_code=spec.allow_remote_code)[0]
    return carried


def _stored_state(spec: EncoderSpec, store: Store) -> "dict[str, Tensor]":
    """Read an encoder's weights and compare their digest.

    Raises:
        StorageError: If the stored weights are damaged, gone, or another encoder's.
    """
    assert spec.weights_file is not None
    loading, where = _loading(), store.path(spec.weights_file)
    remedy = "delete it and run the same command again"
    try:
        state: dict[str, Tensor] = loading.decode_state(store.read(spec.weights_file))
    except FileNotFoundError as error:
        raise StorageError(f"{where} is gone; run the same command again") from error
    except EncoderError as error:
        raise StorageError(f"{where} is damaged: {error}; {remedy}") from error
    if loading.digest_of(spec.name, state) != spec.digest:
        raise StorageError(f"{where} is damaged: its weights are not those of its name; {remedy}")
    return state


def _kept(spec: EncoderSpec, store: Store) -> "dict[str, Tensor] | None":
    """Return an encoder's weights with its golden vector as the store holds them, undamaged; None if it does not."""
    try:
        state = _stored_state(spec, store)
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return None
    return state if _loading().has_golden(spec.name, state) else None


def _loading() -> Any:
    return importlib.import_module("distmil.encoders.loading")
