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

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.errors import ExpectedSkip, InputRejected
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.scene import Window
from hyperfuse.catalogs.sensors import Source, open_scene, sensor_module
from hyperfuse.models import Observed
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT
from hyperfuse.pipeline.geometry.grids import block_steps, nest
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import Cube, SimulatedPair, blurred, refuse_small
from hyperfuse.pipeline.quality.rehearsal import noisy_as_full
from hyperfuse.pipeline.quality.trials import Trial
from hyperfuse.pipeline.registration.estimate import register

log = logging.getLogger(__name__)

OWN_BANDS = "own"
"""Name of the MSI's bands in a protocol of a real pair."""
MAX_VALUES = 1 << 31
"""Samples of both images that are held at once; larger overlaps are refused."""


def pair_trial(hsi: str, msi: str, *, ratio: int | None = None) -> Trial:
    """The trial of two scenes; headers are read at once, samples when it is made.

    Parameters
    ----------
    hsi, msi : str
        Addresses of the scenes.
    ratio : int, optional
        Fine pixels per coarse pixel; the rounded ratio of the ground sampling distances unless given.

    Returns
    -------
    Trial
        Scenes that cannot be opened or do not make a pair are refused when it is made.
    """
    try:
        pair = ScenePair(hsi=open_scene(Source(uri=hsi)), msi=open_scene(Source(uri=msi)))
    except (InputRejected, ExpectedSkip) as error:
        unread = Protocol(ratio=ratio or 4, msi=OWN_BANDS, hsi_snr_db=None, msi_snr_db=None)
        return Trial.refused(f"{Path(hsi).stem} + {Path(msi).stem}", unread, error)
    protocol = reduced_protocol(pair, ratio)
    name = f"{pair.hsi.name} + {pair.msi.name}"
    return Trial(cube=name, protocol=protocol, make=partial(reduced, pair, protocol, align=AlignConfig()))


def reduced_protocol(pair: ScenePair, ratio: int | None = None) -> Protocol:
    """How a real pair is degraded."""
    mtf = sensor_module(pair.hsi.sensor).SENSOR.mean_mtf(pair.hsi.bands[pair.hsi.good_bands])
    whole = ratio or max(2, round(pair.gsd_ratio))
    return Protocol(ratio=whole, msi=OWN_BANDS, hsi_snr_db=None, msi_snr_db=None, mtf_nyquist=mtf)


def reduced(pair: ScenePair, protocol: Protocol, *, align: AlignConfig, noisy: bool = False) -> SimulatedPair:
    """Both scenes on their common grids, degraded by the protocol's ratio.

    Parameters
    ----------
    pair : ScenePair
    protocol : Protocol
        Ratio, PSF and rim.
    align : AlignConfig
        How the scenes are brought together; the displacement is estimated unless it is told.
    noisy : bool
        Whether the images get the noise that they have at full resolution, and the truth loses its own.

    Raises
    ------
    InputRejected, ExpectedSkip
        If the scenes cannot be read, or their overlap is too large or too small.

    References
    ----------
    Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699.
    """
    grids = nest(pair, align, protocol.ratio)
    name = f"{pair.hsi.name} + {pair.msi.name}"
    hsi_bands, msi_bands = pair.hsi.good_bands, pair.msi.good_bands
    n_fine, n_coarse = (int(np.prod(grid.shape)) for grid in (grids.fine, grids.coarse))
    if n_fine * len(msi_bands) + n_coarse * len(hsi_bands) > MAX_VALUES:
        raise InputRejected(
            f"{name}: the overlap has {n_fine} fine pixels, too many to be held whole; give crops of the scenes"
        )
    registration = register(pair, grids, align, protocol.sigma_px)
    log.info("registration: %s", registration.reason)
    move = registration.displacement
    to_hsi, to_msi = (move, NO_DISPLACEMENT) if align.reference == "msi" else (NO_DISPLACEMENT, -move)
    truth = warp(pair.hsi, grids.coarse, _whole(grids.coarse), bands=hsi_bands, displacement=to_hsi)
    fine = warp(pair.msi, grids.fine, _whole(grids.fine), bands=msi_bands, displacement=to_msi)
    rows, cols = (size // grids.ratio * grids.ratio for size in grids.coarse_shape)
    truth, fine = truth[:, :rows, :cols], fine[:, : rows * grids.ratio, : cols * grids.ratio]
    weights, _ = pair.hsi.bands.srf(pair.msi.bands)
    trial = degraded_pair(
        truth,
        fine,
        protocol,
        name=name,
        srf=weights[np.ix_(msi_bands, hsi_bands)],
        notes=(f"{name}: registration {registration.decision}: {registration.reason}",),
    )
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
        msi=blurred(fine, step or protocol.ratio, protocol.mtf_nyquist),
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


def _whole(grid: GeoBox) -> Window:
    height, width = grid.shape
    return slice(0, height), slice(0, width)
