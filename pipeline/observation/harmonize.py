"""Harmonizing: the MSI is brought to the radiometry of the HSI before fusion, where the pair tells how and it is little.

The HSI is the spectral truth. Each MSI band has one line from the radiometric fit of the observation model; within
limits it is undone where windows are read, so that no array is written anew. Beyond them nothing is applied: a gain or
offset that large is a mistake in the data, and the usual ones are named with the setting that mends them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.errors import QualityRefused
from hyperfuse.catalogs.scene import Quantity
from hyperfuse.pipeline.config import HarmonizeConfig, RunConfig
from hyperfuse.pipeline.observation.radiometry import RadiometricFit
from hyperfuse.pipeline.observation.sample import NotEstimable, Sample
from hyperfuse.pipeline.observation.sensor_model import Observation, with_misfit
from hyperfuse.pipeline.observation.simulate import SimulatedPair

F32 = NDArray[np.float32]

_MIN_COVERAGE = 0.9
"""A band of whose response less lies under HSI bands is not held against them: its gain would be that of the gap."""
_MIN_NEAR = 0.5
"""Share of the pixels that must lie near the line."""
_SURE = 2.0
"""A gain or offset this many standard errors from 1 and 0 is more than chance."""
_LEAST_GAIN, _LEAST_OFFSET = 0.002, 0.0005
"""Less than this off is agreement, however sure: no sensor is calibrated better."""
_SAME_GAIN = 0.2
"""Tolerance of a named mistake: natural logarithm of the gain over the mistake's."""
_SAME_OFFSET = 0.03
"""The same of its offset, in the HSI's reflectance."""
_MOST_BANDS = 2 / 3
"""Share of the bands that must show a mistake for it to be named."""

Decision = Literal["applied", "agrees", "beyond", "doubtful", "not compared"]


class BandHarmony(BaseModel):
    """What was decided on one kept MSI band."""

    model_config = ConfigDict(frozen=True)

    decision: Decision
    """`applied`; `agrees` as it is; `beyond` the limits; `doubtful`: the fit is not believed; `not compared`: the HSI does
    not see the band, or too little of it."""
    gain: float = 1.0
    """Gain of the MSI that is divided out, 1 unless applied."""
    offset: float = 0.0
    """Offset of the MSI that is subtracted before, 0 unless applied."""


class Harmony(BaseModel):
    """What was decided on the MSI."""

    model_config = ConfigDict(frozen=True)

    bands: tuple[BandHarmony, ...]
    """Kept bands."""
    mistake: str = ""
    """A named mistake and what mends it, in one sentence; empty if none was found."""
    reason: str
    """The decision in one sentence."""
    passed: bool
    """Whether the two images agree, as they are or harmonized, as far as they could be compared."""

    @property
    def is_applied(self) -> bool:
        """Whether the MSI is changed at all."""
        return any(band.decision == "applied" for band in self.bands)

    @property
    def gain(self) -> F32:
        """Gains that are divided out, shape (band, 1, 1)."""
        return np.array([band.gain for band in self.bands], np.float32).reshape(-1, 1, 1)

    @property
    def offset(self) -> F32:
        """Offsets that are subtracted, shape (band, 1, 1)."""
        return np.array([band.offset for band in self.bands], np.float32).reshape(-1, 1, 1)

    def corrected(self, msi: F32) -> F32:
        """A window of the MSI (kept band, y, x) as methods see it."""
        return (msi - self.offset) / self.gain if self.is_applied else msi


@dataclass(frozen=True, kw_only=True)
class _Mistake:
    """A line that no atmosphere makes, but a forgotten factor does: MSI = gain * reflectance + offset."""

    gain: float
    offset: float
    sentence: str


