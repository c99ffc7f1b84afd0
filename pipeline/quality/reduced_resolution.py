"""A real pair at reduced resolution: both images degraded by the ratio, so that the HSI itself is the truth.

    HSI on the coarse grid        = truth         degraded by the ratio = HSI of the trial
    MSI on the fine grid                          degraded by the ratio = MSI of the trial

No noise is added, because both images bring their own; for who is to learn from such a pair, it can be made what it is at
full resolution (`pipeline.quality.rehearsal`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected, QualityRefused
from hyperfuse.catalogs.opening import open_source
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.references.cubes import without_absorption
from hyperfuse.catalogs.scene import Window
from hyperfuse.catalogs.sensors import sensor_module, sigma_from_mtf
from hyperfuse.models import Observed
from hyperfuse.models.operators import CENTERED, Shift
from hyperfuse.pipeline.config import AlignConfig, RunConfig
from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT
from hyperfuse.pipeline.geometry.grids import block_steps, nest
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import Cube, SimulatedPair, blurred, refuse_small
from hyperfuse.pipeline.quality.rehearsal import noisy_as_full
from hyperfuse.pipeline.quality.trials import Trial
from hyperfuse.pipeline.registration.estimate import estimate
from hyperfuse.pipeline.registration.record import Registration

log = logging.getLogger(__name__)

OWN_BANDS = "own"
"""Name of the MSI's bands in a protocol of a real pair."""
MAX_VALUES = 1 << 31
"""Samples of both images that are held at once; larger overlaps are refused."""


def pair_trial(
    config: RunConfig,
    *,
    ratio: int | None = None,
    name: str | None = None,
    bands: str = OWN_BANDS,
    absorption: bool = False,
) -> Trial:
    """The trial of two scenes; headers are read at once, samples when it is made.

    Parameters
    ----------
    config : RunConfig
        As for a fusion: of it count both scenes, the co-registration, the HSI's PSF, and the ratio of the two grids.
    ratio : int, optional
        By which the HSI is degraded; that of the two grids unless given. The MSI is brought to the HSI's pixels in any case.
    name : str, optional
        For tables; the names of the scenes unless given.
    bands : str
        Name of the MSI's bands in the protocol.
    absorption : bool
        Whether bands of the HSI in absorption ranges, which hold noise alone, are bad.

    Returns
    -------
    Trial
        Scenes that cannot be opened or do not make a pair, and a pair whose registration is refused, are refused when it
        is made, the latter unless `align.on_refuse` is `keep`.
    """
    try:
        fetching = config.fetch.fetching()
        pair = ScenePair(hsi=open_source(config.hsi.source(), fetching), msi=open_source(config.msi.source(), fetching))
    except (InputRejected, ExpectedSkip) as error:
        unread = Protocol(ratio=ratio or 4, msi=bands, hsi_snr_db=None, msi_snr_db=None)
        return Trial.refused(name or f"{Path(config.hsi.uri).stem} + {Path(config.msi.uri).stem}", unread, error)
    if absorption:
        pair = replace(pair, hsi=without_absorption(pair.hsi))
    step = config.ratio or max(2, round(pair.gsd_ratio))
    protocol = replace(reduced_protocol(pair, ratio or step, mtf=config.psf_mtf), msi=bands)
    must_match = config.align.on_refuse == "refuse"
    make = partial(reduced, pair, protocol, align=config.align, step=step, must_match=must_match)
    return Trial(cube=name or f"{pair.hsi.name} + {pair.msi.name}", protocol=protocol, make=make)


def reduced_protocol(pair: ScenePair, ratio: int | None = None, *, mtf: float | None = None) -> Protocol:
    """How a real pair is degraded; with the PSF of the HSI's sensor unless its modulation is given."""
    mtf = mtf or sensor_module(pair.hsi.sensor).SENSOR.mean_mtf(pair.hsi.bands[pair.hsi.good_bands])
    whole = ratio or max(2, round(pair.gsd_ratio))
    return Protocol(ratio=whole, msi=OWN_BANDS, hsi_snr_db=None, msi_snr_db=None, mtf_nyquist=mtf)


