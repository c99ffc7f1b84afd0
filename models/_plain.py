"""A few plain convolutions at the fine pixels: the smallest core of a universal network, and no method by itself.

Paper: Kim, Lee & Lee (2016), Accurate image super-resolution using very deep convolutional networks, CVPR, arXiv
1511.04587, far shallower; the sums around each inner convolution after He et al. (2016), Deep residual learning for image
recognition, CVPR, arXiv 1512.03385.
Code: written for HyperFuse, Apache-2.0.

Notes
-----
Most of what a universal network is given has been looked for far away already: the estimate by kriging, the guessed detail
by color. What is left to learn is how much of each to believe, a matter of few pixels and few weights, of which the small
scenes at hand can be asked.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from hyperfuse.models.operators import upsample
from hyperfuse.models.spec import ModelSpec, Observed

_UPSAMPLE_REACH = 2
"""Coarse pixels."""
_SLOPE = 0.2
"""Of the leaky ReLU."""


class Plain(nn.Module):
    """Convolutions of 3 x 3 fine pixels over the first HSI band, interpolated, and all MSI bands.

    Parameters
    ----------
    msi_bands : int
    width : int
        Feature channels.
    depth : int
        Convolutions, at least 2.
    """

    def __init__(self, msi_bands: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(1 + msi_bands, width, 3, padding=1)
        self.body = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(depth - 2)])
        self.last = nn.Conv2d(width, 1, 3, padding=1, bias=False)

    def forward(self, hsi: torch.Tensor, msi: torch.Tensor) -> torch.Tensor:
        """(N, bands, h, w) and (N, c, H, W) -> (N, 1, H, W); HSI bands after the first are told by the MSI as well."""
        ratio = msi.shape[-1] // hsi.shape[-1]
        x = functional.leaky_relu(self.head(torch.cat([upsample(hsi[:, :1], ratio), msi], dim=1)), _SLOPE)
        for conv in self.body:
            x = x + functional.leaky_relu(conv(x), _SLOPE)
        return cast("torch.Tensor", self.last(x))


def specify(observed: Observed, *, width: int = 16, depth: int = 4) -> ModelSpec:
    """Needs of the network.

    Raises
    ------
    ValueError
        If an option is out of range.
    """
    if width < 1 or depth < 2:
        raise ValueError(f"width must be at least 1 and depth at least 2, got {width} and {depth}")
    reach = depth + _UPSAMPLE_REACH * observed.ratio  # fine pixels
    return ModelSpec(
        name="plain",
        observed=observed,
        halo=math.ceil(reach / observed.ratio),
        hsi_reach=math.ceil(reach / observed.ratio),
        msi_reach=depth,
        parameters=9 * width * (1 + observed.msi_bands + width * (depth - 2) + 1) + width * (depth - 1),
        options={"width": width, "depth": depth},
        needs_weights=True,
        work_floats=1 + observed.msi_bands + 2 * width,
    )


def build(spec: ModelSpec) -> Plain:
    """The network with seeded random weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Plain(spec.observed.msi_bands, **spec.options)
    return network.eval()
