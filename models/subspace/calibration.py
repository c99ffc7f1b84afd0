"""The coarse sensor's displacement and PSF, refined on the scene: what the samples themselves say of the operator.

A regression on the guides as they are believed to be seen, and on how these would change if the samples lay elsewhere or
were blurred otherwise, tells both: if every band errs alike, the three slopes of every component are the same multiples of
what the guides bring. The multiples are found by Gauss-Newton steps over all components at once, each from the operator
that the last one gave.

References: image registration by Gauss-Newton steps, Lucas & Kanade (1981), An iterative image registration technique
with an application to stereo vision, IJCAI, 674-679; variable projection, Golub & Pereyra (1973), The differentiation of
pseudo-inverses and nonlinear least squares problems whose variables separate, SIAM J. Numer. Anal. 10(2), 413-432.
Code: written from the references for HyperFuse, Apache-2.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hyperfuse.models.operators import CENTERED, Shift
from hyperfuse.models.subspace.regression import Field, whitened_gram

FARTHEST = 0.5
"""Displacement from the believed one (coarse pixels along an axis) up to which a refinement is believed."""
WIDEST, NARROWEST = 1.5, 0.6
"""PSF over the believed one within which a refinement is believed."""
_LEAST_PX, _LEAST_FACTOR = 0.02, 0.02
"""A displacement (coarse pixels) and a change of the PSF's width below which the believed operator is kept: bands of one
image are often displaced against each other by as much."""
_CLEAR = 5.0
"""Standard errors by which a refinement must differ from what was believed."""
_FEWEST = 16
"""Samples of a half, below which it bears nothing out."""
_APART = 0.5
"""Of a refinement: how far each half of the sample may be from it, and how unsure of it."""
_STEPS = 5
_JUMP_PX = 0.08
"""Jump of the displacement between neighboring bands (coarse pixels) from which on they belong to two detectors. What drifts
over the bands is no jump: their contents differ, and so does what the guides say of them."""
_SPREAD_PX = 0.02
"""Of the bands of one detector."""
_FEWEST_BANDS, _MOST_BANDS = 8, 20
"""Beside a jump."""
_MOST_DETECTORS = 3
_FIELD = Field(length=1.0, signal=10.0)
"""Of the residuals; what is common to neighbors must not count as many witnesses."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """How samples of a coarse sensor see fine pixels."""

    sigma_px: float
    """Standard deviation of the Gaussian PSF, in fine pixels."""
    shift_px: Shift = CENTERED
    """Rows and columns by which the samples lie beside the centers of their blocks, in fine pixels."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the scene says of the operator."""

    believed: Operator
    measured: Operator
    """At the optimum, whether it is taken or not."""
    shift_error_px: Shift
    """Standard errors of the displacement, in fine pixels."""
    sigma_error_px: float
    """Standard error of the PSF's width, in fine pixels."""
    operator: Operator
    """The measured one where it differs significantly and plausibly, else the believed one."""


def calibrated(
    believed: Operator,
    sampling: int,
    look: Callable[[Operator], torch.Tensor],
    values: torch.Tensor,
    valid: torch.Tensor,
) -> Calibration:
    """The operator of the largest likelihood around the one that is believed.

    Parameters
    ----------
    believed : Operator
    sampling : int
        Fine pixels from one sample to the next.
    look : callable
        Constant, guides, and the three slopes of each guide as an operator sees them: (M, 1 + 4 c, h, w), the slopes with
        respect to row, column (both per fine pixel) and variance (per fine pixel squared) one after the other.
    values : Tensor, shape (M, K, h, w), float64
        Components with noise of about equal variance.
    valid : Tensor, shape (M, h, w), bool
    """
    operator, errors = believed, torch.full((3,), math.inf, dtype=torch.float64)
    for _ in range(_STEPS):
        step, errors = _step(look(operator), values, valid, operator.sigma_px / sampling)
        operator = _moved(operator, step, believed, sampling)
    seen = look(operator)
    unknown = torch.full((3,), math.inf, dtype=torch.float64)
    halves = [
        _step(seen, values, half, operator.sigma_px / sampling) if int(half.sum()) >= _FEWEST else (unknown, unknown)
        for half in _halves(valid)
    ]
    calibration = Calibration(
        believed=believed,
        measured=operator,
        shift_error_px=(float(errors[0]), float(errors[1])),
        sigma_error_px=float(errors[2]) / (2 * operator.sigma_px),
        operator=believed,
    )
    return replace(calibration, operator=_taken(calibration, sampling, halves))