def reduced(
    pair: ScenePair,
    protocol: Protocol,
    *,
    align: AlignConfig,
    noisy: bool = False,
    step: int | None = None,
    must_match: bool = False,
) -> SimulatedPair:
    """Both scenes on their common grids, degraded by the protocol's ratio.

    Parameters
    ----------
    pair : ScenePair
    protocol : Protocol
        Ratio, PSF and rim.
    align : AlignConfig
        How the scenes are brought together; the displacement is estimated unless it is told.
    noisy : bool
        Whether the images get the noise that they have at full resolution, and the truth loses its own; the MSI is then
        degraded by the protocol's ratio.
    step : int, optional
        Pixels of the MSI per pixel of the HSI, by which the MSI is degraded; the protocol's ratio unless given.
    must_match : bool
        Whether a pair whose registration is refused is refused.

    Raises
    ------
    InputRejected, ExpectedSkip
        If the scenes cannot be read, or their overlap is too large or too small.
    QualityRefused
        If the registration is refused and must not be.

    Notes
    -----
    A MSI in another quantity than the HSI, such as the digital numbers of a camera, is brought to it by a line per band,
    fitted at the pixels of the degraded HSI: methods that know the responses take both images for one quantity.

    References
    ----------
    Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699.
    """
    step = step or protocol.ratio
    grids = nest(pair, align, step)
    name = f"{pair.hsi.name} + {pair.msi.name}"
    hsi_bands, msi_bands = pair.hsi.good_bands, pair.msi.good_bands
    n_fine, n_coarse = (int(np.prod(grid.shape)) for grid in (grids.fine, grids.coarse))
    if n_fine * len(msi_bands) + n_coarse * len(hsi_bands) > MAX_VALUES:
        raise InputRejected(
            f"{name}: the overlap has {n_fine} fine pixels, too many to be held whole; give crops of the scenes"
        )
    registration = estimate(pair, grids, align, sigma_from_mtf(protocol.mtf_nyquist, step)).registration
    log.info("registration: %s", registration.reason)
    if must_match and registration.decision == "refuse":
        raise QualityRefused(
            f"{name}: could not be registered: {registration.reason}; a displaced pair ranks methods wrongly, so give a known "
            "move as align.east_m and align.north_m, or trust the geometry as it is with align.on_refuse=keep"
        )
    move = registration.displacement
    to_hsi, to_msi = (move, NO_DISPLACEMENT) if align.reference == "msi" else (NO_DISPLACEMENT, -move)
    truth = warp(pair.hsi, grids.coarse, _whole(grids.coarse), bands=hsi_bands, displacement=to_hsi)
    fine = warp(pair.msi, grids.fine, _whole(grids.fine), bands=msi_bands, displacement=to_msi)
    rows, cols = (size // protocol.ratio * protocol.ratio for size in grids.coarse_shape)
    truth, fine = truth[:, :rows, :cols], fine[:, : rows * step, : cols * step]
    weights, _ = pair.hsi.bands.srf(pair.msi.bands)
    trial = degraded_pair(
        truth,
        fine,
        protocol,
        name=name,
        srf=weights[np.ix_(msi_bands, hsi_bands)],
        step=step,
        notes=(f"{name}: registration {registration.decision}: {registration.reason}",),
    )
    trial = replace(trial, told=_told(registration))
    if pair.msi.quantity != pair.hsi.quantity:
        trial = _in_one_quantity(trial, protocol)
    if not noisy:
        return trial
    steps = block_steps(pair.msi.bands, pair.msi.gsd_m) if grids.block > 1 else ()
    return noisy_as_full(trial, fine, replace(trial.observed, msi_steps=steps))


def degraded_pair(
    truth: Cube,
    fine: Cube,
    protocol: Protocol,
    *,
    name: str,
    srf: NDArray[np.float64],
    step: int | None = None,
    shift_px: Shift = CENTERED,
    notes: tuple[str, ...] = (),
) -> SimulatedPair:
    """A pair of images on nested grids, degraded by the protocol's ratio.

    Parameters
    ----------
    truth : ndarray, shape (C, h, w), float32
        The HSI; h and w are multiples of the ratio.
    fine : ndarray, shape (c, h * step, w * step), float32
        The MSI; both images are divided by one constant in place of their own unit.
    protocol : Protocol
    name : str
        For messages.
    srf : ndarray, shape (c, C)
        Responses of the MSI's bands.
    step : int, optional
        Pixels of the MSI per pixel of the HSI along one axis; the protocol's ratio, by which the HSI is degraded, unless
        given.
    shift_px : (float, float)
        Rows and columns (pixels of the MSI) by which the HSI's samples lie beside their pixels: the MSI is sampled there too.
    notes : tuple of str

    Raises
    ------
    InputRejected
        If the images are too small, or hold no sample above 0.
    """
    refuse_small(truth, protocol, name)
    # One constant for both images, so that the spectral responses stay what they are.
    unit = np.float32(np.nanpercentile(truth, 99.9)) if np.isfinite(truth).any() else np.float32(0)
    if not unit > 0:
        raise InputRejected(f"{name}: the HSI has no sample above 0 in the overlap; check its nodata value and scale")
    truth, fine = truth / unit, fine / unit
    hsi = blurred(truth, protocol.ratio, protocol.mtf_nyquist)
    hole = np.isnan(hsi).any(axis=0).repeat(protocol.ratio, axis=0).repeat(protocol.ratio, axis=1)
    truth[:, hole] = np.nan
    return SimulatedPair(
        name=name,
        truth=truth,
        hsi=hsi,
        msi=blurred(fine, step or protocol.ratio, protocol.mtf_nyquist, shift_px),
        observed=Observed(
            hsi_bands=len(truth),
            msi_bands=len(fine),
            ratio=protocol.ratio,
            psf_sigma_px=protocol.sigma_px,
            srf=tuple(tuple(float(w) for w in row) for row in srf),
        ),
        rim_px=protocol.rim_px,
        unit=float(unit),
        notes=notes,
    )


def _told(registration: Registration) -> dict[str, Any]:
    """What a row says of the registration."""
    return {
        "registration": registration.decision,
        "east_m": round(registration.east_m, 3),
        "north_m": round(registration.north_m, 3),
    }


def _in_one_quantity(pair: SimulatedPair, protocol: Protocol) -> SimulatedPair:
    seen = np.einsum("kc,cyx->kyx", np.array(pair.observed.srf), pair.hsi)
    coarse = blurred(pair.msi, protocol.ratio, protocol.mtf_nyquist)
    msi = pair.msi.copy()
    for plane, own, wanted, responses in zip(msi, coarse, seen, pair.observed.srf, strict=True):
        both = np.isfinite(own) & np.isfinite(wanted)
        if any(responses) and np.ptp(own[both]) > 0:  # a band that the HSI does not see, or a flat one, stays as it is
            gain, offset = np.polyfit(own[both].astype(np.float64), wanted[both], 1)
            plane[:] = gain * plane + offset
    return replace(pair, msi=msi)


def _whole(grid: GeoBox) -> Window:
    height, width = grid.shape
    return slice(0, height), slice(0, width)
