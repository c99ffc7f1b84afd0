"""What the log says of a staged pair: how its images were observed, and whether they agree."""

from __future__ import annotations

import logging
import math

from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.sensor_model import GOOD_R2

log = logging.getLogger(__name__)

_MAX_CENTER_PX = 0.5
"""A PSF estimated farther off center than this, in fine pixels, is named in the log: it shows a misregistration."""


def tell_observation(job: StagedJob) -> None:
    """PSF and responses, and MSI bands that do not follow from the HSI."""
    observation = job.observation
    y, x = (
        found - told
        for found, told in zip(observation.psf_center_px, job.staged.samples_beside_px or (0.0, 0.0), strict=True)
    )
    if observation.note:
        log.warning("observation model: %s", observation.note)
    log.info(
        "observation model: PSF of %.2f px (%s), SRF (%s)",
        observation.psf_sigma_px,
        observation.psf_origin,
        observation.srf_origin,
    )
    if math.hypot(y, x) > _MAX_CENTER_PX:
        log.warning(
            "the PSF lies %.2f, %.2f fine px (y, x) beside where registration expects it: look at the registration",
            y,
            x,
        )
    centers = job.staged_bands[1][job.staged.msi.kept].center_nm
    for nm, misfit in zip(centers, observation.misfit, strict=False):
        if misfit is not None and misfit.r2 < GOOD_R2:
            log.warning(
                "%s: the HSI predicts its band at %.0f nm poorly (R2 %.2f); check registration, wavelengths and dates",
                job.record.msi.name,
                nm,
                misfit.r2,
            )


def tell_harmony(job: StagedJob) -> None:
    """Whether the MSI was brought to the radiometry of the HSI, and what kept it from that."""
    harmony = job.staged.harmony
    if harmony is None:
        return
    told = harmony.mistake or harmony.reason
    (log.info if harmony.passed else log.warning)("radiometry: %s", told)
