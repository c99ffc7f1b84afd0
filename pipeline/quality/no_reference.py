"""Quality without a reference, on windows of the product: what fusion did to spectra and to space.

    D_lambda^K = 1 - Q2n(product * PSF, HSI)                 spectral distortion, at the coarse pixels
    D_s        = mean_b |Q(F_b, P_b) - Q(L_b, P_b * PSF)|    spatial distortion; P_b is the MSI band that is most like band b
    HQNR       = (1 - D_lambda^K) (1 - D_s)

Q is the universal image quality index on blocks of 8 x 8 coarse pixels and of the same ground at the fine ones; Q2n is
its extension to spectra, on blocks of up to 32 x 32 coarse pixels. They rank methods, they do not measure accuracy; the
parts say more than their product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.models.operators import degrade
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import decoded
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.psf import psf_reach
from hyperfuse.pipeline.quality.accumulators import F32

BLOCK = 32
"""Coarse pixels along the edge of a Q2n block and of a window."""
SMALL_BLOCK = 8
"""Coarse pixels along the edge of a block of Q."""
MAX_WINDOWS = 9
"""Windows over the scene, at most."""
MAX_SHARE = 0.15
"""Share of the scene that they may cover; one window is looked at whatever its share."""

F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NoReference:
    """Scores without a reference; 0 is best for the distortions, 1 for HQNR."""

    d_lambda_k: float
    """Spectral distortion."""
    d_s: float | None
    """Spatial distortion; None if a block has less than 8 x 8 coarse pixels."""
    hqnr: float | None
    """Both in one number."""
    windows: int
    """Windows that were looked at."""
    coarse_px: int
    """Coarse pixels along the edge of a window."""


def no_reference(job: StagedJob) -> NoReference | None:
    """Scores of a finished mosaic, None if no window is valid throughout.

    Parameters
    ----------
    job : StagedJob
        Staged and fused.

    References
    ----------
    Garzelli & Nencini (2009), Hypercomplex quality assessment of multi/hyperspectral images, IEEE GRSL 6(4), 662-665
    (Q2n); Khan, Alparone & Chanussot (2009), Pansharpening quality assessment using the modulation transfer functions of
    instruments, IEEE TGRS 47(11), 3880-3891 (D_lambda^K); Alparone et al. (2008), Multispectral and panchromatic data
    fusion assessment without reference, PE&RS 74(2), 193-200 (D_s); Wang & Bovik (2002), A universal image quality
    index, IEEE SPL 9(3), 81-84 (Q).
    """
    spectral, spatial, edge = [], [], 0
    # Smaller windows find their way between holes where larger ones do not.
    for most in (BLOCK, BLOCK // 2, SMALL_BLOCK):
        for window in sampled_windows(job, most):
            images = _read(job, window)
            if images is None:
                continue
            edge = min(window.shape)
            fused, msi, low, hsi, msi_low = images
            spectral.append(1.0 - q2n(low, hsi))
            if edge >= SMALL_BLOCK:
                spatial.append(_spatial(fused, msi, hsi, msi_low, job.grids.ratio))
        if spectral:
            break
    if not spectral:
        return None
    d_lambda = float(np.mean(spectral))
    d_s = float(np.mean(spatial)) if spatial else None
    hqnr = None if d_s is None else (1.0 - d_lambda) * (1.0 - d_s)
    return NoReference(d_lambda_k=d_lambda, d_s=d_s, hqnr=hqnr, windows=len(spectral), coarse_px=edge)


def sampled_windows(job: StagedJob, edge: int = BLOCK) -> list[Box]:
    """Windows of up to so many coarse pixels along an edge, evenly over the scene, whose PSF stays inside the product."""
    ratio, lead, (height, width) = job.grids.ratio, job.grids.lead, job.grids.product.shape
    margin = _margin(job)
    # Coarse pixels whose surroundings lie inside the product, which begins `lead` pixels after the coarse lattice.
    first = [-(-one // ratio) + margin for one in lead]
    last = [(one + size) // ratio - margin for one, size in zip(lead, (height, width), strict=True)]
    inside = [max(b - a, 0) for a, b in zip(first, last, strict=True)]
    edge = min(edge, *inside)
    if edge < 2:
        return []
    most = min(MAX_WINDOWS, max(int(MAX_SHARE * inside[0] * inside[1] / edge**2), 1))
    rows = min(max(round(math.sqrt(most * inside[0] / inside[1])), 1), inside[0] // edge)
    cols = min(max(most // rows, 1), inside[1] // edge)
    starts = [
        [begin + (size - edge * n) * (2 * i + 1) // (2 * n) + edge * i for i in range(n)]
        for begin, size, n in zip(first, inside, (rows, cols), strict=True)
    ]
    return [Box(y0=y, y1=y + edge, x0=x, x1=x + edge) for y in starts[0] for x in starts[1]]


def q2n(a: F32 | F64, b: F32 | F64) -> float:
    """Q2n of two cubes over one block.

    Parameters
    ----------
    a, b : ndarray, shape (band, y, x)
        Compared as they are: neither rounded nor normalized. Bands are padded with zeros to a power of two.

    Returns
    -------
    float
        1 for equal images, less otherwise; 1 too where both are constant and equal.

    Notes
    -----
    The product of two hypercomplex numbers is a signed sum over products of their components, so the covariance follows
    from the (band x band) moments, and costs a matrix product instead of a hypercomplex one per pixel.
    """
    x, y = (image.reshape(image.shape[0], -1).astype(np.float64) for image in (a, b))
    mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    var_x, var_y = float((x * x).sum() / x.shape[1]), float((y * y).sum() / y.shape[1])
    square_x, square_y = float(mean_x @ mean_x), float(mean_y @ mean_y)
    luminance = _ratio(2.0 * math.sqrt(square_x * square_y), square_x + square_y)
    # Contrast and correlation in one: the spreads of the one cancel in the other.
    structure = _ratio(2.0 * float(np.linalg.norm(_product(x @ y.T / x.shape[1]))), var_x + var_y)
    return luminance * structure


def uiqi(a: F64, b: F64) -> F64:
    """Universal image quality index of flattened blocks, shape (..., pixel) to (...)."""
    mean_a, mean_b = a.mean(axis=-1), b.mean(axis=-1)
    covariance = (a * b).mean(axis=-1) - mean_a * mean_b
    spread = a.var(axis=-1) + b.var(axis=-1)
    square = mean_a**2 + mean_b**2
    whole: F64 = np.divide(
        4.0 * covariance * mean_a * mean_b, spread * square, out=np.ones_like(square), where=spread * square > 0
    )
    return whole


def _spatial(fused: F64, msi: F64, hsi: F64, msi_low: F64, ratio: int) -> float:
    """D_s of one window; each band is compared with the MSI band that is most like it at the coarse pixels."""
    flat_hsi, flat_low = (image.reshape(image.shape[0], -1) for image in (hsi, msi_low))
    guide = np.abs(np.nan_to_num(_correlations(flat_hsi, flat_low))).argmax(axis=1)
    at_fine = uiqi(_blocks(fused, SMALL_BLOCK * ratio), _blocks(msi, SMALL_BLOCK * ratio)[guide]).mean(axis=1)
    at_coarse = uiqi(_blocks(hsi, SMALL_BLOCK), _blocks(msi_low, SMALL_BLOCK)[guide]).mean(axis=1)
    return float(np.abs(at_fine - at_coarse).mean())


def _correlations(a: F64, b: F64) -> F64:
    """Pearson correlation of every row of one with every row of the other; NaN for a constant row."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=1))[:, None] * np.sqrt((b * b).sum(axis=1))[None, :]
    found: F64 = np.divide(a @ b.T, norm, out=np.full_like(norm, np.nan), where=norm > 0)
    return found


