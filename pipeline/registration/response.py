"""Which combination of the HSI's channels each MSI band really sees, learned from the pair where it lies well enough.

Band tables are wrong for a panchromatic band, for a sensor that the catalog does not know, and where the HSI covers a band
by half: the structure that such a target has and the MSI has not pulls tie points aside, alike in all windows of a kind.
"""

from __future__ import annotations

import numpy as np

from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.registration.tie_points import cut, least_squares, trend
from hyperfuse.pipeline.registration.views import Array, View

_RIDGE = 1e-3
"""Of the channels' variance: far below any signal, above what two channels that show the same differ by."""


def moments(view: View, displacement: Displacement) -> Array:
    """Second moments, within each tie-point window, of the HSI's channels followed by the MSI's bands.

    Returns
    -------
    ndarray, shape (window, channel + band, channel + band)
        About the window's trend, over the pixels that are valid in both images.
    """
    edge = view.survey.edge
    samples = view.samples(view.survey.moves(displacement, view.x, view.y))
    both = np.concatenate([view.channels, samples]).astype(np.float64)
    valid = np.isfinite(both).all(axis=0)
    values = cut(np.asarray(np.where(valid, both, 0.0)), edge).transpose(0, 2, 1)
    weight = cut(np.asarray(valid, np.float64), edge)
    terms = np.broadcast_to(trend(edge), (len(weight), edge * edge, 3))
    rest = values - terms @ least_squares(terms, values, weight)
    return np.asarray((rest * weight[..., None]).transpose(0, 2, 1) @ rest)


def learned(moments_: Array, n_bands: int) -> Array:
    """Weights of the channels in each of the MSI's bands, shape (band, channel), from the moments of some windows."""
    total = moments_.sum(axis=0)
    n_channels = len(total) - n_bands
    channels, cross = total[:n_channels, :n_channels], total[:n_channels, n_channels:]
    spread = np.sqrt(np.maximum(np.diag(channels), 1e-30))
    alike = channels / np.outer(spread, spread)
    weights = np.linalg.solve(alike + _RIDGE * np.eye(n_channels), cross / spread[:, None])
    return np.asarray((weights / spread[:, None]).T)
