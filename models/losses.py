"""Losses that the fusion networks are trained with, on outputs and targets in [-1, 1].

Sources: the code of CSAKD (arXiv:2406.19666, MIT) and of its authors' siblings PromptHSI and HSSDCT (MIT), written anew
for HyperFuse, Apache-2.0. `x` is the output, `y` the target, both (N, C, H, W); each loss is a scalar tensor.

Notes
-----
Where the released code departs from what the papers say, the default is what they say and the released form has a name:
`phi="released"`, `form="released"`. The sums that the papers train with are

- CSAKD teacher: pixel + 0.1 sam + 0.1 beba,
- CSAKD student: pixel + 0.1 response + 0.1 feature + 0.1 beba + 0.1 sam,
- HyFusion (weights unpublished; our choice): pixel + 0.1 sam + 0.01 wavelet.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F  # noqa: N812 (its customary name)

BAND_ENERGY_FLOOR = 0.1
"""Added to a band's mean square in `beba`."""
DARKEST = 1e-3
"""Least reflectance in `sam`'s unit space: a spectrum of zeros has no direction."""
SUBBAND_WEIGHT = 0.01
"""Of each band's mean absolute difference in each subband of `wavelet`."""
# fmt: off
SYM19 = (
    5.487732768215838e-07, -6.463651303345963e-07, -1.1880518269823984e-05, 8.873312173729286e-06,
    0.0001155392333357879, -4.612039600210587e-05, -0.000635764515004334, 0.00015915804768084938,
    0.0021214250281823303, -0.0011607032572062486, -0.005122205002583014, 0.007968438320613306,
    0.01579743929567463, -0.02265199337824595, -0.046635983534938946, 0.0070155738571741596,
    0.008954591173043624, -0.06752505804029409, 0.10902582508127781, 0.578144945338605,
    0.7195555257163943, 0.2582661692372836, -0.17659686625203097, -0.11624173010739675,
    0.09363084341589714, 0.08407267627924504, -0.016908234861345205, -0.02770989693131125,
    0.004319351874894969, 0.008262236955528255, -0.0006179223277983108, -0.0017049602611649971,
    0.00012930767650701415, 0.0002762187768573407, -1.6821387029373716e-05, -2.8151138661550245e-05,
    2.0623170632395688e-06, 1.7509367995348687e-06,
)
# fmt: on
"""Analysis low-pass of Daubechies' least asymmetric wavelet with 19 vanishing moments, as in PyWavelets 1.8 (MIT)."""


def pixel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Smooth L1: mean of d^2 / 2 where |d| < 1, of |d| - 1/2 elsewhere, d = x - y.

    References
    ----------
    CSAKD, arXiv:2406.19666, where the text calls it L1.
    """
    return F.smooth_l1_loss(x, y)


def absolute(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L1: mean of |d|, d = x - y; for residuals, of which most are small and some are edges."""
    return F.l1_loss(x, y)


def beba(x: torch.Tensor, y: torch.Tensor, *, phi: Literal["huber", "released"] = "huber") -> torch.Tensor:
    """Band-energy-balance-aware loss: mean over bands of mean(phi(x - y)) / (mean(y^2) + 0.1).

    Parameters
    ----------
    x, y : Tensor, shape (N, C, H, W)
    phi : {"huber", "released"}
        Huber's function with beta 1, or the released d^2 / 2 + max(|d| - 1, 0) - 1/2. That is Huber's but for the
        clip of the square at 1 and a constant: negative for small differences, with the same gradient for |d| < 1.

    Returns
    -------
    Tensor, scalar

    References
    ----------
    CSAKD, arXiv:2406.19666; with Huber's function in HSSDCT, arXiv:2602.00490.
    """
    if phi == "huber":
        penalty = F.smooth_l1_loss(x, y, reduction="none")
    else:
        d = x - y
        penalty = 0.5 * d**2 + (d.abs() - 1.0).clamp_min(0.0) - 0.5
    energy = y.square().mean(dim=(-2, -1)) + BAND_ENERGY_FLOOR  # (N, C)
    return (penalty.mean(dim=(-2, -1)) / energy).mean()


