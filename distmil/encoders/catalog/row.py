"""One encoder as data."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

Source = Literal["texture", "torchvision", "timm", "package", "remote", "own", "generic"]
Output = Literal["forward", "cls", "cls+mean", "mean", "pooler"]
Interpolation = Literal["bicubic", "bilinear"]
Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
HALF: Rgb = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class EncoderRow:
    """How an encoder is made, what it takes and what it gives."""

    name: str
    """As ``encoder.name`` has it."""
    source: Source
    """What builds the network; generic: any network of timm, known when it is built."""
    width: int | None = None
    """Length of an embedding; None: known when the network is built."""
    arch: str = ""
    """Name of the network at timm or torchvision."""
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the network; layers by their names."""
    hub: str | None = None
    """Repository of the weights on the Hugging Face hub, owner/name."""
    file: str | None = None
    """Name of the file of weights where it is not the usual one."""
    keys: Literal["timm", "vit", "dinov2"] = "timm"
    """Whose names the published weights have: timm's, or transformers' ViTModel or Dinov2Model."""
    input_px: int | None = None
    """Edge of the image that the network takes; None: patches of any size, as they are."""
    patch_px: tuple[int, ...] = ()
    """Edges of patches that fit, the usual one first; empty: any."""
    is_resizable: bool = False
    """Whether patches of other edges fit too, enlarged or reduced to ``input_px``."""
    crop_px: int | None = None
    """Patches of this edge are cut to their centre; all others are resized."""
    mpp: tuple[float, ...] = ()
    """Resolutions in um/px that the encoder was made for, the usual one first; empty: any."""
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    output: Output = "forward"
    """forward: what the network gives; cls, mean, cls+mean: of its tokens, the mean over those of the image alone;
    pooler: transformers' ``pooler_output``."""
    prefix_tokens: int = 1
    """Tokens before those of the image: the class token and registers."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """In which the authors run it."""
    licence: str = ""
    is_gated: bool = False
    """Whether its repository asks for an accepted licence and a token."""

    @property
    def has_weights(self) -> bool:
        """Return whether weights belong to it."""
        return self.source != "texture"

    @property
    def is_generic(self) -> bool:
        """Return whether its network is known when it is built alone, so that its weights must say what they are of."""
        return self.source == "generic"

    @property
    def origin(self) -> str:
        """Return where its weights come from, in words."""
        words = {
            "texture": "none needed",
            "torchvision": "pytorch.org",
            "package": "came with distmil's packages",
            "own": "its package",
            "generic": "timm's models",
        }
        return self.hub if self.hub else words.get(self.source, "a local folder")

    def to_json(self) -> str:
        """Return the row as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild the row of a generic encoder. Raises: ValueError, TypeError, AttributeError if it is none."""
        found = json.loads(text).items()
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found}
        row = cls(**values)
        if not row.is_generic:
            raise ValueError(f"{row.source} encoders are known by their names")
        return row


@dataclass(frozen=True)
class OwnRow(EncoderRow):
    """An encoder that a user's package builds."""

    build: Callable[[], Any] | None = field(default=None, compare=False)
    """Makes the network with its weights, a ``torch.nn.Module``."""
