"""Every product is assessed before it is published: `qa.json`, and the gates that decide how it is published.

    consistency          with both inputs, and across tile borders        `pipeline.quality.consistency`
    no reference         D_lambda^K, D_s, HQNR                            `pipeline.quality.no_reference`
    reduced resolution   the method beside bicubic and GSA, on the pair   `pipeline.quality.reduced_resolution`, `pipeline.quality.trials`
                         degraded by its ratio, where the HSI is the truth
    what staging found   registration, radiometric fit, holes

A gate is a limit on one of these numbers. What a missed gate means is set in `quality.gate`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.errors import HyperFuseError, QualityRefused
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.fusion.device import pick_device
from hyperfuse.pipeline.fusion.findings import load_findings
from hyperfuse.pipeline.fusion.residual import load_gate, weights_of
from hyperfuse.pipeline.fusion.strict import load_record
from hyperfuse.pipeline.job.completeness import MosaicSummary
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.product_files import QA
from hyperfuse.pipeline.observation.simulate import MIN_COVERAGE
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.quality.accumulators import Agreement
from hyperfuse.pipeline.quality.causes.limits import PLAUSIBLE, Limits, limits, staged_sample
from hyperfuse.pipeline.quality.causes.told import causes
from hyperfuse.pipeline.quality.consistency import Consistency, Maps, consistency
from hyperfuse.pipeline.quality.job_trial import central_window, job_trial
from hyperfuse.pipeline.quality.no_reference import NoReference, no_reference
from hyperfuse.pipeline.quality.records import (
    SCHEMA,
    BandedAgreement,
    Cause,
    ConsistencyRecord,
    Gate,
    ObservationSummary,
    QualityRecord,
    ReducedResolution,
    ReducedRow,
    StrictFacts,
    Validity,
)
from hyperfuse.pipeline.quality.standard_error import uncertainty_record
from hyperfuse.pipeline.quality.trials import STRICT_SUFFIX, TrialRow, evaluate

log = logging.getLogger(__name__)

CONTROLS = ("bicubic", "gsa")
"""Methods that the chosen one is measured beside."""
_FAINT = 0.05
"""A band whose mean is below this share of the brightest band's is too faint for a relative bias."""
CONVENTIONS = {
    "errors": "predicted less measured, in the unit of the measured image",
    "valid": "a pixel counts where all bands of both images are valid; NaN and nodata never do",
    "hsi": "product blurred by the Gaussian PSF and sampled where the HSI's samples lie, both as the method found them, against the staged HSI; "
    "coarse pixels that lose more than 0.1 % of their PSF to holes or to the rim do not count",
    "strict": "residual: RMS of HSI less degraded image before the correction, on a sample; noise: that of the HSI, by factor "
    "analysis of its spectra; over_noise: RMS of the product's own residual over the noise, worst band",
    "residual": "whether the network's residual is applied on the method that it is without weights; both fused at reduced "
    "resolution, with the residual first; applied where neither PSNR nor SAM is worse",
    "msi": "SRF times product against the staged MSI at every pixel, by the gain and offset of the radiometric fit where the "
    "two inputs measure different quantities; r2 is the squared correlation",
    "radiometric_fit": "per MSI band, degraded MSI = gain * (SRF x HSI) + offset by a robust line; gain_error and offset_error are "
    "standard errors; harmony holds what of it was taken out of the MSI before fusion",
    "sam": "degrees; mean over pixels of the angle between spectra",
    "seam": "mean absolute gradient over all bands across the lines between tiles, over that one and two coarse pixels "
    "beside them, less 1",
    "no_reference": "windows of up to 32 x 32 coarse pixels; Q2n on the whole window, not rounded; Q on 8 x 8 coarse pixels and "
    "the same ground at fine ones; each band against the MSI band that it correlates with best",
    "reduced_resolution": "both staged images degraded by the ratio with the PSF, fused, compared with the staged HSI; divided "
    "by its 99.9th percentile; PSNR with peak 1; ERGAS with ratio above 1; one coarse pixel of rim is left out",
    "uncertainty": "standard errors (k = 1) are scaled so that 1.645 of them hold the nominal share of the errors at reduced "
    "resolution, by groups of bands, and by the scale gap to full resolution, which the noise share does not have; coverage is "
    "that of blocks held back, mean_width that of their intervals, ause the area between the sparsification curves by standard "
    "error and by true error, RMSE of all pixels 1; the HSI was degraded by trial_ratio, errors are those against the staged HSI "
    "less its noise",
    "causes": "displacement: where the samples of a detector lie beside the place that the HSI's file tells, by registration and by "
    "the method's refinement, coarse px; psf: measured width over that of the sensor's table; changed: share of the HSI's pixels "
    "that miss the relation of both images; stripes: standard deviation of the gains of columns, from the covariance of strips of "
    "rows of HSI less what the MSI predicts; significant beyond five standard errors, stripes beyond what other columns show",
    "limits": "where the settings give none: spectral angle 1.25 times that which the HSI's noise makes, by factor analysis, and of "
    "what single pixels show beyond it, told neither by MSI nor neighbor, half the power; bias 0.01 or a tenth of the band's "
    "noise; R2 with the MSI 1 less twice what the HSI leaves of the degraded MSI, within 0.9 to 0.98; implausible samples 0.001 more "
    "than the HSI's noise makes",
    "implausible": f"share of samples outside {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}",
}
"""Definitions, in the words that stand in `qa.json`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessment:
    """All that was found."""

    qa: QualityRecord
    """Content of `qa.json`."""
    maps: Maps
    """Pictures for the report."""

    @property
    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        return self.qa.model_dump(mode="json")


def assess(job: StagedJob, summary: MosaicSummary, progress: Progress = silent) -> Assessment:
    """Measure a finished mosaic, hold it against the limits, and write `qa.json` into the job's folder.

    Parameters
    ----------
    job : StagedJob
        Staged and fused.
    summary : MosaicSummary
    progress : callable, optional
    """
    started = time.monotonic()
    found = consistency(job, progress)
    blind = no_reference(job)
    rows, reason, window = _reduced(job)
    spectra, sample = staged_sample(job)
    told = causes(job, load_findings(job), sample)
    _log(told)
    allowed = limits(job, spectra, sample, _to_agree(job))
    gates = (
        []
        if job.config.quality.gate == "off"
        else [_valid_gate(job, summary), *_gates(job, found, rows, allowed, told)]
    )
    missed = [gate.sentence for gate in gates if not gate.passed]
    refused = any(gate.refuses for gate in gates) or (bool(missed) and job.config.quality.gate == "refuse")
    record = QualityRecord(
        schema=SCHEMA,
        product=job.name,
        job_key=job.record.key,
        state="refused" if refused else "published with warnings" if missed else "published",
        # Where something is amiss, what may have made it so stands beside it.
        warnings=missed + ([cause.sentence for cause in told if cause.significant] if missed else []),
        gates=gates,
        causes=told,
        consistency=ConsistencyRecord(
            hsi=found.hsi and _banded(found.hsi, job.bands.center_nm),
            msi=found.msi and _banded(found.msi, job.staged_bands[1][found.msi_bands].center_nm),
        ),
        strict=_strict(job, found),
        residual=(decision := load_gate(job)) and decision.to_json(),
        seams=found.seams,
        no_reference=_finite(blind),
        reduced_resolution=ReducedResolution(
            rows=[ReducedRow.model_validate(row.to_json()) for row in rows], window_px=window, error=reason
        ),
        uncertainty=uncertainty_record(job),
        registration=job.staged.registration,
        radiometric_fit=list(job.observation.misfit),
        harmony=job.staged.harmony,
        validity=Validity(
            valid=summary.valid_fraction,
            invalid_pixels=found.invalid,
            filled_hsi=1.0 - job.staged.hsi.valid_fraction,
            filled_msi=1.0 - job.staged.msi.valid_fraction,
            clipped_samples=summary.clipped,
            implausible_samples=found.implausible,
        ),
        observation=ObservationSummary(ratio=job.grids.ratio, psf_sigma_px=job.observation.psf_sigma_px),
        conventions=CONVENTIONS,
        seconds=round(time.monotonic() - started, 3),
    )
    assessment = Assessment(qa=record, maps=found.maps)
    write_atomic(job.folder / QA, json.dumps(assessment.record, indent=1, allow_nan=False))
    return assessment


def require_some_valid(job: StagedJob, summary: MosaicSummary) -> None:
    """Refuse a product that holds nothing, whatever the settings say of gates.

    Raises
    ------
    QualityRefused
        If no sample of it is valid.
    """
    if not any(summary.valid):
        shown = ", ".join(
            f"{100 * image.valid_fraction:.1f} % of {record.name}"
            for image, record in ((job.staged.hsi, job.record.hsi), (job.staged.msi, job.record.msi))
        )
        raise QualityRefused(
            f"{job.config.output}: no pixel of the product would be valid; seen were {shown}. Choose a method that needs fewer "
            "pixels around one (see `hyperfuse methods`), or other masks (hsi.mask, msi.mask)"
        )


def require_passed(job: StagedJob, assessment: Assessment) -> None:
    """Refuse a product that missed a gate, if the settings want that.

    Raises
    ------
    QualityRefused
        With the gates that were missed; the fused tiles and the report stay where the message says.
    """
    missed = sum(not gate.passed for gate in assessment.qa.gates)
    if hopeless := [gate.sentence for gate in assessment.qa.gates if gate.refuses]:
        raise QualityRefused(
            f"{job.config.output}: {'; '.join(hopeless)}: the images do not lie on each other or do not show the same; see the "
            f"report in {job.folder}, look at the displacement with `hyperfuse register`, give a known move as align.east_m "
            "and align.north_m, or publish it as it is with --set quality.gate=off"
        )
    if job.config.quality.gate == "refuse" and missed:
        raise QualityRefused(
            f"{job.config.output}: {missed} quality gates are missed ({'; '.join(assessment.qa.warnings)}); see the report in "
            f"{job.folder}, choose another method, or publish it as it is with --set quality.gate=warn"
        )


def _log(told: list[Cause]) -> None:
    """Warn of what the product does not take into account, and tell the rest."""
    for cause in told:
        if cause.significant and cause.limit is not None:
            (log.warning if (cause.left or 0.0) > cause.limit else log.info)("the pair told: %s", cause.sentence)


def _gates(job: StagedJob, found: Consistency, rows: list[TrialRow], allowed: Limits, told: list[Cause]) -> list[Gate]:
    registration = job.staged.registration
    gates = [
        Gate(
            name="registration",
            value=None,
            limit=None,
            passed=registration.decision == "accept",
            sentence=f"registration: {registration.decision}, {registration.reason}",
        ),
    ]
    if job.staged.harmony is not None:
        harmony = job.staged.harmony
        fitted = harmony.mistake or harmony.reason
        gates.append(Gate(name="radiometry", value=None, limit=None, passed=harmony.passed, sentence=fitted))
    if found.hsi is not None:
        gates += [
            _at_most("max_hsi_sam_deg", found.hsi.sam_deg, allowed.hsi_sam_deg, "spectral angle to the HSI", "deg"),
            _at_most("max_hsi_bias", *_worst_bias(found.hsi, allowed.hsi_bias), "bias to the HSI, worst band", ""),
        ]
    if found.msi is not None and (covered := _covered(job, found)):
        gates.append(_msi_gate(job, float(np.mean([found.msi.band_r2[k] for k in covered])), allowed.msi_r2))
    if found.seams is not None:
        # Few lines cross little scenery: a limit below what that alone does would cry wolf.
        seam, most = abs(found.seams.score), job.config.quality.max_seam + 2.0 * found.seams.spread
        gates.append(_at_most("max_seam", seam, most, "gradient across tile borders, off by", ""))
    if found.implausible is not None:
        gates.append(
            _at_most(
                "max_implausible",
                found.implausible,
                allowed.implausible,
                "share of samples that are no reflectance",
                "",
            )
        )
    gates += _left_displaced(told)
    return gates + (_against_bicubic(own_row(job), rows) if job.config.quality.better_than_bicubic else [])


def _valid_gate(job: StagedJob, summary: MosaicSummary) -> Gate:
    """Whether the product holds what both images show; the one that shows less of the place is what can be expected."""
    seen = min(job.staged.hsi.valid_fraction, job.staged.msi.valid_fraction)
    share, limit = min(summary.valid_fraction / max(seen, 1e-9), 1.0), job.config.quality.min_valid
    return Gate(
        name="min_valid",
        value=share,
        limit=limit,
        passed=share >= limit,
        sentence=f"valid pixels: {share:.3g} of those that were seen, at least {limit:.3g} wanted",
    )


def _left_displaced(told: list[Cause]) -> list[Gate]:
    """Whether the detectors lie on each other in the product, the worst one counts."""
    moved = [cause for cause in told if cause.name == "displacement" and cause.left is not None and cause.limit]
    if not moved:
        return []
    worst = max(moved, key=lambda cause: (cause.left or 0.0) / (cause.limit or 1.0))
    what = f"displacement that is left in the {worst.detector}"
    return [_at_most("displacement", worst.left or 0.0, worst.limit or 0.0, what, "coarse px")]


def _msi_gate(job: StagedJob, r2: float, limit: float) -> Gate:
    limits = job.config.quality
    passed = r2 >= limit
    # A method that takes nothing from the MSI cannot agree with its detail, wherever that lies.
    refuses = not passed and r2 < limits.refuse_msi_r2 and job.spec.msi_reach is not None
    wanted = f"less than {limits.refuse_msi_r2:g}" if refuses else f"at least {limit:.3g} wanted"
    return Gate(
        name="min_msi_r2",
        value=r2,
        limit=limit,
        passed=passed,
        sentence=f"agreement with the MSI: R2 {r2:.3f}, {wanted}",
        refuses=refuses,
    )


def _to_agree(job: StagedJob) -> list[int]:
    """Kept MSI bands, by their number among these, of whose response enough lies under HSI bands to expect agreement."""
    return [k for k, share in enumerate(job.observation.coverage) if share >= MIN_COVERAGE]


def _covered(job: StagedJob, found: Consistency) -> list[int]:
    """The same, by their number among the compared bands."""
    wanted = {job.staged.msi.kept[k] for k in _to_agree(job)}
    return [k for k, band in enumerate(found.msi_bands) if band in wanted]


def _at_most(name: str, value: float, limit: float, what: str, unit: str) -> Gate:
    sentence = f"{what}: {value:.3g}, at most {limit:.3g} wanted{f' ({unit})' if unit else ''}"
    return Gate(name=name, value=value, limit=limit, passed=value <= limit, sentence=sentence)


def _against_bicubic(name: str, rows: list[TrialRow]) -> list[Gate]:
    """SAM and ERGAS at reduced resolution; nothing to say where either method could not be scored."""
    scores = {row.method: row.scores for row in rows}
    ours, control = scores.get(name), scores.get("bicubic")
    if name == "bicubic" or ours is None or control is None:
        return []
    return [
        Gate(
            name="better_than_bicubic",
            value=value,
            limit=limit,
            passed=value < limit,
            sentence=f"{what} at reduced resolution: {value:.3f}, bicubic reaches {limit:.3f}",
        )
        for what, value, limit in (("SAM", ours.sam_deg, control.sam_deg), ("ERGAS", ours.ergas, control.ergas))
        if math.isfinite(value) and math.isfinite(limit)
    ]


def _worst_bias(agreement: Agreement, allowed: NDArray[np.float64]) -> tuple[float, float]:
    """Relative bias of the band that comes closest to its limit, or exceeds it most, and that limit."""
    mean, bias = np.abs(agreement.band_mean), np.abs(agreement.band_bias)
    bright = np.flatnonzero(mean > _FAINT * mean.max())
    if not bright.size:
        return 0.0, float(allowed.max())
    share = bias[bright] / mean[bright]
    worst = int((share / allowed[bright]).argmax())
    return float(share[worst]), float(allowed[bright[worst]])


def _banded(agreement: Agreement, center_nm: Any) -> BandedAgreement:
    return BandedAgreement(**vars(agreement), wavelength_nm=center_nm.tolist())


def _strict(job: StagedJob, found: Consistency) -> StrictFacts | None:
    """What strict mode was to reach and what it has reached; None of a job that is not strict."""
    record = load_record(job)
    if record is None:
        return None
    told = record.model_dump()
    if found.hsi is None:
        return StrictFacts(**told, over_noise=None, bands_above_noise=None)
    over = np.array(found.hsi.band_rmse) / np.array(record.noise)
    return StrictFacts(**told, over_noise=float(over.max()), bands_above_noise=int((over > 1.0).sum()))


def _finite(blind: NoReference | None) -> NoReference | None:
    return None if blind is None or not math.isfinite(blind.d_lambda_k) else blind


def _reduced(job: StagedJob) -> tuple[list[TrialRow], str | None, tuple[int, int, int, int]]:
    """The chosen method and the controls on a central window at reduced resolution, or why there is nothing to compare."""
    names = list(dict.fromkeys((job.config.method, *CONTROLS)))
    window = central_window(job)
    extent = (window.y0, window.y1, window.x0, window.x1)
    weights, device, strict = weights_of(job), str(pick_device(job.config.device)), job.config.strict
    try:
        rows = evaluate([job_trial(job, window)], names, weights=weights, device=device, strict=strict)
        # The controls stay what they are; the product is what strict mode makes of the method.
        return [row for row in rows if row.method in {*names, own_row(job)}], None, extent
    except HyperFuseError as error:
        return [], str(error), extent


def own_row(job: StagedJob) -> str:
    """Name of the product's own row at reduced resolution."""
    return f"{job.config.method}{STRICT_SUFFIX}" if job.config.strict else job.config.method
