"""Detail of coarse samples by the colors of fine pixels: neighbors that look alike are taken to be alike.

Paper: Kopf, Cohen, Lischinski & Uyttendaele (2007), Joint bilateral upsampling, ACM TOG 26(3), 96.
Code: written from the paper for HyperFuse, Apache-2.0.

Notes
-----
A fine pixel's weights on the coarse samples around it fall with their distance and with the difference between its own
color and the mean color of the sample's pixels. Of the result only what varies within a coarse pixel is given: what the
samples are at their own resolution, others know better.
"""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d, pad

from hyperfuse.models.operators import upsample

NEIGHBORS = 2
"""Coarse samples to each side that a fine pixel looks at."""
REACH = NEIGHBORS + 3
"""Coarse pixels around a window after which nothing changes it: the neighbors', and those of the interpolation."""
_NEAR_PX = 1.0
"""Standard deviation of the weight of distance (coarse px)."""
_ALIKE = 0.8
"""Standard deviation of the weight of color, in the scene's own standard deviations."""
_LEAST = 1e-6
"""Weight of a neighbor of any color, so that an odd pixel still has some."""


def guided_detail(samples: torch.Tensor, known: torch.Tensor, colors: torch.Tensor, ratio: int) -> torch.Tensor:
    """What varies of coarse samples within their pixels, guessed by color.

    Parameters
    ----------
    samples : Tensor, shape (N, P, h, w)
    known : Tensor, shape (N, 1, h, w), bool
        Samples that count.
    colors : Tensor, shape (N, G, h * ratio, w * ratio)
        Each with a standard deviation of 1 in the scene.
    ratio : int

    Returns
    -------
    Tensor, shape (N, P, h * ratio, w * ratio)
    """
    height, width = samples.shape[-2:]
    # What a neighbor offers: its samples, whether it counts, and its color.
    offers = torch.cat([samples * known, known.to(samples), avg_pool2d(colors, ratio)], dim=1)
    offers = pad(offers, (NEIGHBORS,) * 4, mode="replicate")
    n_planes = samples.shape[1]
    phase = (torch.arange(ratio, device=samples.device) + 0.5) / ratio - 0.5
    total = torch.zeros_like(colors[:, :1]).repeat(1, n_planes, 1, 1)
    weights = torch.zeros_like(colors[:, :1])
    for down in range(2 * NEIGHBORS + 1):
        for right in range(2 * NEIGHBORS + 1):
            offer = offers[..., down : down + height, right : right + width]
            offer = offer.repeat_interleave(ratio, dim=-2).repeat_interleave(ratio, dim=-1)
            y, x = ((at - NEIGHBORS - phase).square() for at in (down, right))
            near = torch.exp(-0.5 * (y[:, None] + x) / _NEAR_PX**2).repeat(height, width)
            apart = (colors - offer[:, n_planes + 1 :]).square().sum(dim=1, keepdim=True)
            weight = near * (torch.exp(-0.5 * apart / _ALIKE**2) + _LEAST) * offer[:, n_planes : n_planes + 1]
            total.addcmul_(weight, offer[:, :n_planes])
            weights += weight
    guessed = total / weights.clamp_min(_LEAST**2)
    return guessed - upsample(avg_pool2d(guessed, ratio), ratio)