def sam(x: torch.Tensor, y: torch.Tensor, *, form: Literal["unit", "symmetric", "released"] = "unit") -> torch.Tensor:
    """Spectral angle: mean over pixels of arccos(<x, y> / (|x| |y|)), in radians.

    Parameters
    ----------
    x, y : Tensor, shape (N, C, H, W)
    form : {"unit", "symmetric", "released"}
        Angle of x / 2 + 1/2, not below 1e-3: the physical one, which the metric measures; angle of x as it is; or what
        CSAKD's code computes, one minus the cosine between runs of C neighboring values of the flattened image, which
        are pixels of one band and no spectra.

    Returns
    -------
    Tensor, scalar

    References
    ----------
    Kruse et al. (1993), The spectral image processing system (SIPS), RSE 44, 145-163; CSAKD, arXiv:2406.19666.

    Notes
    -----
    With unit vectors u and v the angle is computed as 2 atan2(|u - v|, |u + v|) (Kahan): unlike the arc cosine it has a
    finite slope at 0 and 180 degrees and keeps small angles in float32. A spectrum of zeros is 90 degrees from any
    other and 0 from itself.
    """
    if form == "released":
        n_bands = x.shape[1]
        return 1.0 - F.cosine_similarity(x.reshape(-1, n_bands), y.reshape(-1, n_bands), dim=1).mean()
    if form == "unit":
        x, y = ((t / 2 + 0.5).clamp_min(DARKEST) for t in (x, y))
    u, v = (F.normalize(t, dim=1, eps=1e-6) for t in (x, y))
    apart, along = (torch.linalg.vector_norm(t, dim=1) for t in (u - v, u + v))  # (N, H, W)
    # The least normal number keeps the angle, and its slope, of two spectra of zeros at 0.
    return 2.0 * torch.atan2(apart, along + torch.finfo(x.dtype).tiny ** 0.5).mean()


def wavelet(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Stationary wavelet loss: sum over bands and the subbands LL, LH, HL, HH of 0.01 mean |subband of x - y|.

    One level of sym19, undecimated, with periodic rims; the low-pass is divided by its sum, so that LL has the images'
    unit, and the high-pass is not. A mean over the batch, a sum over bands: it grows with their number.

    Parameters
    ----------
    x, y : Tensor, shape (N, C, H, W)

    Returns
    -------
    Tensor, scalar

    References
    ----------
    Named in HyFusion, arXiv:2501.04665; filters, weights and sums as in the code of PromptHSI and HSSDCT (MIT).
    """
    n_images, n_bands, height, width = x.shape
    low = torch.tensor(SYM19, dtype=x.dtype, device=x.device)
    # Quadrature mirror: high[k] = (-1)^(k + 1) low[L - 1 - k]. A convolution of torch is a correlation, hence the flips.
    sign = 1.0 - 2.0 * ((torch.arange(len(SYM19), device=x.device) + 1) % 2)
    filters = torch.stack([(low / low.sum()).flip(0), (sign * low.flip(0)).flip(0)])  # (2, L)
    # The transform is linear: the difference is transformed once, every band alone, rows first and columns after.
    d = (x - y).reshape(n_images * n_bands, 1, height, width)
    d = F.conv2d(_wrap(d, -2), filters[:, None, :, None])  # (N C, 2, H, W)
    d = F.conv2d(_wrap(d, -1), filters.repeat(2, 1)[:, None, None, :], groups=2)  # (N C, 4, H, W)
    return SUBBAND_WEIGHT * d.abs().mean(dim=(-2, -1)).sum() / n_images


def response(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Response distillation: smooth L1 between the outputs, with no gradient to the teacher.

    References
    ----------
    CSAKD, arXiv:2406.19666.
    """
    return F.smooth_l1_loss(student, teacher.detach())


def feature(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Feature distillation: mean binary cross-entropy of sigmoid(student) against sigmoid(teacher).

    No gradient reaches the teacher. The least value is the entropy of the teacher's features, not 0.

    References
    ----------
    CSAKD, arXiv:2406.19666.
    """
    return F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher.detach()))


def _wrap(d: torch.Tensor, dim: int) -> torch.Tensor:
    """The image, repeated before its start so that a filter's every output is one of its pixels; also if it is shorter."""
    size, before = d.shape[dim], len(SYM19) - 1
    return d.index_select(dim, torch.arange(-before, size, device=d.device) % size)
