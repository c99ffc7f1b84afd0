"""What `qa.json` holds, as typed records; its JSON schema is that of `QualityRecord`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from hyperfuse.pipeline.fusion.strict import StrictRecord
from hyperfuse.pipeline.job.json_record import JsonRecord
from hyperfuse.pipeline.observation.harmonize import Harmony
from hyperfuse.pipeline.observation.radiometry import RadiometricFit
from hyperfuse.pipeline.quality.accumulators import Agreement, Seams
from hyperfuse.pipeline.quality.no_reference import NoReference
from hyperfuse.pipeline.registration.record import Registration

SCHEMA = "hyperfuse-qa/1"
State = Literal["published", "published with warnings", "refused"]


class Gate(JsonRecord):
    """A limit and what was found."""

    name: str
    """Key of the limit in `quality`, or `registration`, or `radiometry`."""
    value: float | None
    """What was found; None where the gate is no number."""
    limit: float | None
    """What is allowed."""
    passed: bool
    sentence: str
    """The same in words."""
    refuses: bool = False
    """Whether it is missed by so much that no product is published, whatever a missed limit means otherwise."""


class Cause(JsonRecord):
    """One way in which the scene departs from what its files and the tables of its sensors tell."""

    name: Literal["displacement", "psf", "changed", "stripes"]
    """`displacement` of a detector's samples, width of the `psf` over that which was told, share of samples that `changed`
    between the dates, standard deviation of the gains of columns (`stripes`)."""
    detector: str | None
    """VNIR or SWIR; None of what concerns all bands."""
    value: float | None
    """What was found; None where it was not measured."""
    expected: float
    """Value of an undisturbed pair."""
    uncertainty: float | None
    """Standard error of the value; None where it is not known."""
    limit: float | None
    """Departure from `expected` beyond which it is significant, from the scene's noise and the ratio."""
    significant: bool
    left: float | None
    """How much of it the product does not take into account."""
    unit: str
    sentence: str
    """What it is, and what to do."""


@dataclass(frozen=True, kw_only=True)
class BandedAgreement(Agreement):
    """The product against an input, with the bands that were compared."""

    wavelength_nm: list[float]
    """Centers of the compared bands (nm)."""


class ConsistencyRecord(JsonRecord):
    """The product against both inputs."""

    hsi: BandedAgreement | None
    """None if no coarse pixel could be compared."""
    msi: BandedAgreement | None
    """None if the HSI sees no MSI band, or nothing is valid."""


class StrictFacts(StrictRecord):
    """What back-projection was to reach, and what it has reached."""

    over_noise: float | None
    """Root mean square of the product's own residual over the HSI's noise, worst band."""
    bands_above_noise: int | None
    """Bands whose residual exceeds the noise."""


class ReducedRow(JsonRecord):
    """One method at reduced resolution; scores are absent where it failed."""

    cube: str
    method: str
    ratio: int
    msi: str
    hsi_snr_db: float | None
    msi_snr_db: float | None
    psnr_db: float | None = None
    """Peak 1, mean over bands (dB)."""
    psnr_max_db: float | None = None
    """Peak of each band its own maximum, mean over bands (dB)."""
    sam_deg: float | None = None
    """Mean spectral angle (degrees)."""
    ergas: float | None = None
    ssim: float | None = None
    rmse: float | None = None
    """In units of the reference's 99.9th percentile."""
    cc: float | None = None
    """Mean correlation over bands."""
    pixels: int | None = None
    """Pixels that counted."""
    rmse_own_unit: float | None = None
    """The same error in the HSI's unit."""
    seconds: float
    peak_mb: float
    over_noise: float | None = None
    """Residual of the degraded image over the HSI's noise, worst band; of strict mode only."""
    error: str | None
    """Why it failed."""


class ReducedResolution(JsonRecord):
    """The method beside its controls, on the pair degraded by its ratio."""

    rows: list[ReducedRow]
    window_px: tuple[int, int, int, int]
    """Coarse pixels of the window: first and last row, first and last column, the last ones excluded."""
    error: str | None
    """Why there are no rows."""


class ErrorGroup(JsonRecord):
    """Neighboring bands that are calibrated together."""

    low_nm: float
    high_nm: float
    factor: float
    """From raw to calibrated standard errors."""
    coverage: float | None
    """Share of held-back errors within their interval."""


