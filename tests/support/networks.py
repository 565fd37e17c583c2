"""A network of a few layers that embeds patches, with statistics of its own, and patches for it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class TinyNetwork(nn.Module):
    """Convolutions of three kinds with batch norms, a sum around one of them, and a linear layer; E = 24."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.last = nn.Linear(16, 24)  # not in the order in which they run
            self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
            self.deep, self.deep_norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
            self.point, self.point_norm = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
            for norm in (self.stem_norm, self.deep_norm, self.point_norm):
                nn.init.uniform_(norm.running_mean, -0.2, 0.2)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
        self.eval()

    def forward(self, images_NHWC: Tensor) -> Tensor:
        images = images_NHWC.permute(0, 3, 1, 2).float().div(127.5) - 1
        first = self.stem_norm(self.stem(images)).relu()
        second = self.deep_norm(self.deep(first)).relu()
        embedding_NE: Tensor = self.last((self.point_norm(self.point(second)) + first).mean((2, 3)))
        return embedding_NE.float()


def patches(count: int, height: int, width: int, *, seed: int) -> NDArray[np.uint8]:
    """Draw patches, each of a colour of its own with noise, N x H x W x 3."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 200, (count, 1, 1, 3))
    return (colour + generator.integers(0, 56, (count, height, width, 3))).astype(np.uint8)