_BOA_ADD_OFFSET = 0.1
_MISTAKES = (
    _Mistake(
        gain=1.0,
        offset=_BOA_ADD_OFFSET,
        sentence="lies 0.1 above the HSI, as a Sentinel-2 product of baseline 04.00 or later does whose BOA_ADD_OFFSET of -1000 "
        "was not applied; set msi.offset=-0.1",
    ),
    _Mistake(
        gain=1.0,
        offset=-_BOA_ADD_OFFSET,
        sentence="lies 0.1 below the HSI, as a Sentinel-2 product does whose BOA_ADD_OFFSET of -1000 was applied twice, or "
        "before baseline 04.00; set msi.offset=0",
    ),
    _Mistake(
        gain=1e4, offset=0.0, sentence="is 10,000 times the HSI: its scale was not applied; set msi.scale=1e-4"
    ),
    _Mistake(
        gain=1e4,
        offset=1e3,
        sentence="is 10,000 times the HSI and 1000 more: scale and BOA_ADD_OFFSET of a Sentinel-2 product were not applied; set "
        "msi.scale=1e-4 and msi.offset=-0.1",
    ),
    _Mistake(gain=100.0, offset=0.0, sentence="is 100 times the HSI: it is in percent; set msi.scale=0.01"),
    _Mistake(
        gain=1e-2, offset=0.0, sentence="is a hundredth of the HSI: the HSI is in percent; set hsi.scale=0.01"
    ),
    _Mistake(
        gain=1e-4,
        offset=0.0,
        sentence="is a ten thousandth of the HSI: the HSI's scale was not applied, or the MSI's twice; set hsi.scale=1e-4 or "
        "msi.scale=1",
    ),
    _Mistake(
        gain=1 / 2.75e-5,
        offset=0.2 / 2.75e-5,
        sentence="holds the numbers of Landsat Collection 2, not their reflectance; set msi.scale=2.75e-5 and msi.offset=-0.2",
    ),
    _Mistake(
        gain=1e-4 / 2.75e-5,
        offset=1e-4 * 0.2 / 2.75e-5,
        sentence="holds numbers of Landsat Collection 2 read with a scale of 1e-4; set msi.scale=2.75e-5 and msi.offset=-0.2",
    ),
)  # fmt: skip


def harmonize(config: RunConfig, observation: Observation, quantities: tuple[Quantity, Quantity], name: str) -> Harmony:
    """What is to be done to the MSI.

    Parameters
    ----------
    config : RunConfig
    observation : Observation
        With its misfit on kept bands.
    quantities : (Quantity, Quantity)
        Of HSI and MSI.
    name : str
        Of the MSI, for messages.

    Raises
    ------
    QualityRefused
        If the settings require an MSI that agrees, and it does not.
    """
    found = harmony_of(config.harmonize, observation, quantities, name)
    if config.harmonize.mode == "require" and not found.passed:
        raise QualityRefused(f"{found.mistake or found.reason}; or fuse it as it is with harmonize.mode=auto")
    return found


def harmony_of(
    limits: HarmonizeConfig, observation: Observation, quantities: tuple[Quantity, Quantity], name: str
) -> Harmony:
    """The same without refusing; parameters as those of `harmonize`."""
    n_bands = len(observation.coverage)
    fits = observation.misfit or (None,) * n_bands
    compared = [
        None if coverage < _MIN_COVERAGE else fit for fit, coverage in zip(fits, observation.coverage, strict=True)
    ]
    untouched = tuple(BandHarmony(decision="not compared") for _ in compared)
    if limits.mode == "off":
        return Harmony(bands=untouched, passed=True, reason="off by harmonize.mode")
    hsi, msi = quantities
    mistake = _named([fit for fit in compared if fit and _is_believed(fit, limits)]) if hsi == "reflectance" else None
    if mistake is not None and (msi == "reflectance" or mistake.gain != 1.0):
        told = f"{name} {mistake.sentence}"
        return Harmony(
            bands=untouched, mistake=told, passed=False, reason="not harmonized: a mistake was found instead"
        )
    if (hsi, msi) != ("reflectance", "reflectance"):
        return Harmony(
            bands=untouched, passed=True, reason=f"not harmonized: {name} is {msi}, the HSI is {hsi}, and limits are known of reflectance only"
        )  # fmt: skip
    bands = tuple(_decided(fit, limits) for fit in compared)
    return Harmony(
        bands=bands,
        passed=not any(band.decision == "beyond" for band in bands),
        reason=_told(bands, compared, limits, name),
    )