def _halves(valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples of every other patch, and of the others; of a single patch the upper and the lower ones."""
    first = torch.zeros_like(valid)
    if len(valid) > 1:
        first[::2] = True
    else:
        # By their number, not by the image: of a small scene only the middle may count.
        rows = valid[0].nonzero()[:, 0]
        first[:, : int(rows.median()) + 1 if len(rows) else 0] = True
    return valid & first, valid & ~first


def _step(
    seen: torch.Tensor, values: torch.Tensor, valid: torch.Tensor, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change of row, column and variance, and its standard errors, by one Gauss-Newton step."""
    columns = torch.cat([seen.double(), values], dim=1) * valid[:, None]
    gram = whitened_gram(columns.flatten(2).transpose(1, 2), valid.flatten(1), _FIELD, sigma)
    n_components = values.shape[1]
    n_guides = (seen.shape[1] - 1) // 4
    n_free, n_seen = 1 + n_guides, seen.shape[1]
    free = gram[:n_free, :n_free]
    free = free + 1e-9 * free.diagonal().mean().clamp_min(1e-30) * torch.eye(n_free, dtype=free.dtype)
    on_free = torch.linalg.solve(free, gram[:n_free])
    left = gram - gram[:, :n_free] @ on_free  # products of what the free columns do not explain
    guided = on_free[1:, n_seen:]  # (c, K)
    slopes = guided.new_zeros(n_components, 3 * n_guides, 3)
    for which in range(3):
        slopes[:, which * n_guides : (which + 1) * n_guides, which] = guided.T
    among, with_values = left[n_free:n_seen, n_free:n_seen], left[n_free:n_seen, n_seen:]
    noise = left.diagonal()[n_seen:].clamp_min(1e-30) / max(int(valid.sum()) - n_free, 1)
    information = torch.einsum("kai,ab,kbj,k->ij", slopes, among, slopes, 1 / noise)
    information += 1e-12 * information.diagonal().mean().clamp_min(1e-30) * torch.eye(3, dtype=information.dtype)
    step = torch.linalg.solve(information, torch.einsum("kai,ak,k->i", slopes, with_values, 1 / noise))
    return step, torch.linalg.inv(information).diagonal().clamp_min(0).sqrt()


def _moved(operator: Operator, step: torch.Tensor, believed: Operator, sampling: int) -> Operator:
    """The operator after a step, within what is believed possible."""
    farthest, width = FARTHEST * sampling, believed.sigma_px
    rows, cols = (
        min(max(at + float(change), center - farthest), center + farthest)
        for at, change, center in zip(operator.shift_px, step[:2], believed.shift_px, strict=True)
    )
    variance = operator.sigma_px**2 + float(step[2])
    sigma = math.sqrt(min(max(variance, (NARROWEST * width) ** 2), (WIDEST * width) ** 2))
    return Operator(sigma_px=sigma, shift_px=(rows, cols))


def _taken(found: Calibration, sampling: int, halves: list[tuple[torch.Tensor, torch.Tensor]]) -> Operator:
    """Displacement and width are taken each for itself, where it differs from what is believed by more than chance.

    Both halves of the sample must bear it out, each by itself: what a single object of the scene says, however clearly, is
    no calibration.
    """
    believed, measured = found.believed, found.measured
    away = [now - before for now, before in zip(measured.shift_px, believed.shift_px, strict=True)]
    distance = math.hypot(*away)
    error = math.hypot(*found.shift_error_px)
    plausible = max(map(abs, away)) < FARTHEST * sampling * (1 - 1e-6)
    factor = measured.sigma_px / believed.sigma_px
    plausible &= NARROWEST * (1 + 1e-6) < factor < WIDEST * (1 - 1e-6)
    if not plausible:
        return believed
    displaced = distance > max(_LEAST_PX * sampling, _CLEAR * error) and all(
        max(float(step[:2].norm()), float(errors[:2].norm())) < _APART * distance for step, errors in halves
    )
    change = abs(measured.sigma_px**2 - believed.sigma_px**2)
    blurred = abs(factor - 1.0) > max(_LEAST_FACTOR, _CLEAR * found.sigma_error_px / believed.sigma_px) and all(
        max(abs(float(step[2])), float(errors[2])) < _APART * change for step, errors in halves
    )
    return Operator(
        sigma_px=measured.sigma_px if blurred else believed.sigma_px,
        shift_px=measured.shift_px if displaced else believed.shift_px,
    )


def band_shifts(seen: torch.Tensor, bands: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the samples of each band lie from where the operator has them, by one Gauss-Newton step for each.

    Parameters
    ----------
    seen : Tensor, shape (M, 1 + 4 c, h, w)
        As `look` of `calibrated` gives it.
    bands : Tensor, shape (M, C, h, w)
    valid : Tensor, shape (M, h, w), bool

    Returns
    -------
    shifts, errors : Tensor, shape (C, 2), float64
        Rows and columns, fine pixels, and their standard errors.
    """
    x, y = (image.movedim(1, -1)[valid].double() for image in (seen, bands))
    n_free = 1 + (seen.shape[1] - 1) // 4
    free = x[:, :n_free]
    rest = torch.cat([x[:, n_free : n_free + 2 * (n_free - 1)], y], dim=1)
    on_free = torch.linalg.lstsq(free, rest, driver="gelsd").solution
    left = rest - free @ on_free
    slopes, values = left[:, : 2 * (n_free - 1)], left[:, 2 * (n_free - 1) :]
    guided = on_free[1:, 2 * (n_free - 1) :]  # (c, C)
    # Of each band: what a displacement along either axis would add.
    along = torch.stack([part @ guided for part in slopes.chunk(2, dim=1)], dim=2)  # (n, C, 2)
    information = torch.einsum("nci,ncj->cij", along, along)
    information += 1e-9 * information.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-30) * torch.eye(2, dtype=x.dtype)
    towards = torch.einsum("nci,nc->ci", along, values)
    shifts = torch.linalg.solve(information, towards[..., None])[..., 0]
    noise = (values.square().sum(dim=0) - (shifts * towards).sum(dim=1)).clamp_min(0) / max(len(x) - n_free, 1)
    errors = (torch.linalg.inv(information).diagonal(dim1=1, dim2=2) * noise[:, None]).sqrt()
    return shifts, errors


def detectors(shifts: torch.Tensor, errors: torch.Tensor, sampling: int) -> list[slice]:
    """Runs of bands between which the displacement jumps; one run if it does not.

    Parameters
    ----------
    shifts, errors : Tensor, shape (C, 2)
        From `band_shifts`, in fine pixels.
    sampling : int
        Fine pixels from one sample to the next.
    """
    weights = 1.0 / (errors.square().sum(dim=1) + (_SPREAD_PX * sampling) ** 2)
    runs = [slice(0, len(shifts))]
    for _ in range(_MOST_DETECTORS - 1):
        jumps = [(*_jump(shifts[run], weights[run]), run) for run in runs]
        size, at, run = max(jumps, key=lambda jump: jump[0])
        if size < _JUMP_PX * sampling:
            break
        here = runs.index(run)
        runs[here : here + 1] = [slice(run.start, run.start + at), slice(run.start + at, run.stop)]
    return runs


def mean_shift(shifts: torch.Tensor, errors: torch.Tensor, sampling: int) -> Shift:
    """Of some bands, by their standard errors."""
    weights = 1.0 / (errors.square().sum(dim=1) + (_SPREAD_PX * sampling) ** 2)
    rows, cols = ((shifts * weights[:, None]).sum(dim=0) / weights.sum()).tolist()
    return rows, cols


def _jump(shifts: torch.Tensor, weights: torch.Tensor) -> tuple[float, int]:
    """The largest clear jump between neighboring runs of bands, and the first band after it; 0 if none is clear."""
    best, where = 0.0, 0
    for at in range(_FEWEST_BANDS, len(shifts) - _FEWEST_BANDS + 1):
        before, after = slice(max(at - _MOST_BANDS, 0), at), slice(at, at + _MOST_BANDS)
        means = [(shifts[side] * weights[side, None]).sum(dim=0) / weights[side].sum() for side in (before, after)]
        size = float((means[1] - means[0]).norm())
        # Bands of one detector err alike, so that many do not make the mean much surer than one.
        error = math.sqrt(sum(1.0 / float(weights[side].mean()) for side in (before, after)) / _FEWEST_BANDS)
        if size > best and size > _CLEAR * error:
            best, where = size, at
    return best, where