def _blocks(image: F64, edge: int) -> F64:
    """Whole blocks of an image, shape (band, block, pixel)."""
    n_bands, height, width = image.shape
    rows, cols = height // edge, width // edge
    cut = image[:, : rows * edge, : cols * edge].reshape(n_bands, rows, edge, cols, edge)
    return cut.transpose(0, 1, 3, 2, 4).reshape(n_bands, rows * cols, edge * edge)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 1.0


def _product(moments: F64) -> F64:
    """Components of sum_ij m_ij e_i conj(e_j), whose units multiply as e_i e_j = +- e_(i xor j)."""
    n_bands = moments.shape[0]
    order = (n_bands - 1).bit_length()
    i, j = np.indices(moments.shape)
    signs = _signs(order)[:n_bands, :n_bands] * np.where(j > 0, -1.0, 1.0)
    return np.bincount((i ^ j).ravel(), (signs * moments).ravel(), minlength=1 << order).astype(np.float64)


@lru_cache(maxsize=4)
def _signs(order: int) -> F64:
    """Sign of e_i e_j in the Cayley-Dickson algebra of dimension 2^order.

    Doubling: (a, b)(c, d) = (a c - conj(d) b, d a + b conj(c)); conj turns the sign of all units but e_0.
    """
    if order == 0:
        return np.ones((1, 1))
    half = _signs(order - 1)
    conj = np.where(np.arange(len(half)) > 0, -1.0, 1.0)
    return np.block([[half, half.T], [half * conj[None, :], -(half * conj[:, None]).T]])


def _margin(job: StagedJob) -> int:
    """Coarse pixels around a window that its PSF reaches."""
    psf = job.observation.hsi_psf
    return psf_reach(job.grids.ratio, psf.sigma, max(abs(psf.y), abs(psf.x)))


def _read(job: StagedJob, window: Box) -> Sequence[F64] | None:
    """Product and MSI at fine pixels, and product, HSI and MSI at the coarse ones; None if one has a hole."""
    ratio, lead, psf, margin = job.grids.ratio, job.grids.lead, job.observation.hsi_psf, _margin(job)
    around = window.grown(margin).times(ratio)
    stored = store.read(
        store.open_array(job.fused),
        Box(y0=around.y0 - lead[0], y1=around.y1 - lead[0], x0=around.x0 - lead[1], x1=around.x1 - lead[1]),
    )
    fused = decoded(stored, job.staged.scale)
    msi = store.read(store.open_array(job.folder / "stage" / "msi.zarr"), around, np.array(job.staged.msi.kept))
    msi = job.staged.as_fused(msi)
    hsi = store.read(store.open_array(job.folder / "stage" / "hsi.zarr"), window, np.array(job.staged.hsi.kept))
    if not all(np.isfinite(image).all() for image in (fused, msi, hsi)):
        return None
    low, msi_low = (
        degrade(torch.from_numpy(np.ascontiguousarray(image)), ratio, psf.sigma, (psf.y, psf.x)).numpy()[
            :, margin:-margin, margin:-margin
        ]
        for image in (fused, msi)
    )
    inner = (slice(None), *2 * (slice(margin * ratio, -margin * ratio),))
    return [image.astype(np.float64) for image in (fused[inner], msi[inner], low, hsi, msi_low)]