def harmonize_whole(pair: SimulatedPair, limits: HarmonizeConfig) -> tuple[SimulatedPair, Harmony]:
    """A whole pair whose MSI is brought to its HSI, and what was decided; its SRF must be known.

    Raises
    ------
    ValueError
        If the SRF is not known.
    """
    observed = pair.observed
    if not observed.srf:
        raise ValueError(f"{pair.name}: the SRF must be known to compare the two images")
    observation = Observation(
        psf_sigma_px=observed.psf_sigma_px,
        psf_origin="given",
        srf=observed.srf,
        srf_origin="table",
        coverage=(1.0,) * observed.msi_bands,
    )
    # A sample of coarser bands knows their PSF and the block of equal pixels as which they come.
    own = [
        math.hypot(sigma, math.sqrt((step**2 - 1) / 12))
        for step, sigma in zip(observed.steps, observed.msi_sigma_px or (0.0,) * observed.msi_bands, strict=True)
    ]
    with suppress(NotEstimable):  # then there is nothing to compare, and nothing is changed
        observation = with_misfit(observation, Sample.of(pair.hsi[None], pair.msi[None], observed.ratio, own))
    found = harmony_of(limits, observation, ("reflectance", "reflectance"), pair.name)
    return replace(pair, msi=found.corrected(pair.msi)), found


def _is_believed(fit: RadiometricFit, limits: HarmonizeConfig) -> bool:
    return (
        fit.gain > 0
        and fit.near >= _MIN_NEAR
        and fit.r2_near >= limits.min_r2
        and fit.gain_error <= limits.max_error * fit.gain
    )


def _decided(fit: RadiometricFit | None, limits: HarmonizeConfig) -> BandHarmony:
    if fit is None:
        return BandHarmony(decision="not compared")
    if not _is_believed(fit, limits):
        return BandHarmony(decision="doubtful")
    if not limits.min_gain <= fit.gain <= limits.max_gain or abs(fit.offset) > limits.max_offset:
        return BandHarmony(decision="beyond")
    sure_gain, sure_offset = (
        max(_SURE * error, least) for error, least in ((fit.gain_error, _LEAST_GAIN), (fit.offset_error, _LEAST_OFFSET))
    )
    if abs(fit.gain - 1.0) <= sure_gain and abs(fit.offset) <= sure_offset:
        return BandHarmony(decision="agrees")
    return BandHarmony(decision="applied", gain=fit.gain, offset=fit.offset)


def _named(fits: list[RadiometricFit]) -> _Mistake | None:
    """The mistake that most bands show, None if there is none."""
    for mistake in _MISTAKES:
        shows = [
            abs(math.log(fit.gain / mistake.gain)) <= _SAME_GAIN
            and abs(fit.offset - mistake.offset) <= _SAME_OFFSET * mistake.gain
            for fit in fits
        ]
        if shows and sum(shows) >= _MOST_BANDS * len(shows):
            return mistake
    return None


def _told(bands: tuple[BandHarmony, ...], fits: list[RadiometricFit | None], limits: HarmonizeConfig, name: str) -> str:
    count = {kind: sum(band.decision == kind for band in bands) for kind in ("applied", "agrees", "beyond", "doubtful")}
    if count["beyond"]:
        worst = [fit for band, fit in zip(bands, fits, strict=True) if fit is not None and band.decision == "beyond"]
        gains, offsets = [fit.gain for fit in worst], [fit.offset for fit in worst]
        return (
            f"{name}: {count['beyond']} of {len(bands)} bands differ from the HSI by more than is corrected (gain {min(gains):.3f} to "
            f"{max(gains):.3f}, offset {min(offsets):+.3f} to {max(offsets):+.3f}; limits {limits.min_gain:g} to {limits.max_gain:g} "
            f"and {limits.max_offset:g}); check msi.scale, msi.offset and the processing level of both"
        )
    parts = [
        f"{n} {what}"
        for n, what in (
            (count["applied"], "brought to the HSI"),
            (count["agrees"], "agree as they are"),
            (count["doubtful"], "left alone, for the fit is not believed"),
        )
        if n
    ]
    return f"{name}: of {len(bands)} bands {', '.join(parts) or 'none could be compared with the HSI'}"
