"""The record of how a product came to be: everything needed to compute it again, and to trust it."""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Iterable
from datetime import datetime
from importlib.metadata import version
from typing import Any

import rasterio
from pyproj import CRS

from hyperfuse.catalogs.times import rfc3339
from hyperfuse.models import method
from hyperfuse.pipeline.fusion.residual import load_gate
from hyperfuse.pipeline.job.completeness import MosaicSummary
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.records import InputRecord, code_version, samples_code
from hyperfuse.pipeline.products.records import (
    SCHEMA,
    FacilityFacts,
    MethodFacts,
    ObservationFacts,
    ProductFacts,
    Provenance,
    SamplesFacts,
    SceneFacts,
    TileFacts,
)
from hyperfuse.pipeline.quality.records import QualitySummary

_PACKAGES = ("hyperfuse", "numpy", "torch", "xarray", "dask", "zarr", "rasterio", "pyproj", "odc-geo", "scipy")


def provenance(
    job: StagedJob,
    summary: MosaicSummary,
    *,
    started: datetime,
    ended: datetime,
    effort: dict[str, Any],
    quality: QualitySummary | None = None,
) -> Provenance:
    """The record of a finished job.

    Parameters
    ----------
    job : StagedJob
    summary : MosaicSummary
    started, ended : datetime
        UTC, of the run that finished it.
    effort : dict
        Tiles that an earlier run had finished, and the pace of the run that fused the rest.
    quality : QualitySummary, optional
        The few numbers of `qa.json` that the product's other records have too.
    """
    record, staged = job.record, job.staged
    observation = staged.observation.model_dump() | {"ratio": record.grid.ratio, "psf": "gaussian"}
    assessed = {} if quality is None else {"quality": quality}
    return Provenance(
        schema=SCHEMA,
        job_key=record.key,
        samples=SamplesFacts(key=record.samples, code=samples_code()),
        product=product_facts(job, summary),
        inputs={
            "hsi": _scene_facts(record.hsi, staged.hsi.kept),
            "msi": _scene_facts(record.msi, staged.msi.kept),
        },
        config=job.config.model_dump(mode="json"),
        registration=staged.registration,
        observation=ObservationFacts(**observation, lead=record.grid.lead),
        harmony=staged.harmony,
        method=_method_facts(job, summary),
        tiles=TileFacts(
            core=job.plan.core,
            shape=job.plan.shape,
            finished=summary.n_tiles,
            resumed=effort["tiles"],
            redundancy=round(job.plan.redundancy, 4),
        ),
        pace={key: value for key, value in effort.items() if key != "tiles"},
        software=software(_PACKAGES),
        facility=FacilityFacts(host=socket.gethostname(), platform=platform.platform(), devices=summary.devices),
        started=rfc3339(started),
        ended=rfc3339(ended),
        **assessed,
    )


def software(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this software, of the interpreter, of GDAL and of some packages."""
    own = {"code_version": code_version(), "python": sys.version.split()[0], "gdal": rasterio.__gdal_version__}
    return own | {name: version(name) for name in packages}


def product_facts(job: StagedJob, summary: MosaicSummary) -> ProductFacts:
    """What anybody can check on the product itself, without the job."""
    grid, bands, publish = job.record.grid, job.bands, job.config.publish
    errors = {"error_scale": job.error_scale if job.packed else 1.0} if publish.uncertainty else {}
    return ProductFacts(
        name=job.name,
        crs=grid.crs,
        crs_wkt=CRS.from_user_input(grid.crs).to_wkt(),
        shape=grid.shape,
        transform=grid.affine,
        wavelength_nm=bands.center_nm.tolist(),
        fwhm_nm=bands.to_json()["fwhm_nm"],
        source_band=bands.source_band.tolist(),
        quantity=job.record.hsi.quantity,
        unit=job.record.hsi.unit,
        dtype=publish.dtype,
        scale=job.staged.scale if job.packed else 1.0,
        offset=0.0,
        nodata=NODATA if job.packed else None,
        valid_fraction=summary.valid_fraction,
        clipped_samples=summary.clipped,
        formats=publish.formats,
        overviews=publish.overviews,
        **errors,
    )


def _method_facts(job: StagedJob, summary: MosaicSummary) -> MethodFacts:
    card, weights = method(job.config.method).card, job.record.weights
    return MethodFacts(
        name=job.config.method,
        title=card.title,
        paper=card.paper,
        code=card.code,
        weights_sha256=weights["sha256"] if weights else None,
        weights=weights,
        base=job.spec.base,
        residual=(decision := load_gate(job)) and decision.to_json(),
        parameters=job.spec.parameters,
        precision=" and ".join(summary.precisions),
        exact_tiling=job.spec.exact,
        halo=job.spec.halo,
        strict=job.config.strict,
    )


def _scene_facts(scene: InputRecord, kept: list[int]) -> SceneFacts:
    return SceneFacts(**scene.model_dump(), excluded_bands_nm=_excluded(scene.bands, kept))


def _excluded(bands: dict[str, list[Any]], kept: list[int]) -> list[float]:
    good = [i for i, flag in enumerate(bands["good"]) if flag]
    used = {good[k] for k in kept}
    return [nm for i, nm in enumerate(bands["center_nm"]) if i not in used]
