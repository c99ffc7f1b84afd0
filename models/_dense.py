"""Residual-in-residual dense blocks, shared by the networks of one group of authors.

Paper: Wang et al. (2018), ESRGAN: enhanced super-resolution generative adversarial networks, ECCVW, arXiv 1809.00219.
Code: written from the paper for HyperFuse, Apache-2.0.

Notes
-----
CSAKD calls the dense unit MFB and the group CLRA; S3RNet calls them DFAB and (grouped) residual group. In a grouped
unit the maps are concatenated as they come, not interleaved, so the groups of later convolutions mix maps of several
earlier ones; that is kept.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from hyperfuse.models._winograd import SLOPE, dense_stack, pays

UNITS = 3
"""Dense units in a group."""
GROUP_REACH = UNITS * 5
"""Pixels that one group looks to each side: one per 3x3 convolution."""
_RESIDUAL = 0.2


class DenseUnit(nn.Module):
    """x + 0.2 * (five densely connected 3x3 convolutions), with a leaky ReLU after the first four."""

    def __init__(self, width: int, growth: int, *, groups: int = 1) -> None:
        super().__init__()
        self.growth = growth
        convs = [
            nn.Conv2d(width + i * growth, growth if i < 4 else width, kernel_size=3, padding=1, groups=groups)
            for i in range(5)
        ]
        self.convs = nn.ModuleList(convs)

    def initialize(self) -> None:
        """Kaiming's normal weights times 0.1, so that a fresh unit is nearly the identity; no bias."""
        for conv in cast("list[nn.Conv2d]", list(self.convs)):
            nn.init.kaiming_normal_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(0.1)
            nn.init.zeros_(cast("torch.Tensor", conv.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, width, H, W) -> the same."""
        convs = cast("list[nn.Conv2d]", list(self.convs))
        if pays(x, convs[0]):
            return dense_stack(x, convs).mul_(_RESIDUAL).add_(x)
        if torch.is_grad_enabled():
            maps = [x]
            for conv in convs[:4]:
                maps.append(functional.leaky_relu(conv(torch.cat(maps, dim=1)), SLOPE))
            return torch.add(x, convs[4](torch.cat(maps, dim=1)), alpha=_RESIDUAL)
        # Without gradients all maps live in one buffer: nothing is copied to concatenate.
        n_images, width, height, columns = x.shape
        buffer = x.new_empty(n_images, width + 4 * self.growth, height, columns)
        buffer[:, :width] = x
        for conv in convs[:4]:
            end = conv.in_channels
            buffer[:, end : end + self.growth] = functional.leaky_relu_(conv(buffer[:, :end]), SLOPE)
        return torch.add(x, convs[4](buffer), alpha=_RESIDUAL)


class Group(nn.Module):
    """x + 0.2 * (three dense units in a row)."""

    def __init__(self, width: int, growth: int, *, groups: int = 1) -> None:
        super().__init__()
        self.units = nn.Sequential(*(DenseUnit(width, growth, groups=groups) for _ in range(UNITS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, width, H, W) -> the same."""
        result: torch.Tensor = self.units(x).mul(_RESIDUAL).add(x)
        return result
