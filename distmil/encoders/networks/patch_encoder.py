"""A network as an encoder: uint8 patches in, embeddings out, with its own transform and output rule.

N patches, E embedding; H, W, C of an image; T tokens.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.weights.states import ROW, State, canonical, text_tensor


class PatchEncoder(nn.Module):
    """A network without its classifier on RGB patches; resizing, normalisation and output rule are built in.

    Batch normalisation keeps its statistics in training too: a step's patches come from a few slides.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, row: EncoderRow, net: nn.Module) -> None:
        super().__init__()
        self.row = row
        self.net = net
        self.register_buffer("mean", torch.tensor(row.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(row.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """Return embeddings, N x E, float32, of uint8 RGB patches."""
        return self.from_sized(self.at_size(images_NHWC))

    def from_sized(self, images_NCHW: Tensor) -> Tensor:
        """Return embeddings of what ``at_size`` gives."""
        return self._output((images_NCHW - self.mean) / self.std).float()

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, N x E, of RGB patches."""
        with torch.inference_mode():
            device = self.mean.device
            return np.asarray(self(torch.from_numpy(images_NHWC).to(device)).cpu().numpy())

    def published_state(self) -> State:
        """Return the weights, and the row where the name does not say it all, as ``load_module`` takes them."""
        beside = {ROW: text_tensor(self.row.to_json())} if self.row.is_generic else {}
        return canonical(self.net.state_dict()) | beside

    def train(self, mode: bool = True) -> "PatchEncoder":
        """Switch to training, but for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def at_size(self, images_NHWC: Tensor) -> Tensor:
        """Cut or resize uint8 patches to what the network takes, N x C x H x W, float32 from 0 to 1."""
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).float().div(255)
        row, (height, width) = self.row, images_NCHW.shape[-2:]
        edge = row.input_px
        if edge is None or (height, width) == (edge, edge):
            return images_NCHW
        if row.crop_px is not None and height == width == row.crop_px:
            start = (row.crop_px - edge) // 2
            return images_NCHW[..., start : start + edge, start : start + edge]
        resized = functional.interpolate(
            images_NCHW, size=(edge, edge), mode=row.interpolation, antialias=True, align_corners=False
        )
        return resized.clamp(0, 1)  # bicubic overshoots

    def _output(self, images_NCHW: Tensor) -> Tensor:
        """Return embeddings of normalised images by the output rule."""
        rule = self.row.output
        if rule == "forward":
            embedding_NE: Tensor = self.net(images_NCHW)
            return embedding_NE
        if rule == "pooler":
            pooled: Tensor = self.net(pixel_values=images_NCHW).pooler_output
            return pooled
        token_NTE: Tensor = self.net.forward_features(images_NCHW)  # type: ignore[operator]
        class_NE, mean_NE = token_NTE[:, 0], token_NTE[:, self.row.prefix_tokens :].mean(1)
        return {"cls": class_NE, "mean": mean_NE, "cls+mean": torch.cat([class_NE, mean_NE], 1)}[rule]