class UncertaintyRecord(JsonRecord):
    """How the standard errors were calibrated, and how well they hold."""

    calibrated: bool
    """False: the scale is a guess, see `reason`."""
    reason: str | None
    nominal: float
    """Share of the errors that 1.645 standard errors are to hold."""
    coverage: float | None
    """Share of held-back errors that they hold."""
    coverage_range: tuple[float, float] | None
    """The same of the quadrants that fare worst and best."""
    mean_width: float | None
    """Mean width of those intervals, in the HSI's unit."""
    ause: float | None
    """Area between the sparsification curves by standard error and by true error."""
    scale_gap: float
    """From errors at reduced resolution to those at full resolution, where noise has no part in them."""
    noise_share: float
    """Share of the mean square error at reduced resolution that is due to noise."""
    trial_ratio: int | None
    """Ratio of what was fused at reduced resolution."""
    calibration_pixels: int
    mean_standard_error: float | None
    """Over all samples, in the HSI's unit."""
    band_standard_error: list[float | None]
    """Mean of each band."""
    wavelength_nm: list[float]
    clipped_samples: int
    """Standard errors that exceed the range of counts."""
    groups: list[ErrorGroup]
    caveat: str


class Validity(JsonRecord):
    """What is missing, and what cannot be."""

    valid: float
    """Share of samples that are valid."""
    invalid_pixels: float | None
    """Share of pixels that are invalid in a band or more."""
    filled_hsi: float
    """Share of the HSI's pixels that were filled before fusion."""
    filled_msi: float
    """The same of the MSI."""
    clipped_samples: int
    """Samples that were set to an end of the range of counts."""
    implausible_samples: float | None
    """Share of samples that are no reflectance; None of other quantities."""


class ObservationSummary(JsonRecord):
    """The observation model in two numbers."""

    ratio: int
    psf_sigma_px: float
    """Standard deviation of the HSI's PSF, in fine pixels."""


class QualitySummary(JsonRecord):
    """The few numbers that go to provenance and STAC item."""

    state: State
    warnings: list[str] = Field(default_factory=list)
    """A sentence for every gate that was missed."""
    hsi_sam_deg: float | None = None
    hsi_rmse: float | None = None
    hsi_bias: float | None = None
    msi_r2: float | None = None
    msi_rmse: float | None = None
    seam: float | None = None
    d_lambda_k: float | None = None
    d_s: float | None = None
    hqnr: float | None = None
    reduced_resolution: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """PSNR, SAM and ERGAS by method."""


class QualityRecord(JsonRecord):
    """All that was found on a product; `conventions` defines every score."""

    schema_: str = Field(alias="schema")
    """Name and version of this schema."""
    product: str
    job_key: str
    """SHA-256 of everything that decides the content."""
    state: State
    warnings: list[str]
    """A sentence for every gate that was missed."""
    gates: list[Gate]
    causes: list[Cause] = Field(default_factory=list)
    """What the pair told of itself."""
    consistency: ConsistencyRecord
    strict: StrictFacts | None
    """None of a job that is not strict."""
    residual: dict[str, Any] | None
    """Whether a network's residual was applied, and why; None if there was nothing to decide."""
    seams: Seams | None
    """None if there is one tile only."""
    no_reference: NoReference | None
    """None if no window is valid throughout."""
    reduced_resolution: ReducedResolution
    uncertainty: UncertaintyRecord | None
    """None of a product without standard errors."""
    registration: Registration
    radiometric_fit: list[RadiometricFit | None]
    """Per MSI band."""
    harmony: Harmony | None
    """How the MSI was brought to the radiometry of the HSI; None if it was not asked for."""
    validity: Validity
    observation: ObservationSummary
    conventions: dict[str, str]
    """Definitions of all scores, in words."""
    seconds: float
    """Time of the assessment."""

    @property
    def summary(self) -> QualitySummary:
        """The few numbers that go to provenance and STAC item."""
        hsi, msi = self.consistency.hsi, self.consistency.msi
        blind, seams = self.no_reference, self.seams
        return QualitySummary(
            state=self.state,
            warnings=self.warnings,
            hsi_sam_deg=hsi and hsi.sam_deg,
            hsi_rmse=hsi and hsi.rmse,
            hsi_bias=hsi and hsi.bias,
            msi_r2=msi and msi.r2,
            msi_rmse=msi and msi.rmse,
            seam=seams and seams.score,
            d_lambda_k=blind and blind.d_lambda_k,
            d_s=blind and blind.d_s,
            hqnr=blind and blind.hqnr,
            reduced_resolution={
                row.method: {"psnr_db": row.psnr_db, "sam_deg": row.sam_deg, "ergas": row.ergas}
                for row in self.reduced_resolution.rows
                if row.error is None
            },
        )
