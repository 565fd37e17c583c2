"""Which engine computes an encoder and in which precision: the part of it that decides the embeddings, and the rest."""

import hashlib
from dataclasses import dataclass
from typing import Any

from distmil.config.data import DEFAULT_BATCH


@dataclass(frozen=True)
class EngineChoice:
    """An engine with everything that its embeddings depend on, ready to be built by any worker."""

    engine: str
    """torch, openvino or compile."""
    precision: str
    """fp32, bf16, fp16 or int8."""
    full_layers: int = 0
    """Number of first layers that stay in fp32 though the precision is lower."""
    model_digest: str | None = None
    """Digest of the quantised model in the store; None: the engine is built from the encoder's weights."""
    batch_size: int = DEFAULT_BATCH
    """Patches per forward pass that were fastest; it does not belong to the identity."""

    @property
    def is_plain(self) -> bool:
        """Return whether this is torch in fp32, by which every embedding without a named engine was made."""
        return (self.engine, self.precision) == ("torch", "fp32")

    @property
    def is_compiled(self) -> bool:
        """Return whether the engine takes batches of one size alone."""
        return self.engine == "compile"

    @property
    def words(self) -> str:
        """Word the choice."""
        layers = "layer" if self.full_layers == 1 else f"{self.full_layers} layers"
        return f"{self.engine} {self.precision}" + (f", the first {layers} in fp32" if self.full_layers else "")

    def identity(self) -> dict[str, Any]:
        """Name what embeddings depend on."""
        return {
            "engine": self.engine,
            "precision": self.precision,
            "full_layers": self.full_layers,
            "model": self.model_digest,
        }


def digest_of_model(packed: bytes) -> str:
    """Return a checksum of a quantised model."""
    return hashlib.sha256(packed).hexdigest()


def model_file(digest: str) -> str:
    """Return the place of a quantised model in the store."""
    return f"engines/{digest[:16]}.zip"
